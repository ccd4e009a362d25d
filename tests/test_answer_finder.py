"""Answers found by wordpieces: the same passages as by the rule that normalises each text."""

import json
import random
import unicodedata

import numpy as np
import pytest

from realm_jax.data.answer_finder import AnswerFinder, plain_characters
from realm_jax.data.answers import has_answer, has_words, matchable
from realm_jax.data.build import build_passages
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import read_questions
from realm_jax.data.sample import SAMPLE_PASSAGES, SAMPLE_QUESTIONS
from realm_jax.data.spans import make_tagger
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from realm_jax.weights.source import locate

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PIECES = [*LETTERS, *(f"##{c}" for c in LETTERS + "£°ÉłαδοΣσς"), *".,-'()–£°日éÉA_łñαδοΣσς"]
WORDS = "paris par ##is new york un ##kn foo ##bar ##°c the".split()
TOKENS = [*SPECIAL_TOKENS, *PIECES, *WORDS]
VOCABULARY = Vocabulary(TOKENS, lowercase=True)

TAME = [
  *"Paris paris PARIS Pàris par is foo bar foobar un unknown 5 New York new–york the a É é . , - ' ( ) “ “".split(),
  "y" * 40,
]
# What the vocabulary and the rule cut, spell or drop each in its own way.
WILD = [
  *"foo_bar _ 5°C °C £5 5£ kn ł Łódź ß İ I \u212a K k ſ ŉ ﬁ fi ½ ² № ΟΔΟΣ οδος οδοσ Σ α 日 日本 가 क की".split(),
  *"e\u0301 pa\u0301ris … ! [UNK] [SEP] [CLS] ##is − × ʻ ˈ".split(),
  *"\u00ad \u200b \u200d \ufeff \ufffd \u0301 \u0338 \u0345 \u20dd \u093f \U0001f600 \U0001d400 \u0378".split(),
  *("x" * 100, "x" * 101, "\0", "\x1c", "\x85", "\n", "\t", "\r", "\u00a0", "\u2028"),
]


def build_store(path, vocabulary, texts, **options):
  lines = [json.dumps({"id": str(i), "title": "Paris foo", "text": text}) for i, text in enumerate(texts)]
  (path / "articles.jsonl").write_text("\n".join(lines) + "\n")
  options = {"passage_length": 64, "tagger": make_tagger("none"), "whole": True, **options}
  build_passages(path / "articles.jsonl", path / "store", vocabulary=vocabulary, **options)
  return PassageStore(path / "store")


def glued(draw, most):
  """Some fragments with or without spaces between, of every second text tame ones alone."""
  fragments = draw.choice([TAME, TAME + WILD])
  text = "".join(draw.choice(fragments) + draw.choice(["", " ", " "]) for _ in range(draw.randint(1, most)))
  return text if text.strip() else "x"


def num_plain(finder, store, monkeypatch):
  """Passages whose texts are not looked at when they are asked for again."""
  all_ids, asked = np.arange(len(store)), set()
  finder.have_answer(all_ids, ["q q q"])
  finder._words.cache_clear()
  body = store.body
  monkeypatch.setattr(store, "body", lambda i: asked.add(i) or body(i))
  finder.have_answer(all_ids, ["q q q"])
  monkeypatch.undo()
  return len(store) - len(asked)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize(
  "options", [{}, {"passage_length": 16}, {"passage_length": 16, "whole": False}, {"whole": False, "passage_words": 7}]
)
def test_hostile_texts_are_searched_by_the_rule(tmp_path, lowercase, options, monkeypatch):
  draw = random.Random(0)
  vocabulary = Vocabulary(TOKENS, lowercase=lowercase)
  store = build_store(tmp_path, vocabulary, [glued(draw, 12) for _ in range(300)], **options)
  finder, words = AnswerFinder(store, vocabulary), [matchable(store.body(i)) for i in range(len(store))]
  ids = np.array(draw.sample(range(len(store)), len(store)))
  num_found = 0
  for number in range(150):
    answers = [glued(draw, 3) for _ in range(number % 3 + 1)]
    by_rule = [has_words(words[i], [*map(matchable, answers)]) for i in ids]
    assert finder.have_answer(ids, answers).tolist() == by_rule, answers
    num_found += sum(by_rule)
  assert num_found > 2000
  share = num_plain(finder, store, monkeypatch) / len(store)
  assert 0.2 < share < 0.8 if lowercase else 0.01 < share < 0.5


def test_an_encyclopedia_is_searched_by_the_rule(tmp_path, monkeypatch):
  vocabulary = Vocabulary.load(locate("realm-tiny") / "vocab.txt", lowercase=True)
  texts = [json.loads(line)["text"] for line in SAMPLE_PASSAGES.read_text(encoding="utf-8").splitlines()]
  store = build_store(tmp_path, vocabulary, texts, passage_length=288)
  finder, words = AnswerFinder(store, vocabulary), [matchable(store.body(i)) for i in range(len(store))]
  num_found = 0
  for question in read_questions(str(SAMPLE_QUESTIONS["test"])).questions:
    by_rule = [has_words(w, [*map(matchable, question.answers)]) for w in words]
    assert finder.have_answer(np.arange(len(store)), question.answers).tolist() == by_rule, question
    num_found += sum(by_rule)
  assert num_found > 500
  assert num_plain(finder, store, monkeypatch) > 0.9 * len(store)


def test_cases_worked_out_by_hand(tmp_path):
  cases = [
    ("in Paris.", "PÁRIS!", True),
    ("Parisian", "Paris", False),  # pieces of a word that goes on
    ("unparis", "Paris", False),
    ("new, (york)", "New York", True),
    ("new foo york", "New York", False),
    ("5°C", "5", True),  # one word for the vocabulary
    ("5°C", "C", True),
    ("foo_bar", "foo", False),  # three words for the vocabulary
    ("foo_bar", "foo_bar", True),
    ("foo\u00adbar", "bar", True),  # a soft hyphen: one word for the vocabulary, as if it weren't there
    ("ΟΔΟΣ 1", "οδος", True),  # Python alone minds the end of a word
    ("10 日本", "日", False),  # two words for the vocabulary
    ("[UNK]", "unk", True),
    ("x" * 101 + " foo", "x" * 101, True),
    ("🙂 foo", "🙃", False),  # both are [UNK]
    ("foo", "...", False),
    ("foo", "", False),
    ("bar", "foo", False),  # of the title
  ]
  store = build_store(tmp_path, VOCABULARY, [text for text, _, _ in cases])
  finder = AnswerFinder(store, VOCABULARY)
  for i, (text, answer, found) in enumerate(cases):
    for answers in ([answer], ["qqq", answer]):
      assert finder.have_answer(np.array([i]), answers).tolist() == [found], (text, answer)
    assert has_answer(text, [answer]) is found


def test_no_passages_and_no_answers(tmp_path):
  finder = AnswerFinder(build_store(tmp_path, VOCABULARY, ["foo", "bar £"]), VOCABULARY)
  assert finder.have_answer(np.zeros(0, np.int64), ["foo"]).tolist() == []
  assert finder.have_answer(np.array([0, 1]), []).tolist() == [False, False]
  assert finder.have_match(np.zeros(0, np.int64), ["foo"]).tolist() == []


def test_the_same_words_are_made_of_plain_characters():
  plain = plain_characters(VOCABULARY)
  assert len(plain) > 3000
  for c in "azAZ09 \n\t.,-'\u00a0éÉłŁñßİ–—“”…ʻ\u0301αςяЯ½²":
    assert c in plain, c
  for c in "_°£×\0\x1c\x85\u00ad\u200b\ufeffΣ日\u093f":
    assert c not in plain, c
  draw = random.Random(0)
  common = "abcXYZ019 .,-'éÉ\u0301–İς"
  for _ in range(5000):
    text = "".join(draw.choice(plain if draw.random() < 0.4 else common) for _ in range(20))
    words = [w for w in VOCABULARY.words(text) if matchable(w) != "  "]
    assert words == matchable(text).split(), ascii(text)
  # So no text of plain characters holds a word with another one.
  assert set(plain).issuperset("".join(map(matchable, plain)))
  # A letter is one letter, so that no cut between wordpieces is within a character, and a sign is one sign.
  assert max(len(matchable(c).strip()) for c in plain) == 1
  assert max(len(w) for c in plain for w in VOCABULARY.words(c)) == 1


def test_only_what_a_cased_vocabulary_spells_as_the_rule_does_is_plain():
  plain = plain_characters(Vocabulary(TOKENS, lowercase=False))
  assert [c in plain for c in "aAéÉ\u03015. -"] == [True, False, False, False, False, True, True, True, True]


def test_accents_begin_at_300():
  assert not any(unicodedata.category(chr(c)) == "Mn" for c in range(0x300))
  assert matchable("\u02ffa\u0300b\u1ab0c") == " abc "


def test_patterns_are_searched_again_only_in_new_passages(tmp_path, monkeypatch):
  store = build_store(tmp_path, VOCABULARY, ["in 1867", "foo", "1990", "York 1991"])
  finder, searched, body = AnswerFinder(store, VOCABULARY), [], store.body
  monkeypatch.setattr(store, "body", lambda i: searched.append(i) or body(i))
  patterns = [r"19\d\d", "("]
  beam = np.array([2, 0, 1])
  assert finder.have_match(beam, patterns).tolist() == [True, False, False]
  beam[:] = 1  # a beam is changed where an annotated passage comes in
  assert finder.have_match(np.array([0, 3, 2]), patterns).tolist() == [False, True, True]
  assert finder.have_match(np.array([1, 0]), ["foo"]).tolist() == [True, False]
  assert finder.have_match(np.array([3, 2]), patterns).tolist() == [True, True]
  assert searched == [2, 0, 1, 3, 1, 0]
