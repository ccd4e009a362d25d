"""The files of an evaluation, by their text."""

import json

import numpy as np
import pytest

from realm_jax.data.question_files import read_records
from realm_jax.data.questions import Question
from realm_jax.serving.evaluation_files import Retrieved, dpr_json, predictions_jsonl, trec_qrels, trec_run
from realm_jax.serving.evaluation_predictions import read_predictions
from realm_jax.serving.open_qa import Answer

QUESTIONS = [Question('"Who"\u2028?', ("x", "ÿ")), Question("when?", ("z",))]
RETRIEVED = Retrieved(
  np.array([[2.5, 1.25], [0.0, -1.0]]), np.array([[1, 0], [0, 2]]), np.array([[0, 1], [0, 0]], bool)
)


class Store:
  """Three passages; an id may hold spaces."""

  def id(self, i):
    return ["a#0", "b\tc d", "é"][i]

  def title(self, i):
    return f"T{i}"

  def body(self, i):
    return f"text {i}"


def test_dpr_json(tmp_path):
  text = dpr_json(Store(), QUESTIONS, RETRIEVED)
  assert json.loads(text)[0] == {
    "question": '"Who"\u2028?',
    "answers": ["x", "ÿ"],
    "ctxs": [
      {"id": "b\tc d", "title": "T1", "text": "text 1", "score": "2.5", "has_answer": False},
      {"id": "a#0", "title": "T0", "text": "text 0", "score": "1.25", "has_answer": True},
    ],
  }
  assert [[c["id"] for c in entry["ctxs"]] for entry in json.loads(text)] == [["b\tc d", "a#0"], ["a#0", "é"]]
  (tmp_path / "x.json").write_text(text, encoding="utf-8")
  assert [(r.question, r.answers, r.fault) for r in read_records(tmp_path / "x.json")] == [
    (q.question, q.answers, "") for q in QUESTIONS
  ]


def test_trec():
  run, qrels = trec_run(Store(), RETRIEVED, "my run"), trec_qrels(Store(), RETRIEVED)
  assert run == (
    "1 Q0 b%09c%20d 1 2.5 my%20run\n1 Q0 a#0 2 1.25 my%20run\n2 Q0 a#0 1 0.0 my%20run\n2 Q0 é 2 -1.0 my%20run\n"
  )
  assert qrels == "1 0 b%09c%20d 0\n1 0 a#0 1\n2 0 a#0 0\n2 0 é 0\n"
  # What trec_eval does with them: success at k is recall@k by DPR's rule.
  relevant = {tuple(line.split()[0:3:2]) for line in qrels.splitlines() if line.endswith(" 1")}
  ranks = [int(line.split()[3]) for line in run.splitlines() if tuple(line.split()[0:3:2]) in relevant]
  assert ranks == [2]


def test_predictions_are_read_again(tmp_path):
  answers = [[Answer(t, 0.5, "a#0", "T", f"in {t}", 3, 3 + len(t), 1.5, 2.5)] for t in ("x\u2028y", "z")]
  text = predictions_jsonl(QUESTIONS, ["x\u2028y", None], answers)
  assert json.loads(text.split("\n")[1]) == {
    "question": "when?", "prediction": "", "answer": ["z"], "text": "z", "probability": 0.5, "passage_id": "a#0",
    "title": "T", "passage": "in z", "start": 3, "end": 4, "retrieval_score": 1.5, "reader_score": 2.5,
    "null_probability": None,
  }  # fmt: skip
  (tmp_path / "p.jsonl").write_text(text, encoding="utf-8")
  predictions, faults = read_predictions(tmp_path / "p.jsonl", QUESTIONS)
  assert predictions == ["x\u2028y", None] and faults.pop("num_empty") == 1 and set(faults.values()) == {0}
  with pytest.raises(ValueError, match="zip"):
    predictions_jsonl(QUESTIONS, ["x", "z"], answers[:1])
  (tmp_path / "p.jsonl").write_text(predictions_jsonl(QUESTIONS, ["x", "z"], [answers[0] * 3, answers[1]]))
  first, second = map(json.loads, (tmp_path / "p.jsonl").read_text().strip().split("\n"))
  assert first["further_answers"] == [answers[0][0]._asdict()] * 2 and "further_answers" not in second
  assert read_predictions(tmp_path / "p.jsonl", QUESTIONS)[0] == ["x", "z"]  # the first one counts
  assert json.loads(predictions_jsonl(QUESTIONS, ["a", "b"]).split("\n")[1]) == {
    "question": "when?", "prediction": "b", "answer": ["z"]
  }  # fmt: skip
