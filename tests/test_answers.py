"""Answers: the official rules, by cases worked out by hand."""

import pytest

from realm_jax.data.answers import (
  exact_match,
  f1_score,
  get_final_text,
  has_answer,
  matchable,
  normalize_answer,
  regex_match,
  regex_scores,
  string_scores,
)


@pytest.mark.parametrize(
  ("text", "normalized"),
  [
    ("The Eiffel Tower!", "eiffel tower"),
    ("  a  cat,\tan owl \n and the dog ", "cat owl and dog"),
    ("U.S.A.", "usa"),
    ("A.", ""),  # punctuation goes first, so an article is left
    ("a.b the", "ab"),
    ("Theodore and Ann", "theodore and ann"),
    ("rock-and-roll", "rockandroll"),
    ("O'Neill's “quote”", "oneills “quote”"),  # other marks than ASCII's stay
    ("the", ""),
    ("", ""),
  ],
)
def test_normalize_answer(text, normalized):
  assert normalize_answer(text) == normalized


def test_normalize_answer_splits_accents_off_and_keeps_them():
  assert normalize_answer("\u00c9mile") == "e\u0301mile"
  assert normalize_answer("E\u0301mile") == "e\u0301mile"
  assert not exact_match("Emile", ["Émile"])
  assert normalize_answer("\u0130") == "i\u0307" == normalize_answer("I\u0307")


def test_normalize_answer_splits_before_it_removes():
  # The accent is no letter of a word, so this "a" is an article; "≠" is an equals sign, struck out.
  assert normalize_answer("\u00e0 propos") == "\u0300 propos"
  assert normalize_answer("x \u2260 y") == "x \u0338 y"


def test_exact_match():
  assert exact_match("the Beatles.", ["Queen", "Beatles"])
  assert not exact_match("Beatles band", ["Beatles"])
  assert not exact_match("Beatles", [])
  assert exact_match("the", [""])


@pytest.mark.parametrize(
  ("prediction", "pattern", "matches"),
  [
    ("1945 or so", r"19\d\d", True),  # at the start, not to the end
    ("in 1945", r"19\d\d", False),
    ("in 1945", r".*19\d\d", True),
    ("PARIS", "paris", True),
    ("first\nParis", "^Paris", False),  # multi-line, but a match still begins at the start
    ("Paris\nsecond", "paris$", True),
    ("\u00c9mile", r"\w+$", True),
    ("the Paris", "Paris", False),  # nothing is normalised
    ("(", "(", False),  # an invalid pattern
  ],
)
def test_regex_match(prediction, pattern, matches):
  assert regex_match(prediction, [pattern]) is matches
  assert regex_match(prediction, ["(", "no such thing", pattern]) is matches


@pytest.mark.parametrize(
  ("prediction", "answers", "score"),
  [
    ("the cat sat", ["cat sat"], 1.0),
    ("cat", ["cat sat"], 2 / 3),
    ("cat cat dog", ["cat dog dog dog"], 4 / 7),  # one cat and one dog in common, of 3 + 4
    ("dog", ["cat", "dog cat mouse"], 0.5),
    ("dog", ["cat"], 0.0),
    ("", ["cat"], 0.0),
    ("the", ["a"], 1.0),  # both normalise to nothing
    ("dog", [], 0.0),
  ],
)
def test_f1_score(prediction, answers, score):
  assert f1_score(prediction, answers) == pytest.approx(score)


def test_scores_of_a_set_are_percentages():
  targets, predictions = [["cat sat", "dog"], ["x"], ["y"]], ["The cat", "X.", "z"]
  assert string_scores(targets, predictions) == {"exact_match": 33.33, "f1": 55.56}  # (2/3 + 1 + 0) / 3
  assert regex_scores([["c.t", "dog"], ["(", "^x"], ["y"]], ["cats", "X", "zy"]) == {"exact_match": 66.67}
  with pytest.raises(ValueError, match="zip"):
    string_scores(targets, predictions[:2])


def test_matchable():
  assert matchable("Skłodowska-Curie, É. 1867!") == " skłodowska curie e 1867 "
  assert matchable("e\u0301") == matchable("É") == " e "
  assert matchable("...") == "  "


@pytest.mark.parametrize(
  ("text", "answer", "found"),
  [
    ("She was born in Paris.", "paris", True),
    ("Parisian life", "Paris", False),  # whole words
    ("comparison", "paris", False),
    ("In 1867, ...", "1867", True),
    ("In 18671 ...", "1867", False),
    ("Irène Joliot-Curie", "irene joliot curie", True),
    ("new\nyork", "New York", True),
    ("New, York", "New York", True),
    ("York New", "New York", False),
    ("The U.S. army", "U.S.", True),
    ("anything", "...", False),  # no word, so it is found nowhere
    ("", "x", False),
  ],
)
def test_has_answer(text, answer, found):
  assert has_answer(text, [answer]) is found
  assert has_answer(text, ["qqq", answer]) is found


def test_has_answer_by_regular_expression():
  assert has_answer("born in 1867", [r"18\d\d"], regex=True)  # anywhere
  assert has_answer("one\nTwo", ["^two$"], regex=True)
  assert not has_answer("born in 1867", ["(", r"19\d\d"], regex=True)
  assert not has_answer("a.b", [r"a\.c"], regex=True)
  assert not has_answer("born in 1867", [r"18\d\d"])


@pytest.mark.parametrize(
  ("prediction", "original", "lowercase", "expected"),
  [
    ("steve smith", "Steve Smith's", True, "Steve Smith"),  # the example of Google's run_squad.py
    ("marie sklodowska", "née Marie Skłodowska in Warsaw", True, "née Marie Skłodowska in Warsaw"),  # l is no part of ł
    ("irene joliot - curie", "by Irène Joliot-Curie (1897)", True, "Irène Joliot-Curie"),
    ("$ 4 . 5 million", "It cost $4.5 million.", True, "$4.5 million"),
    ("facebook , inc .", "Facebook, Inc. was", True, "Facebook, Inc."),
    ("Facebook", "Facebook, Inc.", False, "Facebook"),
    ("facebook", "Facebook, Inc.", False, "Facebook, Inc."),
    ("two  words", "two words", True, "two words"),  # not found, so all of it
    ("curie", "Ire\u0300ne Curie", True, "Ire\u0300ne Curie"),  # a combining accent vanishes: places can't be told
    ("", "text", True, "text"),
  ],
)
def test_get_final_text(prediction, original, lowercase, expected):
  assert get_final_text(prediction, original, lowercase=lowercase) == expected
