"""What an evaluation found, in the forms that other people's tools read: DPR's json, TREC's run and qrels."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import Question

if TYPE_CHECKING:
  from realm_jax.serving.open_qa import Answer


class Retrieved(NamedTuple):
  """The passages that were found for the questions, best first, each [B, K]."""

  score_BK: np.ndarray
  passage_id_BK: np.ndarray
  has_answer_BK: np.ndarray


def predictions_jsonl(
  questions: Sequence[Question], predictions: Sequence[str | None], answers: Sequence[Sequence[Answer]] | None = None
) -> str:
  """A line each question: what `read_predictions` reads, the right answers, and the evidence, if there is any.

  No answer is the empty text.

  Args:
    answers: to each question, best first; those after the first become further_answers.
  """
  records = [
    {"question": q.question, "prediction": p or "", "answer": list(q.answers)}
    for q, p in zip(questions, predictions, strict=True)
  ]
  if answers:
    records = [record | best.record(further) for record, (best, *further) in zip(records, answers, strict=True)]
  return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def dpr_json(store: PassageStore, questions: Sequence[Question], retrieved: Retrieved) -> str:
  """DPR's list of questions with their passages (`ctxs`), a question a line; scores are strings, as DPR writes them."""
  entries = [
    {
      "question": q.question,
      "answers": list(q.answers),
      "ctxs": [
        {
          "id": store.id(i),
          "title": store.title(i),
          "text": store.body(i),
          "score": str(score),
          "has_answer": has_answer,
        }
        for score, i, has_answer in zip(*(x.tolist() for x in row))
      ],
    }
    for q, row in zip(questions, zip(*retrieved), strict=True)
  ]
  return "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]\n"


def trec_run(store: PassageStore, retrieved: Retrieved, tag: str) -> str:
  """`question Q0 passage rank score tag` a line; questions are numbered from 1, in the order of the question set."""
  tag = _without_space(tag)
  return "".join(
    f"{number} Q0 {_without_space(store.id(i))} {rank} {score} {tag}\n"
    for number, (scores, row) in enumerate(zip(retrieved.score_BK.tolist(), retrieved.passage_id_BK.tolist()), 1)
    for rank, (score, i) in enumerate(zip(scores, row), 1)
  )


def trec_qrels(store: PassageStore, retrieved: Retrieved) -> str:
  """`question 0 passage 1` where the passage holds an answer, else 0: of the retrieved ones, no others were judged."""
  return "".join(
    f"{number} 0 {_without_space(store.id(i))} {int(has_answer)}\n"
    for number, row in enumerate(zip(retrieved.passage_id_BK.tolist(), retrieved.has_answer_BK.tolist()), 1)
    for i, has_answer in zip(*row)
  )


def _without_space(text: str) -> str:
  """TREC's columns end at a space; one inside becomes %20."""
  return re.sub(r"\s", lambda space: urllib.parse.quote(space[0]), text)
