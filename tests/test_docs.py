"""What the documents say of the code: links, commands and names that exist, and a docstring for all that is public."""

import ast
import doctest
import importlib
import itertools
import pathlib
import re
from urllib.parse import unquote

import nbformat
import pytest
import yaml
from absl import flags
from test_cli import examples, parse

from realm_jax import cli

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CARD = ROOT / "realm_jax" / "weights" / "tiny" / "README.md"
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name(path):
  return str(path.relative_to(ROOT))


def text_of(path):
  """A document, or the texts and the code of a notebook."""
  if path.suffix == ".md":
    return path.read_text(encoding="utf-8")
  return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


def anchors(text):
  """What GitHub makes of the headings."""
  headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*DOCUMENTS, CARD, *NOTEBOOKS], ids=name)
def test_every_link_resolves(path):
  for link in LINK.findall(text_of(path)):
    if not link.startswith(("https://", "http://")):
      target, _, anchor = unquote(link).partition("#")
      there = (path.parent / target).resolve() if target else path
      assert there.exists(), link
      assert not anchor or anchor in anchors(text_of(there)), link


def check_flags(verb, arguments):
  assert verb in cli.VERBS
  values = flags.FlagValues()
  cli.load_verb(verb).define_flags(values)
  for argument in itertools.takewhile(lambda argument: argument != "--", arguments):  # behind it they are Beam's
    flag = re.match(r"--(\w+)", argument)
    known = [*values, *(f"no{name}" for name in values if values[name].boolean), "help"]
    assert not flag or flag[1] in known, f"realm {verb} {argument}"


def commands_of(path):
  """Those on lines of their own, but for those that are shown to fail."""
  text = re.sub(r"\s*\\\n\s*", " ", text_of(path))
  lines = re.findall(r"^(?:\$ )?(realm \w+ .*)$(?!\nrealm \w+: )", text, re.MULTILINE)
  return examples("".join(f"  {line}\n" for line in lines))


def commands_within_the_text(path):
  return re.findall(r"(?:`|^[!%])realm (\w+)((?: [^`\n]*)?)", text_of(path), re.MULTILINE)


def test_the_documents_have_commands():
  """The tests below would find nothing wrong where nothing is found."""
  assert sum(len(commands_of(path)) for path in DOCUMENTS) > 40
  assert sum(len(commands_within_the_text(path)) for path in [*DOCUMENTS, *NOTEBOOKS]) > 45


@pytest.mark.parametrize("path", [path for path in [*DOCUMENTS, CARD] if "realm " in text_of(path)], ids=name)
def test_commands_of_a_document_parse(path, monkeypatch):
  """With the config that they name."""
  monkeypatch.chdir(ROOT)
  for verb, *arguments in commands_of(path):
    check_flags(verb, arguments)
    if not {"...", "--help"} & set(arguments):  # else it isn't the whole command
      parse(monkeypatch, verb, *arguments)


@pytest.mark.parametrize("path", [*DOCUMENTS, CARD, *NOTEBOOKS], ids=name)
def test_commands_within_the_text_have_flags_that_exist(path):
  for verb, arguments in commands_within_the_text(path):
    check_flags(verb, arguments.split())


def test_contributing_names_what_the_files_hold():
  rows = [line for line in text_of(ROOT / "CONTRIBUTING.md").splitlines() if ".py](" in line and line.startswith("|")]
  assert len(rows) == 7
  for row in rows:
    for cell in row.split("|"):
      _, *parts = LINK.split(cell)  # link, the text behind it, link, ...
      for link, text in zip(parts[::2], parts[1::2]):
        code = (ROOT / link).read_text(encoding="utf-8")
        for word in re.findall(r"`(\w+)`", text):
          assert re.search(rf"^ *(def|class) {word}\b|^{word}\b", code, re.MULTILINE), f"{word} in {link}"


MODULES = sorted((ROOT / "realm_jax").rglob("[!_]*.py"))
# Methods that a class elsewhere explains: flax's, seqio's.
OTHERS_METHODS = {"setup", "supports_arbitrary_sharding", "list_shards", "get_dataset"}


def public(nodes, kinds):
  return [node for node in nodes if isinstance(node, kinds) and not node.name.startswith("_")]


def test_everything_public_has_a_docstring():
  """All functions, classes and methods, but for those that a protocol explains; a verb's two, `cli.load_verb`."""
  functions = (ast.FunctionDef, ast.AsyncFunctionDef)
  trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
  classes = {path: public(tree.body, ast.ClassDef) for path, tree in trees.items()}
  protocols = [c for found in classes.values() for c in found if [ast.unparse(b) for b in c.bases] == ["Protocol"]]
  explained = {m.name for c in protocols for m in public(c.body, functions) if ast.get_docstring(m)} | OTHERS_METHODS
  assert "search" in explained
  for path, tree in trees.items():
    is_verb = path.parent.name == "realm_jax"
    of_verbs = [node for node in public(tree.body, functions) if is_verb and node.name in ("define_flags", "main")]
    methods = [m for c in classes[path] for m in public(c.body, functions) if c in protocols or m.name not in explained]
    for node in [*public(tree.body, functions), *classes[path], *methods]:
      assert ast.get_docstring(node) or node in of_verbs, f"{name(path)}:{node.lineno}: {node.name}"


@pytest.mark.parametrize("path", [p for p in MODULES if ">>> " in p.read_text(encoding="utf-8")], ids=name)
def test_the_examples_of_docstrings_are_true(path):
  module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
  failed, attempted = doctest.testmod(module)
  assert attempted and not failed


def test_the_citation_file_has_what_the_format_demands():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
  assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(citation)
