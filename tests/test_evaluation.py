"""Scores of answers and passages: cases worked out by hand, and public rules written down a second time."""

import json
import re
import string
import unicodedata

import numpy as np
import pytest

from realm_jax.data.answers import dpr_words, exact_match, f1_score, has_words, normalize_answer
from realm_jax.data.build import build_passages
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import Question
from realm_jax.data.sample import SAMPLE_PASSAGES
from realm_jax.data.spans import NoTagger
from realm_jax.serving.evaluation import (
  answer_scores,
  answerable,
  find_answers_in_passages,
  is_alias,
  kinds_of_outcome,
  longer_than_any_span,
  recall_scores,
  summarize,
)

TEXTS = ["Émile Zola wrote J'accuse in 1898.", "The U.S. Army, 3.5 km away", "a comparison of parisian life", "x\ny"]


@pytest.fixture(scope="module")
def store(sample_vocabulary, tmp_path_factory):
  """One passage a text of TEXTS, in this order."""
  path = tmp_path_factory.mktemp("texts")
  lines = [json.dumps({"id": f"t {i}", "title": f"T{i}", "text": text}) for i, text in enumerate(TEXTS)]
  (path / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
  build_passages(
    path / "texts.jsonl", path / "store", vocabulary=sample_vocabulary, passage_length=64, tagger=NoTagger(), whole=True
  )
  return PassageStore(path / "store")


def squad_normalize(text):
  """SQuAD's evaluate-v1.1.py: lower case, punctuation, articles, white space, in this order."""
  text = "".join(c for c in text.lower() if c not in string.punctuation)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(prediction, answer):
  predicted, right = squad_normalize(prediction).split(), squad_normalize(answer).split()
  same = sum(min(predicted.count(word), right.count(word)) for word in set(predicted))
  if not same:
    return 0.0
  precision, recall = same / len(predicted), same / len(right)
  return 2 * precision * recall / (precision + recall)


def dpr_tokens(text):
  """DPR's SimpleTokenizer: [letters, numbers, marks]+ or one character that is neither separator nor control."""
  tokens, in_word = [], False
  for c in unicodedata.normalize("NFD", text):
    kind = unicodedata.category(c)[0]
    if kind in "LNM" and in_word:
      tokens[-1] += c
    elif kind not in "ZC":
      tokens.append(c)
    in_word = kind in "LNM"
  return [token.lower() for token in tokens]


def dpr_has_answer(text, answer):
  tokens, answer_tokens = dpr_tokens(text), dpr_tokens(answer)
  return any(tokens[i : i + len(answer_tokens)] == answer_tokens for i in range(len(tokens) - len(answer_tokens) + 1))


def test_scores_agree_with_squads_rule():
  """On ASCII; elsewhere the open-QA rule splits accents off first."""
  rng = np.random.default_rng(0)
  words = ["The", "a", "An", "cat.", "(cat)", "U.S.", "rock-n-roll", "theatre", "--", "1,000", "Dog's"]
  pairs = [[" ".join(rng.choice(words, rng.integers(1, 6))) for _ in range(2)] for _ in range(300)]
  pairs += [[text, text.upper()] for text in string.printable]
  num_same = 0
  for prediction, answer in pairs:
    assert normalize_answer(prediction) == squad_normalize(prediction)
    same = squad_normalize(prediction) == squad_normalize(answer)
    assert exact_match(prediction, [answer]) == same
    if squad_normalize(prediction) or squad_normalize(answer):  # SQuAD v1 gives two empty texts 0
      assert f1_score(prediction, ["zzz", answer]) == pytest.approx(squad_f1(prediction, answer))
    num_same += same
  assert 100 < num_same < 300


def test_passages_agree_with_dprs_rule():
  text = SAMPLE_PASSAGES.read_text(encoding="utf-8")[:3000] + "".join(map(chr, range(1, 0x500)))
  assert dpr_words(text).split() == dpr_tokens(text)
  rng, words, found = np.random.default_rng(0), text.split(), 0
  for i in rng.integers(0, len(words) - 30, 400):
    j, number, cut = i + rng.integers(-8, 30), rng.integers(1, 4), rng.integers(2)
    passage, answer = " ".join(words[i : i + 30]), " ".join(words[max(j, 0) :][:number])[cut:]
    if dpr_tokens(answer):
      expected = dpr_has_answer(passage, answer)
      assert has_words(dpr_words(passage), [dpr_words(answer)]) == expected
      found += expected
  assert 100 < found < 300


@pytest.mark.parametrize(
  ("row", "answer", "whole_words", "dpr", "google"),
  [
    (0, "Émile Zola", True, True, True),
    (0, "émile zola", True, True, False),  # Google's rule knows case
    (0, "Emile Zola", True, False, False),  # DPR's keeps accents
    (0, "J'accuse", True, True, True),
    (0, "J accuse", True, False, False),  # a sign is a word of DPR's
    (1, "U.S", True, True, True),
    (1, "US", False, False, False),
    (1, "Army 3", True, False, False),
    (2, "paris", False, False, True),  # Google's has no words
    (3, "x y", True, True, False),
    (1, ",", False, True, True),  # no word, no answer
  ],
)
def test_three_rules(store, row, answer, whole_words, dpr, google):
  found = find_answers_in_passages(store, [Question("q", ("zzz", answer))], np.array([[row]]))
  assert {rule: has.tolist() for rule, has in found.items()} == {
    "": [[whole_words]], "token_": [[dpr]], "substring_": [[google]]
  }  # fmt: skip


def test_patterns_have_two_rules(store):
  questions = [Question("q", ("(", "\u00e9mile|parisian$"))]
  found = find_answers_in_passages(store, questions, np.array([[0, 1, 2]]), regex=True)
  # DPR splits the accents of text and pattern alike.
  assert {rule: has.tolist() for rule, has in found.items()} == {
    "": [[True, False, False]],
    "token_": [[True, False, False]],
  }
  decomposed = [Question("q", ("e\u0301mile",))]
  found = find_answers_in_passages(store, decomposed, np.array([[0]]), regex=True)
  assert (found[""].item(), found["token_"].item()) == (False, True)


def test_recall():
  has_answer_BK = np.array([[0, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]], bool)
  scores = recall_scores({"": has_answer_BK, "token_": ~has_answer_BK}, [1, 2, 3, 100])
  assert {name: score.tolist() for name, score in scores.items()} == {
    "recall@1": [0, 1, 0], "recall@2": [0, 1, 0], "recall@3": [1, 1, 0], "recall@100": [1, 1, 0],
    "token_recall@1": [1, 0, 1], "token_recall@2": [1, 1, 1], "token_recall@3": [1, 1, 1],
    "token_recall@100": [1, 1, 1],
  }  # fmt: skip


def test_answer_scores():
  questions = [Question("a", ("cat sat", "dog")), Question("b", ("x",)), Question("c", ("y",))]
  scores = answer_scores(["The cat", "X.", ""], questions)
  assert scores["exact_match"].tolist() == [0, 1, 0]
  assert scores["f1"] == pytest.approx([2 / 3, 1, 0])
  assert answer_scores(["cats", "yx", "y"], [Question(q, ("c.t", "^x")) for q in "abc"], regex=True).keys() == {
    "exact_match"
  }


def test_no_answer_is_wrong_whatever_is_right():
  """ "The The" normalises to nothing, and the pattern matches nothing: neither is said by saying nothing."""
  questions = [Question("a", ("The The",)), Question("b", ("The The", "x"))]
  scores = answer_scores([None, "A"], questions)
  assert {name: score.tolist() for name, score in scores.items()} == {"exact_match": [0, 1], "f1": [0, 1]}
  pattern = [Question(q, ("(Marie)?",)) for q in "ab"]
  assert answer_scores([None, "x"], pattern, regex=True)["exact_match"].tolist() == [0, 1]


def test_intervals():
  """Of 400 questions with 100 right: the binomial's own interval, 25 +- 1.96 * 2.165, within what resampling gives."""
  scores = {"a": np.repeat([1.0, 0.0], [100, 300]), "b": np.repeat([0.0, 1.0], [300, 100]), "one": np.ones(400)}
  summary = summarize(scores)
  assert (summary["a"], summary["b"], summary["one"]) == (25.0, 25.0, 100.0)
  assert summary["interval_95"]["a"] == pytest.approx([20.76, 29.24], abs=0.5)
  assert summary["interval_95"]["one"] == [100.0, 100.0]
  assert summarize(scores) == summary  # seeded
  # Paired: two systems that are right on the same questions, and one on 4 more.
  more = scores["a"].copy()
  more[100:104] = 1
  difference = summarize({"difference": more - scores["a"]})
  assert difference["difference"] == 1.0
  assert difference["interval_95"]["difference"] == pytest.approx([0.25, 2.0], abs=0.26)  # Poisson(4) of 400


def test_interval_is_the_percentile_of_means():
  """Two questions: a mean is 0, 50 or 100 with 1/4, 1/2, 1/4, so the middle 95 % are everything."""
  assert summarize({"x": np.array([0.0, 1.0])})["interval_95"]["x"] == [0.0, 100.0]


@pytest.mark.parametrize(
  ("prediction", "answers", "expected"),
  [
    ("Paris, France", ["paris"], True),
    ("Obama", ["zzz", "Barack Obama"], True),
    ("Emile", ["Émile"], True),
    ("Par", ["Paris"], False),  # whole words
    ("Mark Twain", ["Samuel Clemens"], False),  # no rule on words can see it
    ("", ["x"], False),
    ("...", ["x ... y"], False),
  ],
)
def test_alias(prediction, answers, expected):
  assert is_alias(prediction, answers) is expected


def test_alias_of_a_pattern():
  assert is_alias("in 1898", [r"18\d\d"], regex=True)
  assert not is_alias("in 1998", ["(", r"18\d\d"], regex=True)


def test_kinds_are_told_apart_in_their_order():
  right, alias, given, there = np.array([[*map(int, f"{i:04b}")] for i in range(16)], bool).T
  kinds = kinds_of_outcome(right, alias, given, there)
  assert kinds == [
    "not in the corpus", "not retrieved", "not read", "not read", *["alias"] * 4, *["right"] * 8
  ]  # fmt: skip


def test_answerable(store):
  questions = [
    Question(q, answers)
    for q, answers in {
      "a": ("zzz", "emile zola"), "b": ("zola emile",), "c": ("1898 the",), "d": ("3 5 km",), "e": ("...",),
      "f": ("km away", "zzz"),
    }.items()
  ]  # fmt: skip
  assert answerable(store, questions).tolist() == [True, False, False, True, False, True]
  assert answerable(store, []).tolist() == []


def test_answerable_by_pattern(store):
  patterns = [r"18\d\d", r"1898\.\nThe", r"19\d\d", "(", r"^x\ny$", r"(?s)accuse.*km|\bArmy"]
  found = answerable(store, [Question(p, (p,)) for p in patterns], regex=True)
  assert found.tolist() == [True, False, False, False, True, True]


def test_longer_than_any_span(sample_vocabulary):
  """Two words of 2 signs each are 4 wordpieces; one short answer is enough."""
  questions = [Question("a", (". , . ,", ". . . . .")), Question("b", (". , .", ". , . ,")), Question("c", ("",))]
  assert longer_than_any_span(questions, sample_vocabulary, 3).tolist() == [True, False, False]
