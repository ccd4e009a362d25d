"""The verb evaluate: which questions it reads, and what it calls the result."""

import json
import pathlib
import types

import numpy as np
import pytest

from realm_jax import cli
from realm_jax.data.question_files import read_records
from realm_jax.evaluate import result_name
from realm_jax.index.run_dir import RunDir
from realm_jax.serving.evaluation import KINDS
from realm_jax.serving.open_qa import Answer, OpenQA


@pytest.mark.parametrize(
  ("questions", "name"),
  [
    ("data/nq.dev.jsonl", "nq.dev"),
    ("data/nq.jsonl.gz:dev", "nq.dev"),
    ("nq-test.qa.csv", "nq-test.qa"),
    ("x.json.xz:all", "x.all"),
    ("nq_open:test", "nq_open.test"),
    ("nq_open", "nq_open"),
  ],
)
def test_result_name(questions, name):
  assert result_name(questions) == name


@pytest.fixture
def evaluate(sample_store, capsys):
  def run(*arguments):
    capsys.readouterr()
    status = cli.run(["evaluate", "--bm25", f"--corpus={sample_store.path}", *arguments])
    return status, *capsys.readouterr()

  return run


def test_skipped_questions_are_reported(evaluate, sample_store, tmp_path):
  path = tmp_path / "mine.tsv"
  word = sample_store.body(0).split()[0]
  path.write_text(f"{sample_store.body(0)}\t['{word}']\nwho?\t[]\n", encoding="utf-8")
  status, out, err = evaluate(f"--questions={path}")
  assert status == 0
  recall = {f"{rule}recall@{k}": 100.0 for rule in ("", "token_", "substring_") for k in (1, 5, 20)}
  assert json.loads(out) == recall | {
    "num_questions": 1, "num_questions_read": 1, "skipped": "1 with no answer (line 2)", "num_answerable": 1,
    "outcomes": dict.fromkeys(KINDS, 0) | {"not read": 1}, "interval_95": {name: [100.0, 100.0] for name in recall},
  }  # fmt: skip
  assert err == f"{path}: skipped 1 with no answer (line 2)\n"
  status, out, err = evaluate(f"--questions={path}", "--strict")
  assert (status, out) == (1, "")
  assert err.startswith(f"realm evaluate: {path}, line 2: a record with no answer; mend it, or leave out --strict")


@pytest.mark.parametrize(("name", "recall"), [("curatedtrec.tsv", 100.0), ("mine.tsv", 0.0)])
def test_curated_trec_is_matched_by_pattern_without_a_flag(evaluate, sample_store, tmp_path, name, recall):
  text = sample_store.body(0)
  (tmp_path / name).write_text(f"{text}\t(?:[A-Z])\\w* \\w+\n", encoding="utf-8")
  status, out, _ = evaluate(f"--questions={tmp_path / name}")
  assert (status, json.loads(out)["recall@1"]) == (0, recall)


@pytest.fixture
def files(sample_store, tmp_path):
  """Three questions, the last of them nowhere in the corpus, and two predictions files."""
  word = sample_store.body(0).split()[0]
  questions = {"who?": [word], "when?": ["the year 1867", "1867"], "where?": ["xyzzy " * 40]}
  first = {"who?": f"The {word}.", "when?": "in the year 1867", "why?": "so"}
  second = {"who?": "nobody", "when?": "1867", "where?": ""}
  for name, records, key in [("q", questions, "answer"), ("a", first, "prediction"), ("b", second, "prediction")]:
    lines = [json.dumps({"question": question, key: value}) + "\n" for question, value in records.items()]
    (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
  return tmp_path


def test_predictions_are_scored_and_compared_without_a_model(files, capsys):
  flags = [f"--{flag}={files / name}" for flag, name in {"questions": "q.jsonl", "predictions": "a.jsonl"}.items()]
  assert cli.run(["evaluate", *flags, f"--compare={files / 'b.jsonl'}"]) == 0
  result = json.loads(capsys.readouterr().out)
  # "in year 1867" against "year 1867": 2 of 3 and 2 words in common; the other is at 1/3 and 1.
  assert (result["exact_match"], result["f1"]) == (33.33, 60.0)
  assert result["interval_95"]["exact_match"] == [0.0, 100.0]
  faults = {"num_missing": 1, "num_repeated": 0, "num_not_asked": 1, "num_empty": 0}
  assert {name: result[name] for name in faults} == faults
  compared = result["compared"]
  assert (compared["num_missing"], compared["num_empty"]) == (0, 1)
  # Question by question 1 - 0, 0 - 1, 0 - 0; f1 1 - 0, 0.8 - 1, 0 - 0.
  assert (compared["difference"]["exact_match"], compared["difference"]["f1"]) == (0.0, 26.67)
  low, high = compared["difference"]["interval_95"]["exact_match"]
  assert low == -high < 0
  assert "num_answerable" not in result


def test_a_corpus_without_the_answers_is_reported(files, sample_store, capsys):
  flags = [f"--{flag}={files / name}" for flag, name in {"questions": "q.jsonl", "predictions": "a.jsonl"}.items()]
  assert cli.run(["evaluate", *flags, f"--corpus={sample_store.path}"]) == 0
  assert json.loads(capsys.readouterr().out)["num_answerable"] == sum(
    any(a in sample_store.body(i) for i in range(len(sample_store)) for a in answers)
    for answers in ([sample_store.body(0).split()[0]], ["1867"], ["xyzzy"])
  )


class Reader:
  """A run's retriever and reader: finds the first passages, and marks the first word of the first."""

  def __init__(self, store, checkpoint, num_passages=None):
    self.store, self.step = store, int({None: 30, "best": 20}.get(checkpoint, checkpoint))
    self.config = types.SimpleNamespace(num_passages=num_passages or 2)
    self.snapshot = types.SimpleNamespace(params_step=7)

  def retrieve(self, questions, k):
    return np.tile(-np.arange(float(k)), (len(questions), 1)), np.tile(np.arange(k), (len(questions), 1))

  def warn_of_cut_passages(self):
    pass

  def check_no_answer(self, no_answer_above):
    assert no_answer_above in (None, 0.25)

  def closed_book_answers(self, questions):
    return (self.store.body(0).split()[0] if q == "who?" else "nothing" for q in questions)

  def read(self, questions, score_BK, passage_id_BK):
    bodies = [self.store.body(i) for i in range(2)]
    words = [body.split()[0] for body in bodies]
    answers = [
      Answer(words[i], 0.6 - i / 2, self.store.id(i), self.store.title(i), bodies[i], 0, len(words[i]), 1.0, 1.0, 0.5)
      for i in range(2)
    ]
    return [answers for _ in questions]


class OtherRetriever(Reader):
  """Finds the last passages first, and can't read."""

  def retrieve(self, questions, k):
    rows = np.arange(len(self.store))[::-1][:k]
    return np.ones((len(questions), k)), np.tile(rows, (len(questions), 1))

  read = None


RUNS = {"run": Reader, "other": OtherRetriever}


@pytest.fixture
def run(files, sample_store, monkeypatch):
  def load(workdir, checkpoint, **options):
    return RUNS[pathlib.Path(workdir).name](sample_store, checkpoint, **options)

  monkeypatch.setattr(OpenQA, "load", load)
  run_dir = RunDir(files / "run")
  run_dir.write_config({"stage": "finetune", "corpus": str(sample_store.path), "model": {"max_span_width": 10}})
  run_dir.metrics.write_text('{"step": 1, "loss": 2.0}\n')
  return run_dir


def test_a_report_that_can_not_be_written_is_refused_before_anything_is_read(run, files, capsys, monkeypatch):
  monkeypatch.setattr(Reader, "read", None)
  (files / "file").write_text("")
  (files / "locked").mkdir()
  monkeypatch.setattr("os.access", lambda path, mode: pathlib.Path(path).name != "locked")
  for report, message in (
    ("", f"--report={files} is a directory; give the page a name in it, --report={files}/report.html"),
    ("/new/", f"--report={files}/new/ is a directory; give the page a name in it, --report={files}/new/report.html"),
    ("/file/r.html", f"--report={files}/file/r.html: {files}/file is no directory; give another path"),
    (
      "/locked/new/r.html",
      f"--report={files}/locked/new/r.html: {files}/locked can't be written to; give another path",
    ),
  ):
    command = ["evaluate", f"--workdir={run.path}", f"--questions={files / 'q.jsonl'}", f"--report={files}{report}"]
    assert cli.run(command) == 1
    assert capsys.readouterr().err.splitlines()[0] == f"realm evaluate: {message}"


def test_further_answers_in_the_file_of_predictions(run, files):
  command = ["evaluate", f"--workdir={run.path}", f"--questions={files / 'q.jsonl'}"]
  for flag, numbers in (("--num_answers=1", [0, 0, 0]), ("--num_answers=9", [1, 1, 1])):
    assert cli.run([*command, flag]) == 0
    lines = [json.loads(line) for line in (run.evaluation / "q.predictions.jsonl").read_text().splitlines()]
    assert [len(line.get("further_answers", [])) for line in lines] == numbers
  assert lines[0]["further_answers"][0]["probability"] == pytest.approx(0.1) and lines[0]["probability"] == 0.6


def test_more_passages_are_read_for_the_asking(run, files, capsys):
  command = ["evaluate", f"--workdir={run.path}", f"--questions={files / 'q.jsonl'}", "--num_passages=30"]
  assert cli.run(command) == 0
  result = json.loads(capsys.readouterr().out)
  assert (result["num_passages"], result["reader_oracle"]) == (30, result["recall@20"])
  assert cli.run([*command, "--retrieval_only"]) == 1
  assert "--num_passages are for a reader" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--bm25"]])
def test_a_fine_tuned_run_leaves_its_files(run, files, sample_store, capsys, flags):
  report = files / "new" / "report.html"
  command = ["evaluate", f"--workdir={run.path}", f"--questions={files / 'q.jsonl'}", f"--report={report}", *flags]
  assert cli.run([*command, "--recall_at=1,30"]) == 0
  result = json.loads(capsys.readouterr().out)
  name = "bm25.q" if flags else "q"
  suffixes = ("dpr.json", "json", "predictions.jsonl", "qrels", "trec")
  assert run.files.names(run.evaluation) == [f"{name}.{suffix}" for suffix in suffixes]
  assert json.loads((run.evaluation / f"{name}.json").read_text()) == result
  assert (result["exact_match"], result["params_step"], result["num_longer_than_any_span"]) == (33.33, 7, 1)
  assert result["num_passages"] == 2
  assert sum(result["outcomes"].values()) == 3 and result["outcomes"]["not in the corpus"] >= 1
  assert "reader_oracle" in result and "recall@30" in result and "recall@5" not in result
  questions = [r.question for r in read_records(run.evaluation / f"{name}.dpr.json")]
  assert questions == ["who?", "when?", "where?"]
  assert len((run.evaluation / f"{name}.trec").read_text().splitlines()) == 3 * 30
  page = report.read_text(encoding="utf-8")
  assert page.count("<mark>") == 3 * 2 and 'aria-label="loss"' in page
  assert cli.run(["evaluate", f"--table={run.path}"]) == 0
  assert f"run {name}" in capsys.readouterr().out


def test_no_answer_and_closed_book(run, files, capsys):
  command = ["evaluate", f"--workdir={run.path}", f"--questions={files / 'q.jsonl'}"]
  assert cli.run([*command, "--no_answer_above=0.25", "--closed_book"]) == 0
  result = json.loads(capsys.readouterr().out)
  assert (result["exact_match"], result["closed_book_exact_match"]) == (0.0, 33.33)
  assert result["selective"]["answered"] == 0.0 and result["selective"]["exact_match_answered"] is None
  assert "closed_book_f1" in result["interval_95"]
  lines = {
    name: [json.loads(line) for line in (run.evaluation / f"q.{name}.jsonl").read_text().splitlines()]
    for name in ("predictions", "closed_book")
  }
  assert [line["prediction"] for line in lines["predictions"]] == [""] * 3
  assert [line["prediction"] for line in lines["closed_book"]][1:] == ["nothing"] * 2
  assert cli.run([*command, "--retrieval_only", "--no_answer_above=0.25"]) == 1
  assert "--no_answer_above is for answers" in capsys.readouterr().err


def test_the_best_of_every_checkpoint_is_evaluated(run, files, capsys, monkeypatch):
  """Exact match of checkpoints 10 to 40 is 0, 1/3, 1/3 and 0 of three questions: the first best one is taken."""
  run.checkpoints.mkdir()
  for step in (10, 20, 30, 40):
    (run.checkpoints / str(step)).mkdir()

  def answer(self, questions):
    right = self.store.body(0).split()[0] if self.step in (20, 30) else "nothing"
    return [types.SimpleNamespace(text=right) for _ in questions]

  monkeypatch.setattr(Reader, "answer", answer, raising=False)
  command = ["evaluate", f"--workdir={run.path}", f"--questions={files / 'q.jsonl'}", "--name=dev"]
  assert cli.run([*command, "--every_checkpoint"]) == 0
  printed = capsys.readouterr()
  exact_match = {"10": 0.0, "20": 33.33, "30": 33.33, "40": 0.0}
  result = json.loads(printed.out)
  assert (result["checkpoint"], result["exact_match_of_step"]) == (20, exact_match)
  assert "checkpoint 30: exact match 33.33\ncheckpoint 40: exact match 0.0\n" in printed.err
  assert json.loads(run.best.read_text()) == {
    "step": 20, "exact_match_of_step": exact_match, "questions": str(files / "q.jsonl"), "num_questions": 3,
    "num_passages": 2,
  }  # fmt: skip
  assert cli.run([*command, "--checkpoint=40"]) == 0
  assert json.loads(capsys.readouterr().out)["checkpoint"] == 40
  assert cli.run([*command, "--every_checkpoint", "--retrieval_only"]) == 1
  assert "--every_checkpoint compares answers: give a fine-tuned run" in capsys.readouterr().err


def test_another_run_s_passages_are_read(run, files, sample_store, capsys, monkeypatch):
  seen, read_as_usual = [], Reader.read

  def read(self, questions, score_BK, passage_id_BK):
    seen.append((score_BK, passage_id_BK.tolist()))
    return read_as_usual(self, questions, score_BK, passage_id_BK)

  monkeypatch.setattr(Reader, "read", read)
  command = ["evaluate", f"--workdir={run.path}", f"--questions={files / 'q.jsonl'}", "--retriever=runs/other"]
  assert cli.run(command) == 0, capsys.readouterr().err
  last = len(sample_store) - 1
  assert seen == [(None, [[last, last - 1]] * 3)]  # another's scores decide nothing
  assert "other.q.json" in run.files.names(run.evaluation)
  assert cli.run([*command[:-1], f"--retriever={run.path}"]) == 0  # the run's own passages, read as another's
  assert seen[1:] == [(None, [[0, 1]] * 3)]
  other_store = types.SimpleNamespace(content_digest="?", path="elsewhere")
  monkeypatch.setitem(RUNS, "other", lambda store, checkpoint: OtherRetriever(other_store, checkpoint))
  assert cli.run(command) == 1
  assert "runs/other has the corpus elsewhere, --workdir" in capsys.readouterr().err


def test_retrieval_only_reads_nothing(run, files, capsys):
  command = ["evaluate", f"--workdir={run.path}", f"--questions={files / 'q.jsonl'}", "--retrieval_only"]
  assert cli.run(command) == 0
  assert "exact_match" not in json.loads(capsys.readouterr().out)
  assert cli.run([*command, f"--compare={files / 'a.jsonl'}"]) == 1
  assert "--compare needs answers" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "give --questions with --workdir"),
    (["--questions=q.jsonl"], "give --questions with --workdir"),
    (["--questions=q.jsonl", "--workdir=w", "--corpus=c"], "a run is evaluated over its own corpus"),
    (["--questions=q.jsonl", "--workdir=w", "--bm25", "--every_checkpoint"], "--every_checkpoint takes them all"),
    (["--questions=q.jsonl", "--workdir=w", "--bm25", "--retriever=o"], "--retriever finds passages for the reader"),
    (["--questions=q.jsonl", "--bm25", "--corpus=c", "--retriever=o"], "--retriever finds passages for the reader"),
    (["--questions=q.jsonl", "--predictions=p", "--no_answer_above=0.5"], "--predictions are scored as they are"),
    (["--questions=q.jsonl", "--predictions=p", "--closed_book"], "--closed_book needs a reader"),
    (["--questions=q.jsonl", "--bm25", "--corpus=c", "--closed_book"], "--closed_book needs a reader"),
    (["--questions=q.jsonl", "--predictions=p", "--report=r"], "--predictions are scored without passages"),
    (["--questions=q.jsonl", "--predictions=p", "--answerable"], "--answerable needs the corpus"),
    (["--questions=q.jsonl", "--predictions=p", "--recall_at=1,x"], "--recall_at=1,x: give numbers"),
    (["--questions=q.jsonl", "--predictions=p", "--recall_at=0"], "--recall_at=0: give numbers"),
  ],
)
def test_flags_that_do_not_go_together(flags, message, capsys):
  assert cli.run(["evaluate", *flags]) == 1
  assert message in capsys.readouterr().err
