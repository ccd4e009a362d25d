"""Predictions files: each fault is counted, and the result is Google's."""

import json

import pytest

from realm_jax.data.questions import Question
from realm_jax.serving.evaluation_predictions import read_predictions

QUESTIONS = [Question("who?", ("x",)), Question("when?", ("y",)), Question("where?", ("z",)), Question("why?", ("w",))]


@pytest.fixture
def write(tmp_path):
  def write_lines(*lines):
    path = tmp_path / "predictions.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text(text + "\n", encoding="utf-8")
    return path

  return write_lines


def test_faults_are_counted(write):
  path = write(
    {"question": " when? ", "prediction": "early", "answer": ["ignored"]},
    "",
    {"question": "who?", "prediction": "first"},
    {"question": "who?", "prediction": "second"},
    {"question": "who?", "prediction": "thïrd"},
    {"question": "what?", "prediction": ""},
    {"question": "where?", "prediction": " "},
  )
  assert read_predictions(path, QUESTIONS) == (
    ["thïrd", "early", None, None],
    {"num_missing": 1, "num_repeated": 2, "num_not_asked": 1, "num_empty": 1},
  )


@pytest.mark.parametrize(
  "line",
  ["{", "[]", '"who?"', '{"question": "who?"}', '{"question": 1, "prediction": "x"}',
   '{"question": "who?", "prediction": null}'],
)  # fmt: skip
def test_a_line_that_is_none_is_named(write, line):
  path = write({"question": "who?", "prediction": "x"}, line)
  with pytest.raises(ValueError, match=r'predictions.jsonl, line 2: expected \{"question": text, "prediction": text\}'):
    read_predictions(path, QUESTIONS)


def test_predictions_for_another_set_are_refused(write):
  path = write({"question": "what?", "prediction": "x"})
  with pytest.raises(ValueError, match="no prediction for any of the 4 questions"):
    read_predictions(path, QUESTIONS)
