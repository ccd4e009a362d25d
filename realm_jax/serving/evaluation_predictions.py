"""Reads predictions that this or another system has written, and puts them beside the questions."""

from __future__ import annotations

import json
from collections.abc import Sequence

from realm_jax.data.articles import numbered_lines
from realm_jax.data.questions import Question


def read_predictions(path, questions: Sequence[Question]) -> tuple[list[str | None], dict[str, int]]:
  """The prediction for each question, None where there is none, and what was wrong with the file, counted.

  A line is {"question": text, "prediction": text}, other keys are ignored; where a question comes twice its last
  prediction counts, as in Google's evaluate_predictions.py. `realm evaluate` writes such files, with an empty text for
  no answer.

  Raises:
    ValueError: a line that is none, with its number; or no prediction is for any of the questions.
  """
  prediction_of: dict[str, str] = {}
  counts = dict.fromkeys(("num_missing", "num_repeated", "num_not_asked", "num_empty"), 0)
  for number, line in numbered_lines(path):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
      question, prediction = record["question"].strip(), record["prediction"]
      if not isinstance(prediction, str):
        raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
      raise ValueError(
        f'{path}, line {number}: expected {{"question": text, "prediction": text}}; mend or remove the line'
      ) from None
    counts["num_repeated"] += question in prediction_of
    prediction_of[question] = prediction
  asked = {q.question for q in questions}
  if not asked & prediction_of.keys():
    raise ValueError(
      f"{path} has no prediction for any of the {len(questions)} questions; was it made for another set?"
    )
  counts["num_missing"] = len(asked - prediction_of.keys())
  counts["num_not_asked"] = len(prediction_of.keys() - asked)
  counts["num_empty"] = sum(not prediction_of.get(q, "x").strip() for q in asked)
  found = (prediction_of.get(q.question, "") for q in questions)
  return [prediction if prediction.strip() else None for prediction in found], counts
