"""The command line: verbs, flags, help and errors."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import types

import pytest
from absl import flags
from IPython.core.error import UsageError

from realm_jax import cli

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def test_no_verb_shows_them_all_and_fails(realm):
  status, out, err = realm()
  assert (status, out) == (2, "")
  assert err.startswith("REALM for JAX\n")
  assert all(f"\n  {verb} " in err for verb in cli.VERBS)


@pytest.mark.parametrize("help_flag", ["help", "--help", "-h"])
def test_help_shows_the_verbs(realm, help_flag):
  status, out, err = realm(help_flag)
  assert (status, err) == (0, "")
  assert all(f"\n  {verb} " in out and text in out for verb, text in cli.VERBS.items())


def test_an_unknown_verb_is_named(realm):
  status, out, err = realm("trian", "--workdir=x")
  assert (status, out) == (2, "")
  assert err.startswith("no verb 'trian'\n") and "\n  train " in err


def test_an_unknown_flag_is_named(realm):
  assert realm("refresh_index", "--workdir=x", "--nope=1") == (
    2,
    "",
    "realm refresh_index: Unknown command line flag 'nope'\nrealm refresh_index --help  lists the flags\n",
  )


@pytest.mark.parametrize(("verb", "flag"), [("refresh_index", "workdir"), ("train", "workdir"), ("ask", "workdir")])
def test_a_missing_flag_is_named(realm, verb, flag):
  status, out, err = realm(verb)
  assert (status, out) == (2, "")
  assert err == (
    f"realm {verb}: flag --{flag}=None: Flag --{flag} must have a value other than None.\n"
    f"realm {verb} --help  lists the flags\n"
  )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ["ask", "--workdir=/nonexistent", "Who?"],
      "no run in /nonexistent: no config.json is there; start realm train with this --workdir",
    ),
    (
      ["refresh_index", "--workdir=/nonexistent", "--timeout=0"],
      "no run in /nonexistent: no config.json is there; start",
    ),
    (["refresh_index", "--workdir=/nonexistent", "more"], "unexpected 'more'"),
    (["build_corpus", "--output=/nonexistent"], "give either --input=FILE or --sample"),
    (["build_corpus", "--sample"], "give --output=DIR, where to write the corpus"),
    (
      ["build_corpus", "--sample", "--output=/nonexistent", "--", "--project=x"],
      "'--project=x': flags after -- are for",
    ),
    (["build_corpus", "--describe=/nonexistent"], "no corpus at /nonexistent (it has no corpus.json)"),
    (
      ["build_corpus", "--input=/nonexistent/x.jsonl", "--output=/nonexistent/o"],
      "no input file at /nonexistent/x.jsonl",
    ),
    (["train", "--workdir=/nonexistent"], "give --config=FILE.py and --workdir=DIR, and nothing else"),
    (
      ["train", f"--config={CONFIGS}/ict.py", "--config.corpus=/nonexistent/corpus", "--workdir=/nonexistent"],
      "no corpus at /nonexistent/corpus (it has no corpus.json); make one with realm build_corpus",
    ),
  ],
)
def test_an_error_is_one_line(realm, arguments, message):
  status, out, err = realm(*arguments)
  assert (status, out) == (1, "")
  line, hint = err.splitlines()
  assert line.startswith(f"realm {arguments[0]}: ") and message in line
  assert hint == "(REALM_DEBUG=1 shows where)"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.batch_size=-1"], "batch_size=-1, expected at least 1; set --config.batch_size to that or more"),
    (["--wandb=mine"], "--wandb needs Weights & Biases:  pip install 'realm_jax[wandb]'"),
  ],
)
def test_what_can_not_start_leaves_nothing_behind(realm, sample_store, tmp_path, monkeypatch, arguments, message):
  monkeypatch.setitem(sys.modules, "wandb", None)
  workdir = tmp_path / "run"
  given = [f"--config={CONFIGS}/demo.py:ict", f"--config.corpus={sample_store.path}", "--config.query_length=32"]
  status, out, err = realm("train", *given, "--config.model.max_length=256", *arguments, f"--workdir={workdir}")
  assert (status, out, err.splitlines()[0]) == (1, "", f"realm train: {message}")
  assert not workdir.exists()


def test_realm_debug_shows_where(monkeypatch):
  monkeypatch.setenv("REALM_DEBUG", "1")
  with pytest.raises(FileNotFoundError, match="no run in /nonexistent"):
    cli.run(["ask", "--workdir=/nonexistent"])


@pytest.fixture
def unread():
  """A pipe that nothing reads any more, as that of `realm ask ... | head` when head has ended."""
  reading, writing = os.pipe()
  os.close(reading)
  return os.fdopen(writing, "w")


def test_a_program_whose_output_is_not_read_ends_without_a_word(unread):
  with unread:
    command = [sys.executable, "-m", "realm_jax.cli", "--help"]
    result = subprocess.run(command, stdout=unread, stderr=subprocess.PIPE, cwd=CONFIGS.parent, check=False)
  assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.parametrize("length", [1, 10**6])  # less than Python holds back, and more
def test_a_verb_whose_output_is_not_read_ends_without_a_word(monkeypatch, capsys, unread, length):
  verb = types.SimpleNamespace(define_flags=lambda values: None, main=lambda values, positional: print("x" * length))
  monkeypatch.setattr(cli, "load_verb", lambda name: verb)
  with unread, monkeypatch.context() as patch:
    patch.setattr(sys, "stdout", unread)
    assert cli.run(["ask"]) == 141
  assert capsys.readouterr().err == ""


def test_any_other_pipe_that_breaks_is_told(monkeypatch, capfd):
  def main(values, positional):
    raise BrokenPipeError(32, "Broken pipe", "to the worker")

  monkeypatch.setattr(cli, "load_verb", lambda name: types.SimpleNamespace(define_flags=lambda values: None, main=main))
  monkeypatch.delenv("REALM_DEBUG", raising=False)
  assert cli.run(["ask"]) == 1
  assert capfd.readouterr().err.splitlines()[0] == "realm ask: [Errno 32] Broken pipe: 'to the worker'"


def test_fields_of_the_config_are_set_by_flags(monkeypatch):
  seen = []
  monkeypatch.setattr("realm_jax.training.loop.train", lambda config, run_dir, **_: seen.append((config, run_dir)))
  argv = list(sys.argv)
  arguments = [
    f"--config={CONFIGS}/demo.py:ict",
    "--config.batch_size=3",
    "--config.optimizer.learning_rate=0.5",
    "--workdir=/x",
  ]
  assert cli.run(["train", *arguments]) == 0
  config, run_dir = seen[0]
  assert (config.stage, config.batch_size, config.optimizer.learning_rate) == ("ict", 3, 0.5)
  assert str(run_dir.path) == "/x"
  assert sys.argv == argv


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("--config.batch_sise=3", "batch_sise"),
    ("--config.model.hidden=3", "hidden"),
    ("--config.batch_size=many", "'many'"),
  ],
)
def test_a_wrong_field_of_the_config_is_named(realm, override, message):
  status, out, err = realm("train", f"--config={CONFIGS}/ict.py", override, "--workdir=/x")
  assert (status, out) == (2, "")
  assert err.startswith("realm train: ") and message in err.splitlines()[0] and len(err.splitlines()) <= 2


@pytest.mark.parametrize("verb", cli.VERBS)
@pytest.mark.parametrize("help_flag", ["--help", "-h"])
def test_help_of_a_verb_has_its_docstring_and_every_flag(realm, verb, help_flag):
  module = cli.load_verb(verb)
  values = flags.FlagValues()
  module.define_flags(values)
  status, out, err = realm(verb, help_flag)
  assert (status, err) == (0, "")
  assert module.__doc__.strip() in out
  assert list(values)
  for name in values:
    assert f"\n  --{name}: {values[name].help}" in out


def examples(text):
  """The command lines of a text, continued ones joined, without comments: [verb, arguments ...]."""
  lines = re.findall(r"^ +realm (.*)$", text.replace("\\\n", " "), re.MULTILINE)
  return [shlex.split(re.split(r" [>|#] |  ", " ".join(line.split(" \\ ")))[0].strip()) for line in lines]


def parse(monkeypatch, verb, *arguments):
  """Parses the flags of a command line; an unknown one raises."""
  values = flags.FlagValues()
  cli.load_verb(verb).define_flags(values)
  monkeypatch.setattr(sys, "argv", [verb, *arguments])
  values(sys.argv)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_examples_of_a_verbs_help_have_flags_that_exist(monkeypatch, verb):
  module = cli.load_verb(verb)
  doc = module.__doc__
  assert len(doc.splitlines()) <= 25 and len(doc.splitlines()[0]) <= 120 and doc.splitlines()[1] == ""
  found = examples(doc)
  assert found and found[0][0] == verb
  monkeypatch.chdir(CONFIGS.parent)
  for name, *arguments in found:
    if arguments[:1] == ["--help"]:
      continue
    parse(monkeypatch, name, *arguments)


def test_the_overview_has_an_example_that_runs(realm, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  _, out, _ = realm("--help")
  (example,) = examples(out)
  assert realm(*example)[0] == 0
  assert (tmp_path / "corpora" / "sample" / "corpus.json").is_file()


def test_a_notebooks_command_line_stops_it_when_it_fails(capsys):
  magics = []
  cli.load_ipython_extension(types.SimpleNamespace(register_magic_function=magics.append))
  (realm,) = magics
  realm("inspect --help")
  assert realm.__name__ == "realm" and "the state of a run directory" in capsys.readouterr().out
  with pytest.raises(UsageError, match="realm ended with status 1; why stands above"):
    realm("inspect 'no run'")
  assert "no run" in capsys.readouterr().err
