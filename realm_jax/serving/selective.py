"""How well a reader knows when not to answer."""

from __future__ import annotations

from typing import Any

import numpy as np

SHARES = (25, 50, 75)  # percent of the questions


def selective_scores(
  exact_match_B: np.ndarray,
  is_answered_B: np.ndarray,
  probability_B: np.ndarray,
  *,
  null_probability_B: np.ndarray | None,
  is_given_B: np.ndarray,
) -> dict[str, Any]:
  """Exact match over the questions that are answered, in percent, and over fewer and fewer of them.

  Args:
    exact_match_B: of the best answers, those that are withheld too.
    probability_B: of these answers.
    null_probability_B: that there is none, where the null passage is read.
    is_given_B: whether a passage that was read holds an answer.

  Returns:
    answered: share of the questions; exact_match_answered: over these, None if there are none.
    exact_match_of_surest: {"25": over the quarter of all questions with the most probable answers, ...}.
    exact_match_of_least_null: the same by the null passage's probability, the lowest first.
    null_auc: how often, of a question that no passage read has an answer to and one that one has, the first has the
      higher null_probability, 0.5 being chance. The last two are None where the null passage is not read.
  """
  result: dict[str, Any] = {
    "answered": _percent(is_answered_B),
    "exact_match_answered": _percent(exact_match_B[is_answered_B]),
    "exact_match_of_surest": of_surest(exact_match_B, probability_B),
    "exact_match_of_least_null": None,
    "null_auc": None,
  }
  if null_probability_B is not None:
    result["exact_match_of_least_null"] = of_surest(exact_match_B, -null_probability_B)
    result["null_auc"] = ranking_auc(null_probability_B, ~is_given_B)
  return result


def of_surest(exact_match_B: np.ndarray, confidence_B: np.ndarray) -> dict[str, float | None]:
  """Exact match over the surest 25, 50 and 75 % of the questions (rounded up); of ties the first ones count."""
  order_B = np.argsort(-confidence_B, kind="stable")
  return {str(share): _percent(exact_match_B[order_B[: -(-share * len(order_B) // 100)]]) for share in SHARES}


def ranking_auc(score_B: np.ndarray, is_positive_B: np.ndarray) -> float | None:
  """How often a positive's score is above a negative's, ties counting half; None where a kind is missing."""
  positive, negative = score_B[is_positive_B], np.sort(score_B[~is_positive_B])
  if len(positive) == 0 or len(negative) == 0:
    return None
  num_below = (np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")) / 2
  return round(float(num_below.mean()) / len(negative), 4)


def _percent(value_B: np.ndarray) -> float | None:
  return round(100 * float(value_B.mean()), 2) if len(value_B) else None
