"""Answers to questions: normalisation, matching and scores, by the official rules."""

from __future__ import annotations

import collections
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from typing import AnyStr

from tokenizers import normalizers, pre_tokenizers

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)
_PATTERN_FLAGS = re.IGNORECASE | re.UNICODE | re.MULTILINE
_PERHAPS_ACCENT = re.compile("[^\0-\u02ff]")  # U+0300 is the first


def normalize_answer(text: str) -> str:
  """NFD, lower case, without ASCII punctuation and articles, single spaces: the official open-QA rule.

  Accents are split off but kept, as in Google's `normalize_answer`.

  >>> normalize_answer("The  Beatles' album")
  'beatles album'
  """
  text = unicodedata.normalize("NFD", text).lower()
  text = "".join(c for c in text if c not in _PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
  """Whether the prediction is one of the answers, both by `normalize_answer`."""
  return any(normalize_answer(prediction) == normalize_answer(answer) for answer in answers)


def regex_match(prediction: str, patterns: Sequence[str]) -> bool:
  """CuratedTREC's rule: a pattern matches at the start of the prediction. An invalid pattern matches nothing."""
  return any(_search_start(pattern, prediction) for pattern in patterns)


def f1_score(prediction: str, answers: Sequence[str]) -> float:
  """Best harmonic mean of word precision and recall over the answers (SQuAD's F1).

  >>> round(f1_score("Marie Curie", ["Pierre", "Marie and Pierre Curie"]), 3)
  0.667
  """
  return max((_f1(normalize_answer(prediction).split(), normalize_answer(a).split()) for a in answers), default=0.0)


def _f1(prediction: list[str], answer: list[str]) -> float:
  if not prediction or not answer:
    return float(prediction == answer)
  common = sum((collections.Counter(prediction) & collections.Counter(answer)).values())
  return 2 * common / (len(prediction) + len(answer))


def string_scores(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Exact match and F1 in percent, where each target is a list of right answers: a metric function of seqio."""
  pairs = list(zip(predictions, targets, strict=True))
  return {
    "exact_match": _percent([exact_match(p, answers) for p, answers in pairs]),
    "f1": _percent([f1_score(p, answers) for p, answers in pairs]),
  }


def regex_scores(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Matches of the patterns in percent, CuratedTREC's exact match; F1 against a pattern means nothing."""
  return {"exact_match": _percent([regex_match(p, patterns) for p, patterns in zip(predictions, targets, strict=True)])}


def _percent(scores: Sequence[float]) -> float:
  return round(100 * sum(scores) / len(scores), 2)


def get_final_text(prediction: str, original: str, *, lowercase: bool) -> str:
  """The stretch of `original` that a prediction of joined wordpieces stands for, as it is written there.

  SQuAD's rule, under its name in Google's code (section 2.3), for what other systems predict: HF's RealmForOpenQA
  answers "steve smith" where the passage has "Steve Smith's". All of `original` where the stretch can't be found.
  """
  normalizer = normalizers.BertNormalizer(
    clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
  )
  words = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(original))
  cut = " ".join(word for word, _ in words)
  start = cut.find(prediction)
  if start < 0 or not prediction.strip():
    return original
  original_place = [i for i, c in enumerate(original) if not c.isspace()]
  if len(original_place) != len(cut.replace(" ", "")):  # a character became two, or vanished
    return original
  first = len(cut[:start].replace(" ", ""))
  length = len(prediction.replace(" ", ""))
  return original[original_place[first] : original_place[first + length - 1] + 1]


def matchable(text: str) -> str:
  """Lower-cased words without accents, between single spaces, one at both ends: " x " in it finds whole words."""
  text = _PERHAPS_ACCENT.sub(_without_accent, unicodedata.normalize("NFD", text.lower()))
  return " " + " ".join(re.findall(r"\w+", text)) + " "


def _without_accent(found: re.Match[str]) -> str:
  return "" if unicodedata.category(found[0]) == "Mn" else found[0]


class _DprCharacters(dict[int, str]):
  """What DPR's tokenizer makes of a character: part of a word, a space, or a word of its own."""

  def __missing__(self, code: int) -> str:
    category = unicodedata.category(chr(code))[0]
    self[code] = chr(code) if category in "LNM" else " " if category in "ZC" else f" {chr(code)} "
    return self[code]


_DPR_CHARACTERS = _DprCharacters()


def dpr_words(text: str) -> str:
  """As `matchable`, by DPR's rule: accents stay, and every sign is a word."""
  words = unicodedata.normalize("NFD", text).translate(_DPR_CHARACTERS).split()
  return f" {' '.join(words).lower()} "


def has_answer(text: str, answers: Sequence[str], *, regex: bool = False) -> bool:
  """Whether a passage holds an answer: as whole words without case and accents, or as a regular expression."""
  if regex:
    return first_match(text, answers) != ""
  return has_words(matchable(text), [*map(matchable, answers)])


def has_words(words: AnyStr, answers: Sequence[AnyStr]) -> bool:
  """Whether answers are in a text, after all went through `matchable` or `dpr_words`; one without words is nowhere.

  All may be encoded as UTF-8.
  """
  return any(not answer.isspace() and answer in words for answer in answers)


def first_match(text: str, patterns: Sequence[str]) -> str:
  """What the first pattern that is in the text finds there; "" if none does."""
  return next(_matches(text, patterns), "")


def all_matches(text: str, patterns: Sequence[str]) -> list[str]:
  """All that patterns find in a text, each once, in the order of the patterns."""
  return list(dict.fromkeys(_matches(text, patterns)))


def _matches(text: str, patterns: Sequence[str]) -> Iterator[str]:
  """An invalid pattern finds nothing, and nothing is no find."""
  for pattern in patterns:
    try:
      found = re.finditer(pattern, text, _PATTERN_FLAGS)
    except re.error:
      continue
    yield from (match[0] for match in found if match[0])


def _search_start(pattern: str, text: str) -> bool:
  try:
    return re.match(pattern, text, _PATTERN_FLAGS) is not None
  except re.error:
    return False
