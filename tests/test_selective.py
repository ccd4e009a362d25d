"""Scores of a reader that may withhold its answers, of eight questions by hand."""

import numpy as np
import pytest

from realm_jax.serving.selective import of_surest, ranking_auc, selective_scores

EXACT_MATCH = np.array([1, 0, 1, 1, 0, 0, 1, 0.0])
PROBABILITY = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
NULL_PROBABILITY = np.array([0.1, 0.6, 0.2, 0.3, 0.4, 0.9, 0.7, 0.8])
IS_GIVEN = np.array([1, 0, 1, 1, 1, 0, 1, 0], bool)


def test_answers_that_are_withheld():
  found = selective_scores(
    EXACT_MATCH, NULL_PROBABILITY <= 0.5, PROBABILITY, null_probability_B=NULL_PROBABILITY, is_given_B=IS_GIVEN
  )
  assert found == {
    "answered": 50.0,
    "exact_match_answered": 75.0,  # questions 1, 3, 4 of 1, 3, 4, 5
    "exact_match_of_surest": {"25": 50.0, "50": 75.0, "75": 50.0},
    "exact_match_of_least_null": {"25": 100.0, "50": 75.0, "75": 66.67},
    # Of 3 x 5 pairs one is the wrong way round: 0.6 of a question without an answer, 0.7 of one with.
    "null_auc": round(14 / 15, 4),
  }


def test_a_reader_that_always_answers():
  found = selective_scores(EXACT_MATCH, np.ones(8, bool), PROBABILITY, null_probability_B=None, is_given_B=IS_GIVEN)
  assert (found["answered"], found["exact_match_answered"]) == (100.0, 50.0)
  assert found["exact_match_of_least_null"] is None and found["null_auc"] is None


def test_nothing_is_answered():
  found = selective_scores(EXACT_MATCH, np.zeros(8, bool), PROBABILITY, null_probability_B=None, is_given_B=IS_GIVEN)
  assert (found["answered"], found["exact_match_answered"]) == (0.0, None)


def test_of_few_questions_shares_are_rounded_up():
  assert of_surest(np.array([0.0, 1.0, 0.0]), np.array([0.1, 0.3, 0.2])) == {"25": 100.0, "50": 50.0, "75": 33.33}


@pytest.mark.parametrize(
  ("score", "is_positive", "expected"),
  [([2, 1, 1, 0], [1, 1, 0, 0], 0.875), ([1, 1], [1, 0], 0.5), ([0, 1], [1, 0], 0.0), ([1, 2], [1, 1], None)],
)
def test_ranking_auc(score, is_positive, expected):
  assert ranking_auc(np.array(score, float), np.array(is_positive, bool)) == expected
