"""The rooms of the code and what each may import: the table of STYLE.md, kept true."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "realm_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT = {  # room -> what it may import of ours, besides itself
  "data": {"batch"},
  "model": {"batch"},
  "index": {"data", "model", "batch"},
  "weights": {"data", "model", "batch", "config"},
  "training": {"data", "model", "index", "weights", "batch", "config"},
  "serving": {"data", "model", "index", "batch", "config"},
}
ONLY_IN_DATA = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "t5", "apache_beam"}
TENSORFLOW_READER = "weights/tensorflow_checkpoint.py"  # what it reads, nothing else can
NEVER_IN_DATA = {"jax", "jaxlib", "flax", "optax", "orbax", "scann"}
NEVER_IN_MODEL = {"os", "pathlib", "etils", "orbax", "scann", "logging", "absl", "tqdm", "ml_collections", "optax"}
NEVER = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NAMELESS = {"utils", "util", "common", "helpers", "helper", "base", "misc"}


def imports(tree):
  """Dotted names of all that is imported, at any depth; `from a import b` gives a.b."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "relative imports hide the room"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parse(path):
  return ast.parse(path.read_text(encoding="utf-8"), str(path))


def room(path):
  parts = path.relative_to(PACKAGE).parts
  return parts[0] if len(parts) > 1 else None


def name(path):
  return str(path.relative_to(PACKAGE))


def test_the_package_is_found():
  assert {room(path) for path in FILES} == {None, *MAY_IMPORT}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_room_imports_what_it_may(path):
  imported = set(imports(parse(path)))
  ours = {dotted.split(".")[1] for dotted in imported if dotted.split(".")[0] == "realm_jax"}
  theirs = {dotted.split(".")[0] for dotted in imported}
  if room(path) is not None:
    assert ours <= MAY_IMPORT[room(path)] | {room(path)}
  assert not theirs & NEVER
  if room(path) == "data":
    assert not theirs & NEVER_IN_DATA
  else:
    assert not theirs & ONLY_IN_DATA - ({"tensorflow"} if name(path) == TENSORFLOW_READER else set())
  if room(path) == "model":
    assert not theirs & NEVER_IN_MODEL
  if path.name == "batch.py":
    assert not ours


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_unpickles(path):
  for node in ast.walk(parse(path)):
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
      assert isinstance(node.value, ast.Constant) and node.value.value is False
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      assert (node.value.id, node.attr) not in {("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load")}
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
      weights_only = [keyword.value for keyword in node.keywords if keyword.arg == "weights_only"]
      assert [ast.literal_eval(value) for value in weights_only] == [True]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_module_says_its_job_and_has_a_name(path):
  docstring = ast.get_docstring(parse(path))
  assert docstring and docstring.splitlines()[0].strip()
  assert path.stem not in NAMELESS and path.parent.name not in NAMELESS


def test_no_assert_on_a_tuple_and_no_forgotten_f():
  """An error text with {braces} that nothing fills in."""
  for path in FILES:
    tree = parse(path)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
      if isinstance(node, ast.Raise) and node.exc is not None:
        for part in ast.walk(node.exc):
          if isinstance(part, ast.Constant) and isinstance(part.value, str) and id(part) not in inside:
            assert not ("{" in part.value and "}" in part.value), f"{name(path)}:{part.lineno} lacks its f"
      if isinstance(node, ast.Assert):
        assert not isinstance(node.test, ast.Tuple)


def test_the_verbs_of_a_job_on_several_hosts_compute_nothing_when_imported():
  """With a backend that has started, jax.distributed.initialize refuses to join the other hosts."""
  code = (
    "import realm_jax.train, realm_jax.training.loop, realm_jax.refresh_index; from jax._src import xla_bridge; "
    "print(xla_bridge.backends_are_initialized())"
  )
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
  assert (result.stdout, result.returncode) == ("False\n", 0), result.stderr


def test_steps_indexer_and_ask_do_without_tensorflow():
  modules = [
    "realm_jax.training.step",
    "realm_jax.training.loop",
    "realm_jax.refresh_index",
    "realm_jax.ask",
    "realm_jax.serving.web",
    "realm_jax.convert",
    "realm_jax.index.searcher",
  ]
  code = f"import sys, {', '.join(modules)}; print(sorted({{'tensorflow', 'seqio', 'scann'}} & set(sys.modules)))"
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
  assert (result.stdout, result.returncode) == ("[]\n", 0), result.stderr
