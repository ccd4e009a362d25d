"""Scores of answers and of the passages behind them, one number a question; docs/evaluation.md defines each."""

from __future__ import annotations

import collections
import functools
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from realm_jax.data.answers import (
  dpr_words,
  exact_match,
  f1_score,
  first_match,
  has_answer,
  has_words,
  matchable,
  regex_match,
)
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import Question
from realm_jax.data.vocabulary import Vocabulary

RECALL_AT = (1, 5, 20)
KINDS = ("right", "alias", "not read", "not retrieved", "not in the corpus")


class Retrieves(Protocol):
  """A dense retriever or BM25."""

  def retrieve(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best passages of each question: scores and passage rows, [B, k], best first."""
    ...


def find_answers_in_passages(
  store: PassageStore, questions: Sequence[Question], passage_id_BK: np.ndarray, *, regex: bool = False
) -> dict[str, np.ndarray]:
  """Whether a passage holds an answer, bool [B, K], by each rule.

  "" is the project's own rule (whole words without case and accents), "token_" DPR's, "substring_" Google's, which has
  no regular expressions.
  """
  nfd = functools.partial(unicodedata.normalize, "NFD")
  rules: dict[str, Callable[[str], str]]
  rules = {"": str, "token_": nfd} if regex else {"": matchable, "token_": dpr_words, "substring_": str}
  contains = functools.partial(has_answer, regex=True) if regex else has_words
  found = {}
  for rule, prepare in rules.items():
    body = functools.lru_cache(1 << 16)(lambda i, prepare=prepare: prepare(store.body(i)))
    found[rule] = np.array(
      [
        [contains(body(i), answers) for i in row]
        for row, answers in zip(passage_id_BK.tolist(), ([prepare(a) for a in q.answers] for q in questions))
      ]
    )
  return found


def recall_scores(has_answer_BK: Mapping[str, np.ndarray], recall_at: Sequence[int]) -> dict[str, np.ndarray]:
  """1 where one of the k best passages holds an answer: {"recall@k", "token_recall@k", ...}, each [B]."""
  return {
    f"{rule}recall@{k}": has[:, :k].any(1).astype(float) for rule, has in has_answer_BK.items() for k in recall_at
  }


def answer_scores(
  predictions: Sequence[str | None], questions: Sequence[Question], *, regex: bool = False
) -> dict[str, np.ndarray]:
  """Exact match (by regular expression if `regex`) and F1 with the official normalisation, each [B].

  No answer, None, has 0, also where an answer normalises to nothing or a pattern matches nothing.
  """
  rules = {"exact_match": regex_match} if regex else {"exact_match": exact_match, "f1": f1_score}
  pairs = [*zip(predictions, questions, strict=True)]
  return {  # F1 against a pattern means nothing
    name: np.array([0.0 if p is None else float(rule(p, q.answers)) for p, q in pairs]) for name, rule in rules.items()
  }


def summarize(scores: Mapping[str, np.ndarray], *, num_resamples: int = 2000) -> dict:
  """Means in percent, and their 95 % intervals: the middle of the means of resampled questions (percentile bootstrap).

  All scores share the resamples, so the interval of a difference of two scores is a paired one.
  """
  score_BX = 100 * np.stack([*scores.values()], 1)
  rng, n = np.random.default_rng(0), len(score_BX)
  resampled = np.stack([score_BX[rng.integers(n, size=n)].mean(0) for _ in range(num_resamples)])
  low, high = np.percentile(resampled, [2.5, 97.5], axis=0).round(2).tolist()
  means = dict(zip(scores, score_BX.mean(0).round(2).tolist()))
  return means | {"interval_95": {name: [*pair] for name, *pair in zip(scores, low, high)}}


def is_alias(prediction: str, answers: Sequence[str], *, regex: bool = False) -> bool:
  """Whether a prediction that isn't right contains an answer, or is part of one, as whole words."""
  if regex:
    return has_answer(prediction, answers, regex=True)
  words, answer_words = matchable(prediction), [matchable(a) for a in answers]
  return has_words(words, answer_words) or any(has_words(answer, [words]) for answer in answer_words)


def kinds_of_outcome(
  is_right_B: np.ndarray, is_alias_B: np.ndarray, is_given_B: np.ndarray, is_answerable_B: np.ndarray
) -> list[str]:
  """Each question's kind, one of KINDS: the first whose condition holds.

  Args:
    is_given_B: a passage that the reader was given holds an answer.
    is_answerable_B: a passage of the corpus does.
  """
  conditions = [is_right_B, is_alias_B, is_given_B, is_answerable_B, np.ones_like(is_right_B)]
  return [KINDS[i] for i in np.argmax(conditions, 0)]


def answerable(store: PassageStore, questions: Sequence[Question], *, regex: bool = False) -> np.ndarray:
  """bool [B]: whether an answer is somewhere in the corpus; reads all of it, once."""
  if regex:
    # One search through all passages instead of N; what it finds across the end of one is searched for again.
    bodies = [store.body(i) for i in range(len(store))]
    text = "\n".join(bodies)
    found = [(q, first_match(text, q.answers)) for q in questions]
    return np.array(
      [
        match != "" and ("\n" not in match or any(has_answer(body, q.answers, regex=True) for body in bodies))
        for q, match in found
      ],
      bool,
    )
  # An answer is looked for only in passages with its longest word: the time hardly depends on the number of questions.
  looked_for: dict[str, set[tuple[int, str]]] = collections.defaultdict(set)
  for b, question in enumerate(questions):
    for answer in map(matchable, question.answers):
      if answer != "  ":
        looked_for[max(answer.split(), key=len)].add((b, answer))
  is_answerable_B = np.zeros(len(questions), bool)
  for i in range(len(store)):
    words = matchable(store.body(i))
    for word in looked_for.keys() & words.split():
      found_here = {pair for pair in looked_for[word] if pair[1] in words}
      is_answerable_B[[b for b, _ in found_here]] = True
      looked_for[word] -= found_here
  return is_answerable_B


def longer_than_any_span(questions: Sequence[Question], vocabulary: Vocabulary, max_span_width: int) -> np.ndarray:
  """bool [B]: whether all answers have more wordpieces than a span may have, so that none can be given."""
  return np.array(
    [all(len(e.token_id) > max_span_width for e in vocabulary.encode(list(q.answers))) for q in questions], bool
  )
