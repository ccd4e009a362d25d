"""Scores of a run on questions: recall@k of the retriever, exact match and F1 of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from realm_jax.data.answers import first_match, has_answer, matchable, regex_scores, string_scores
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import Question
from realm_jax.serving.open_qa import Answer

RECALL_AT = (1, 5, 20)


class Retrieves(Protocol):
  """A dense retriever or BM25."""

  def retrieve(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]: ...


def evaluate_retrieval(
    retriever: Retrieves, store: PassageStore, questions: Sequence[Question], *, regex: bool = False,
    recall_at: Sequence[int] = RECALL_AT,
) -> dict[str, Any]:  # fmt: skip
  """Share of the questions with an answer in one of the k best passages, in percent: {"recall@k": ...}.

  An answer counts as whole words without case and accents, or as a regular expression.
  """
  k = min(max(recall_at), len(store))
  _, passage_id_BK = retriever.retrieve([q.question for q in questions], k)
  bodies = {i: store.body(i) for i in np.unique(passage_id_BK).tolist()}
  first_hit = np.full(len(questions), k + 1)
  for b, question in enumerate(questions):
    for rank, i in enumerate(passage_id_BK[b].tolist(), 1):
      if has_answer(bodies[i], question.answers, regex=regex):
        first_hit[b] = rank
        break
  return {f"recall@{n}": round(100 * float((first_hit <= n).mean()), 2) for n in recall_at}


def evaluate_answers(
  answers: Sequence[Answer], questions: Sequence[Question], *, regex: bool = False
) -> dict[str, float]:
  """Exact match (by regular expression if `regex`) and F1 with the official normalisation, in percent."""
  scores = regex_scores if regex else string_scores
  return scores([q.answers for q in questions], [a.text for a in answers])


def answerable(store: PassageStore, questions: Sequence[Question], *, regex: bool = False) -> list[Question]:
  """The questions with an answer somewhere in the corpus; reads all of it."""
  bodies = [store.body(i) for i in range(len(store))]
  if regex:
    # One search through all passages instead of N; what it finds across the end of one is searched for again.
    text = "\n".join(bodies)
    found = [(q, first_match(text, q.answers)) for q in questions]
    return [
      q
      for q, match in found
      if match and ("\n" not in match or any(has_answer(body, q.answers, regex=True) for body in bodies))
    ]
  text = "\n".join(map(matchable, bodies))
  return [q for q in questions if any(words != "  " and words in text for words in map(matchable, q.answers))]
