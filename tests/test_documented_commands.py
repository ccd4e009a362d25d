"""The commands of README and docs, in small: each is run here, or stands with the reason why not."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest
from processes import CACHE, SMALL
from test_docs import DOCUMENTS, name, text_of
from tiny_runs import write_run

from realm_jax import cli, library
from realm_jax.data.sample import SAMPLE_PASSAGES, SAMPLE_QUESTIONS
from realm_jax.serving.open_qa import OpenQA

ROOT = pathlib.Path(__file__).parent.parent
RUN = "run"
CLOUD = "needs a cloud; tests/test_launch.py and tests/test_gcs.py have stand-ins"
INSTALLS = "installs packages"

# (document, how its commands begin, how they are run or the reason why not). Each command takes the first that fits.
RULES = [
  ("README.md", "bash launch/test.sh", "runs this test"),
  ("README.md", "bash launch/demo.sh", "minutes; its steps are those of test_the_readmes_loop_on_own_documents"),
  ("README.md", "realm ", RUN),
  ("docs/checkpoints.md", "realm ", RUN),
  ("docs/corpus.md", "pip install", INSTALLS),
  ("docs/corpus.md", "realm build_corpus --input='gs://", CLOUD),
  ("docs/corpus.md", "tfds build", "needs mlcroissant, which has no place in requirements.txt"),
  ("docs/corpus.md", "realm build_corpus --input=tfds:", "needs what the command before makes"),
  ("docs/corpus.md", "realm ", RUN),
  ("docs/corpus.md", "python benchmarks/corpus.py", RUN),
  (
    "docs/evaluation.md",
    "realm evaluate --workdir=runs/nq --questions=nq.dev.jsonl --retriever",
    "needs a second run; tests/test_evaluate.py has one",
  ),
  ("docs/evaluation.md", "realm evaluate", RUN),
  ("docs/finetuning.md", "realm train", "downloads NaturalQuestions; tests/test_configs.py builds the config"),
  ("docs/finetuning.md", "realm evaluate", "downloads NaturalQuestions; docs/evaluation.md has the same with files"),
  ("docs/finetuning.md", "realm ", RUN),
  ("docs/inspect.md", "realm ", RUN),
  ("docs/launching.md", "realm plan", "is not a whole command"),
  ("docs/launching.md", "", CLOUD),
  ("docs/loop.md", "realm train", "has the paper's size; tests/test_objectives.py has its step"),
  ("docs/loop.md", "realm ", RUN),
  (
    "docs/performance.md",
    "realm plan",
    "needs libtpu and compiles for minutes; tests/test_planning.py has a small one",
  ),
  ("docs/performance.md", "realm train", "needs a GPU; tests/test_bert.py compares the attentions' values"),
  ("docs/questions.md", "realm evaluate", RUN),
  ("docs/results.md", "bash launch/", "minutes to hours"),
  (
    "docs/results.md",
    "python benchmarks/corpus_swap.py",
    "needs the demo's run; tests/test_corpus_swap.py has a small one",
  ),
  ("docs/scaling.md", "realm train", CLOUD + "; tests/test_devices.py has several processes"),
  ("docs/serving.md", "pip install", INSTALLS),
  ("docs/serving.md", "python benchmarks/serve.py", "loads the machine for minutes"),
  ("docs/serving.md", "python benchmarks/ask.py", "loads the machine for a minute"),
  ("docs/serving.md", "realm serve", RUN),
  ("docs/serving.md", "curl", RUN),
  ("docs/storage.md", "pip install", INSTALLS),
  ("docs/storage.md", "", CLOUD),
]


class Command(NamedTuple):
  document: str
  text: str
  error: str  # where it is shown to fail: the line


def commands_of(path):
  """The command lines in the blocks of a document: those behind "$ " if a block has any."""
  found = []
  for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text_of(path), re.MULTILINE | re.DOTALL):
    if language not in ("", "bash"):
      continue
    lines = re.sub(r"\s*\\\n\s*", " ", block).splitlines() + [""]
    prompt = r"\$ " if any(line.startswith("$ ") for line in lines) else ""
    program = prompt + r"((?:realm \w+|python|bash|pip|curl|gcloud|tfds|export|xprof|tensorboard) .*)"
    for line, after in zip(lines, lines[1:]):
      if match := re.fullmatch(program, line):
        error = after if re.match(r"realm \w+: ", after) else ""
        found.append(Command(name(path), re.split(r" +# | \| ", match[1])[0].strip(), error))
  return found


COMMANDS = [command for path in DOCUMENTS for command in commands_of(path)]


def rule_of(command):
  return next((r for r in RULES if command.document == r[0] and command.text.startswith(r[1])), None)


def commands(document, begins=""):
  """Those that are run."""
  return [c for c in COMMANDS if c.document == document and rule_of(c)[2] == RUN and c.text.startswith(begins)]


def test_each_command_is_run_or_has_a_reason_why_not():
  assert len(COMMANDS) > 40
  assert [command for command in COMMANDS if rule_of(command) is None] == []
  used = {rule_of(command) for command in COMMANDS}
  assert [rule for rule in RULES if rule not in used] == []


@pytest.fixture(scope="module")
def world(sample_store, tmp_path_factory):
  """A directory with what the documents speak of, in small."""
  path = tmp_path_factory.mktemp("world")
  for directory in ("configs", "benchmarks"):
    (path / directory).symlink_to(ROOT / directory)
  (path / "corpora").mkdir()
  (path / "corpora" / "wiki").symlink_to(sample_store.path)
  for stage, runs in {"ict": ["ict"], "pretrain": ["pretrain", "RUN"], "finetune": ["nq", "qa", "NQ"]}.items():
    write_run(path / "runs" / runs[0], sample_store, stage=stage)
    for copied in runs[1:]:
      shutil.copytree(path / "runs" / runs[0], path / ("runs" if copied.islower() else "") / copied)
  (path / "NQ" / "best.json").write_text('{"step": 10}')
  write_texts(path)
  return path


def write_texts(path):
  """Articles and questions: the first of the sample's."""
  lines = SAMPLE_PASSAGES.read_text(encoding="utf-8").splitlines(keepends=True)[:40]
  (path / "articles.jsonl").write_text("".join(lines), encoding="utf-8")
  ids = {json.loads(line)["id"] for line in lines}
  questions = SAMPLE_QUESTIONS["train"].read_text(encoding="utf-8").splitlines(keepends=True)
  questions = [line for line in questions if json.loads(line)["passage"] in ids][:40]
  for file in ("questions", "curatedtrec.train", "webquestions.train"):
    (path / f"{file}.jsonl").write_text("".join(questions), encoding="utf-8")
  for file in ("dev", "nq.dev", "nq.test"):
    (path / f"{file}.jsonl").write_text("".join(questions[:3]), encoding="utf-8")
  predictions = [{"question": json.loads(q)["question"], "prediction": "Paris"} for q in questions[:3]]
  (path / "mine.jsonl").write_text("".join(json.dumps(p) + "\n" for p in predictions), encoding="utf-8")


@pytest.fixture
def run(world, capsys, monkeypatch):
  """Runs a command in the world: what it printed."""
  monkeypatch.chdir(world)
  monkeypatch.delenv("REALM_DEBUG", raising=False)

  def run(command, *more):
    capsys.readouterr()
    status = cli.run([*shlex.split(command.text)[1:], *more])
    printed = capsys.readouterr()
    assert (status == 0) == (not command.error), printed.err
    return printed.err.splitlines()[0] if command.error else printed.out

  return run


def test_evaluation(run, world):
  for command in commands("docs/evaluation.md"):
    if "--table" in command.text:  # of what the commands before have stored, and one more
      shutil.copytree(world / "runs" / "pretrain" / "evaluation", world / "runs" / "ict" / "evaluation")
    *_, line = run(command).splitlines()
    if "--table" in command.text:
      assert line.split()[0] == "nq"
    else:
      assert json.loads(line)["num_questions"] == 3
  assert (world / "nq.html").stat().st_size > 1000 and (world / "runs" / "nq" / "best.json").exists()


def test_changed_documents(run, world):
  build, convert, refresh, ask, _ = commands("docs/corpus.md", "realm ")
  (world / "corpora" / "mine").symlink_to(world / "corpora" / "wiki")
  *articles, last = (world / "articles.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
  last = json.dumps(json.loads(last) | {"text": "It has changed."})
  (world / "articles.jsonl").write_text("".join([*articles, last]), encoding="utf-8")
  run(build, "--passage_length=256")  # the world's
  run(convert)
  assert re.search(r"^39 of 40 passages are in the index of .*/runs/qa$", run(refresh), re.MULTILINE)
  assert run(ask).splitlines()[0] == "Q: ..."
  (world / "corpora" / "mine").unlink()
  write_texts(world)


def test_inspection(run):
  for command in commands("docs/inspect.md"):
    out = run(command)
    if command.error:
      assert out == command.error
    elif "--question" in command.text:
      assert out.split()[:2] == ["rank", "score"] and ("gradient" in out) == ("--answer" in command.text)
    elif " config diff " in command.text:
      assert out.splitlines()[0].split() == ["runs/ict", "runs/pretrain"]
    else:
      assert re.match(r"\S*runs/pretrain: pretrain, 20 of 20 steps, done, ", out)


def test_what_is_shown_of_the_library_is_its_docstring():
  """Which tests/test_library.py runs, and OpenQA's too."""
  shown = [line for block in python_blocks(ROOT / "docs" / "inspect.md") for line in block.splitlines() if line]
  assert len(shown) == 10
  known = {line.strip() for line in [*library.__doc__.splitlines(), *OpenQA.__doc__.splitlines()]}
  assert set(shown[:-1]) <= known and shown[-1] == 'reader = OpenQA.load("runs/mine")'


def python_blocks(path):
  return re.findall(r"^```python\n(.*?)^```", text_of(path), re.MULTILINE | re.DOTALL)


def test_documents_are_read_in_four_lines_of_python(tmp_path, monkeypatch, capsys):
  (code,) = python_blocks(ROOT / "README.md")
  (card,) = python_blocks(ROOT / "realm_jax" / "weights" / "tiny" / "README.md")
  assert code == card
  monkeypatch.chdir(tmp_path)
  exec(compile(code, "README.md", "exec"), {})  # noqa: S102
  assert capsys.readouterr().out == "William Ramsay\n"


def test_conversion(run, world, monkeypatch):
  monkeypatch.chdir(world)
  assert cli.run(["convert", "--input=runs/ict", "--to=hf", "--output=models/bert-tiny"]) == 0
  assert cli.run(["convert", "--input=runs/nq", "--to=hf", "--output=openqa"]) == 0
  (build,) = commands("docs/checkpoints.md", "realm build_corpus")
  to_run, to_hf = commands("docs/checkpoints.md", "realm convert")
  run(build)
  assert run(to_run).splitlines()[-1].startswith("runs/realm: a run of the stage finetune with an index")
  assert run(to_hf).splitlines()[-1] == "ict-hf: RealmEmbedder"


def test_the_best_checkpoint_is_asked_and_its_index_refreshed(run):
  refresh, ask = commands("docs/finetuning.md")
  run(refresh)
  assert run(ask).splitlines()[0] == "Q: ..."


def shell(script, directory, timeout=900):
  """Runs a script with this Python's programs first; its output."""
  programs = directory / "programs"
  programs.mkdir(exist_ok=True)
  for program, command in {"realm": f"{sys.executable} -m realm_jax.cli", "python": sys.executable}.items():
    (programs / program).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    (programs / program).chmod(0o755)
  paths = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
  result = subprocess.run(
    ["bash", "-euo", "pipefail", "-c", script], cwd=directory, env=os.environ | CACHE | paths, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False,
  )  # fmt: skip
  assert result.returncode == 0, result.stdout[-3000:]
  return result.stdout


def test_the_readmes_loop_on_own_documents(tmp_path):
  """The block as it stands, with few steps."""
  readme = text_of(ROOT / "README.md")
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  write_texts(tmp_path)
  blocks = re.findall(r"^```(?:python)?\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
  block = next(b for b in blocks if "realm ask --" in b)
  script, num_replaced = re.subn("--config.num_steps=500", "--config.num_steps=2 --config.batch_size=4", block)
  assert num_replaced == 3 and len(commands("README.md")) == 8
  out = shell(script, tmp_path)
  assert re.search(r"^Q: \.\.\.\nA: .+", out, re.MULTILINE) and '"num_questions": 3' in out
  assert (tmp_path / "report.html").exists()


def test_training_from_a_converted_model(run, world):
  (train,) = commands("docs/checkpoints.md", "realm train")
  if not (world / "models").exists():
    test_conversion(run, world, pytest.MonkeyPatch())
  shutil.rmtree(world / "runs" / "ict")
  small = [*SMALL, "--config.model.retrieval_size=8", "--config.num_steps=2", "--config.checkpoint.every=2"]
  run(train, *small)
  assert (world / "runs" / "ict" / "DONE").exists()


def test_corpora(world, tmp_path):
  *_, export, benchmark = (command.text for command in commands("docs/corpus.md"))
  write_texts(tmp_path)
  (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
  begin = "realm build_corpus --input=articles.jsonl --vocab_size=1000 --output=corpora/mine\n"
  begin += "cp corpora/mine/vocab.txt . && xz --keep articles.jsonl\n"
  shell(f"{begin}{export}\n{benchmark}", tmp_path)
  assert (tmp_path / "tfds").is_dir() and (tmp_path / "corpora" / "wiki").exists()


def test_question_sets(run, world):
  (world / "corpora" / "leads").symlink_to(world / "corpora" / "wiki")
  for command in commands("docs/questions.md"):
    result = json.loads(run(command).splitlines()[-1])
    assert 0 < result["num_questions"] <= result["num_questions_read"]


def test_serving(world):
  serve, curl = (c.text for c in commands("docs/serving.md"))
  script = (
    f"{serve} --port=0 > served.log & trap 'kill %1' EXIT\n"
    "until grep -qs http served.log; do kill -0 %1; sleep 0.2; done\n"
    "address=$(grep -o 'http://[^/]*' served.log)\n"
  )
  out = shell(script + curl.replace("http://127.0.0.1:8080", "$address"), world)
  shown = re.search(r"^\$ curl .*?^(\{.*?^\})", text_of(ROOT / "docs" / "serving.md"), re.MULTILINE | re.DOTALL)[1]
  assert json.loads(out).keys() == json.loads(shown.replace('...",', '",')).keys()
