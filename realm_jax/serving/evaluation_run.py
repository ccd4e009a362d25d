"""Runs a retriever, and a reader where there is one, over questions, and tells what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tqdm

from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import Question
from realm_jax.serving.evaluation import (
  Retrieves,
  answer_scores,
  answerable,
  find_answers_in_passages,
  is_alias,
  kinds_of_outcome,
  recall_scores,
)
from realm_jax.serving.evaluation_files import Retrieved
from realm_jax.serving.evaluation_report import Case, ShownPassage, shown_answer
from realm_jax.serving.selective import selective_scores

if TYPE_CHECKING:
  from realm_jax.serving.open_qa import Answer, OpenQA

NUM_SHOWN = 5  # the best passages of a question, and as many others that hold an answer


class Evaluated(NamedTuple):
  """What was found for each of B questions."""

  scores: dict[str, np.ndarray]  # each [B]
  retrieved: Retrieved  # K passages each; they hold an answer by DPR's rule
  has_answer_BK: np.ndarray  # by the project's own rule
  is_answerable_B: np.ndarray
  kinds: list[str]
  answers: list[list[Answer]] | None  # of the passages that were read those to show, best first; None without a reader
  num_read: int  # passages for each question; 0 without a reader
  predictions: list[str | None] | None  # each None where there is no answer
  selective: dict[str, Any]  # see `selective_scores`; empty without a reader
  closed_book: list[str] | None = None  # what was answered without passages, if that was asked for


def evaluate_run(
  retriever: Retrieves,
  reader: OpenQA | None,
  store: PassageStore,
  questions: Sequence[Question],
  *,
  recall_at: Sequence[int],
  regex: bool = False,
  no_answer_above: float | None = None,
  num_kept: int = NUM_SHOWN,
) -> Evaluated:
  """Retrieves as many passages as the largest k of recall@k or the reader needs, and lets the reader read its share.

  The reader adds its own retriever's scores to its spans' and no other's, which are on another scale: with another
  retriever's passages the spans' scores decide alone.

  Args:
    no_answer_above: see `Answer.is_withheld`.
    num_kept: so many answers to each question, besides those whose passages hold a right one; see `answers_to_show`.
  """
  texts = [q.question for q in questions]
  num_read = min(reader.config.num_passages, len(store)) if reader else min(max(recall_at), len(store))
  score_BK, passage_id_BK = retriever.retrieve(texts, min(max(*recall_at, num_read), len(store)))
  found = find_answers_in_passages(store, questions, passage_id_BK, regex=regex)
  has_answer_BK = found[""]
  is_given_B = np.any(has_answer_BK[:, :num_read], 1)
  is_answerable_B = np.array(has_answer_BK.any(1))
  unknown_B = ~is_answerable_B
  is_answerable_B[unknown_B] = answerable(store, [q for q, u in zip(questions, unknown_B) if u], regex=regex)
  scores = recall_scores(found, recall_at)
  is_right_B = is_alias_B = np.zeros(len(questions), bool)
  answers = predictions = None
  selective: dict[str, Any] = {}
  if reader:
    chunks = [slice(i, i + 64) for i in range(0, len(texts), 64)]
    answers = []
    for c in tqdm.tqdm(chunks, desc="reading"):
      read_id_BK = passage_id_BK[c, :num_read]
      read = reader.read(texts[c], score_BK[c, :num_read] if retriever is reader else None, read_id_BK)
      for found_K, read_id_K, has_answer_K in zip(read, read_id_BK.tolist(), has_answer_BK[c, :num_read].tolist()):
        holding = {store.id(i) for i, has in zip(read_id_K, has_answer_K) if has}
        answers.append(answers_to_show(found_K, holding, num_best=max(num_kept, NUM_SHOWN)))
    best = [a[0] for a in answers]
    predictions = [None if a.is_withheld(no_answer_above) else a.text for a in best]
    scores |= {"reader_oracle": is_given_B.astype(float)} | answer_scores(predictions, questions, regex=regex)
    is_right_B = scores["exact_match"] == 1
    is_alias_B = np.array(
      [p is not None and is_alias(p, q.answers, regex=regex) for p, q in zip(predictions, questions)]
    )
    exact_match_B = answer_scores([a.text for a in best], questions, regex=regex)["exact_match"]
    is_answered_B = np.array([not a.is_withheld(no_answer_above) for a in best])
    selective = selective_scores(
        exact_match_B, is_answered_B, np.array([a.probability for a in best]),
        null_probability_B=_null_probabilities(best), is_given_B=is_given_B,
    )  # fmt: skip
  kinds = kinds_of_outcome(is_right_B, is_alias_B, is_given_B, is_answerable_B)
  retrieved = Retrieved(score_BK, passage_id_BK, found["token_"])
  return Evaluated(
    scores, retrieved, has_answer_BK, is_answerable_B, kinds, answers, num_read if reader else 0, predictions, selective
  )


def answers_to_show(
  answers: Sequence[Answer], holding: set[str], *, num_best: int = NUM_SHOWN, num_others: int = NUM_SHOWN
) -> list[Answer]:
  """The best answers of a question, and of the others the first whose passages hold a right one, best first.

  Each has its passage's text, so that all of a hundred passages for each of thousands of questions would be gigabytes.

  Args:
    answers: one from each passage that was read, best first.
    holding: ids of the passages that hold an answer.
  """
  others = [a for a in answers[num_best:] if a.passage_id in holding]
  return [*answers[:num_best], *others[:num_others]]


def with_closed_book(
  evaluated: Evaluated, predictions: list[str], questions: Sequence[Question], *, regex: bool
) -> Evaluated:
  """The same with the scores of these answers as closed_book_exact_match and closed_book_f1."""
  scores = answer_scores(predictions, questions, regex=regex)
  added = {f"closed_book_{name}": score_B for name, score_B in scores.items()}
  return evaluated._replace(scores=evaluated.scores | added, closed_book=predictions)


def _null_probabilities(answers: Sequence[Answer]) -> np.ndarray | None:
  values = [a.null_probability for a in answers if a.null_probability is not None]
  return np.array(values) if values else None


def answers_over_null(evaluated: Evaluated) -> list[float] | None:
  """Of each question log p(best answer's span) - log p(the null passage's span), in nats, given the passages read.

  None where the null passage is not read. Without a passage no span can be marked but the null passage's own, so this
  stands where pre-training has the utility of retrieval.
  """
  best = [a[0] for a in evaluated.answers or ()]
  null_probability_B = _null_probabilities(best)
  if null_probability_B is None:
    return None
  with np.errstate(divide="ignore", invalid="ignore"):  # a probability may be 0 in float32
    return (np.log([a.probability for a in best]) - np.log(null_probability_B)).tolist()


def report_cases(
  evaluated: Evaluated, store: PassageStore, questions: Sequence[Question], *, num_shown: int = NUM_SHOWN
) -> list[Case]:
  """All questions with the passages that were read and are to be shown; without a reader, with the `num_shown` best of
  those retrieved.
  """
  cases = []
  for b, question in enumerate(questions):
    score_K, passage_id_K, _ = (x[b].tolist() for x in evaluated.retrieved)
    has_answer_K = evaluated.has_answer_BK[b].tolist()
    if evaluated.answers and evaluated.predictions:
      holding = {store.id(i) for i, has in zip(passage_id_K, has_answer_K) if has}
      shown = answers_to_show(evaluated.answers[b], holding)
      passages = [shown_answer(a, has_answer=a.passage_id in holding) for a in shown]
      prediction = evaluated.predictions[b] or ""
    else:
      found = list(zip(score_K, passage_id_K, has_answer_K))[:num_shown]
      passages = [
        ShownPassage(store.title(i), store.body(i), 0, 0, has, f"retrieval score {score:.2f}")
        for score, i, has in found
      ]
      prediction = None
    num_more = max(0, evaluated.num_read - len(passages))
    cases.append(Case(question.question, question.answers, prediction, evaluated.kinds[b], passages, num_more))
  return cases
