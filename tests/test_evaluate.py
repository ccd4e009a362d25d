"""The verb evaluate: which questions it reads, and what it calls the result."""

import json

import pytest

from realm_jax import cli
from realm_jax.evaluate import result_name


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
  assert json.loads(out) == {
    "num_questions": 1, "num_questions_read": 1, "recall@1": 100.0, "recall@5": 100.0, "recall@20": 100.0
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
