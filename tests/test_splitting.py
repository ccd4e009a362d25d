"""Splitting: whole sentences, packed greedily; no text is lost."""

import numpy as np
import pytest

from realm_jax.data.articles import Article
from realm_jax.data.spans import Span
from realm_jax.data.splitting import NUM_SPECIAL_TOKENS, Passage, split_articles
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary

VOCABULARY = Vocabulary(
  [*SPECIAL_TOKENS, ".", "!", "the", "cat", "dog", "cow", "sat", "ran", "ate", "pets", "x", "##x", "##y", "e", "##e"],
  lowercase=True,
)
TEXT = "The cat sat. The dog ran!  The cow ate."  # three sentences of four tokens


def split(text: str, passage_length: int, *, title: str = "Pets", **options) -> list[Passage]:
  articles = [Article("7", title, text)]
  return list(split_articles(articles, VOCABULARY, passage_length=passage_length, **options))


def spell(token_id) -> str:
  return " ".join(VOCABULARY.tokens[i] for i in token_id)


def test_packs_sentences_greedily():
  two, one = split(TEXT, 3 + 1 + 8)
  assert (two.id, one.id) == ("7#0", "7#1")
  assert (two.title, one.title) == ("Pets", "Pets")
  assert (two.body, one.body) == ("The cat sat. The dog ran!", "The cow ate.")
  assert spell(two.title_token_id) == spell(one.title_token_id) == "pets"
  assert spell(two.body_encoding.token_id) == "the cat sat . the dog ran !"
  assert spell(one.body_encoding.token_id) == "the cow ate ."
  np.testing.assert_array_equal(two.sentence_start, [0, 4])
  np.testing.assert_array_equal(one.sentence_start, [0])
  np.testing.assert_array_equal(one.body_encoding.char_range, [[0, 3], [4, 7], [8, 11], [11, 12]])


def test_one_token_less_and_a_sentence_goes_to_the_next_passage():
  assert [p.body for p in split(TEXT, 3 + 1 + 7)] == ["The cat sat.", "The dog ran!", "The cow ate."]
  assert [p.id for p in split(TEXT, 3 + 1 + 7)] == ["7#0", "7#1", "7#2"]


def test_what_fits_one_passage_keeps_its_id():
  (passage,) = split(TEXT, 3 + 1 + 12)
  assert passage.id == "7"
  assert passage.body == TEXT
  np.testing.assert_array_equal(passage.sentence_start, [0, 4, 8])


def test_a_title_takes_half_at_most():
  passages = split(TEXT, 16, title="pets " * 20)
  assert all(len(p.title_token_id) == 8 for p in passages)
  assert passages[0].title == "pets " * 20  # the words stay
  assert max(len(p.body_encoding.token_id) for p in passages) <= 16 - 3 - 8


def test_without_a_title_the_body_has_the_room():
  assert [p.body for p in split(TEXT, 3 + 8, title="")] == ["The cat sat. The dog ran!", "The cow ate."]


def test_an_over_long_sentence_is_cut_at_words():
  # 1 2 3 | 3 pieces: the fourth word doesn't fit the first passage of five tokens, and isn't torn.
  passages = split("cat dog cow xyx the sat.", 3 + 5, title="")
  assert [p.body for p in passages] == ["cat dog cow", "xyx the sat", "."]
  assert [spell(p.body_encoding.token_id) for p in passages] == ["cat dog cow", "x ##y ##x the sat", "."]
  assert all(p.sentence_start.tolist() == [0] for p in passages)


def test_a_word_longer_than_a_passage_is_torn_but_kept():
  passages = split("x" * 12 + " cat.", 3 + 5, title="")
  assert "".join(p.body for p in passages) == "x" * 12 + " cat."
  assert [len(p.body_encoding.token_id) for p in passages] == [5, 5, 4]


def test_a_word_that_fits_is_not_torn():
  passages = split("cat " + "x" * 5 + " sat.", 3 + 5, title="")
  assert [p.body for p in passages] == ["cat", "xxxxx", "sat."]


def test_the_rest_of_a_cut_sentence_shares_a_passage_with_the_next():
  passages = split("Cat dog cow cat dog cow the. The sat.", 3 + 6, title="")
  assert [p.body for p in passages] == ["Cat dog cow cat dog cow", "the. The sat."]
  np.testing.assert_array_equal(passages[1].sentence_start, [0, 2])


def test_a_whole_article_is_one_passage_cut_at_the_end():
  (passage,) = split(TEXT, 3 + 1 + 6, whole=True)
  assert passage.id == "7"
  assert passage.body == "The cat sat. The dog"
  np.testing.assert_array_equal(passage.sentence_start, [0, 4])
  assert split(TEXT, 3 + 1 + 4, whole=True)[0].sentence_start.tolist() == [0]
  assert split(TEXT, 64, whole=True)[0].body == TEXT


def test_blocks_of_words():
  blocks = split(TEXT, 64, passage_words=4)
  assert [p.body for p in blocks] == ["The cat sat. The", "dog ran!  The cow", "ate."]
  assert [p.sentence_start.tolist() for p in blocks] == [[0, 4], [0, 3], [0]]
  assert [p.id for p in blocks] == ["7#0", "7#1", "7#2"]
  assert [p.body for p in split(TEXT, 64, passage_words=9)] == [TEXT]


def test_a_block_of_words_that_is_too_long_is_cut_at_a_word():
  passages = split("cat xyx dog cow the sat.", 3 + 5, title="", passage_words=4)
  assert [p.body for p in passages] == ["cat xyx dog", "cow", "the sat."]


def test_blocks_lose_no_text_and_no_word_is_split():
  rng = np.random.default_rng(0)
  words = "The cat É (x) xyx … sat. ran!".split()
  for _ in range(20):
    text = " ".join(rng.choice(words, rng.integers(1, 90)))
    blocks = [p.body for p in split(text, 64, passage_words=7)]
    assert " ".join(blocks).split() == text.split()
    # A word without wordpieces of its own doesn't exist here, so that every block but the last is full.
    assert [len(block.split()) for block in blocks[:-1]] == [7] * (len(blocks) - 1)


def test_spans_and_sentences_of_the_source_are_kept():
  spans = tuple(Span(TEXT.index(word), TEXT.index(word) + 3, "misc") for word in ("cat", "sat", "cow"))
  article = Article("7", "", TEXT, (*spans, Span(0, len(TEXT), "date")), (0, 13))
  one, two = split_articles([article], VOCABULARY, passage_length=3 + 8)
  assert [one.body, two.body] == ["The cat sat.", "The dog ran!  The cow ate."]
  assert [[p.body[s.start : s.end] for s in p.spans] for p in (one, two)] == [["cat", "sat"], ["cow"]]
  assert two.sentence_start.tolist() == [0]
  assert next(split_articles([article._replace(spans=None)], VOCABULARY, passage_length=64)).spans is None


def test_sentences_begin_at_characters_not_bytes():
  text = "“É É é.”  😀 É sat.\nÉ xx!"
  (passage,) = split(text, 64, title="")
  begins = passage.body_encoding.char_range[passage.sentence_start, 0]
  assert [text[b] for b in begins] == ["“", "😀", "É"]
  assert begins.tolist() == [0, 10, 19]


def test_text_without_tokens_gives_no_passage():
  assert split("", 16) == []
  assert split("\u200b", 16) == []


def test_refuses_a_length_without_room():
  with pytest.raises(ValueError, match="passage_length 4 leaves no room for text; give at least 16"):
    split(TEXT, 4)


@pytest.mark.parametrize("passage_length", [16, 21, 40])
def test_greedy_packing_equals_its_twin(passage_length):
  rng = np.random.default_rng(passage_length)
  room = passage_length - NUM_SPECIAL_TOKENS - 1
  lengths = rng.integers(2, room + 1, 200).tolist()  # with the full stop
  expected = [[]]
  for length in lengths:
    if sum(expected[-1]) + length > room:
      expected.append([])
    expected[-1].append(length)
  passages = split(" ".join("Cat" + " cat" * (n - 2) + "." for n in lengths), passage_length)
  assert [np.diff([*p.sentence_start, len(p.body_encoding.token_id)]).tolist() for p in passages] == expected


@pytest.mark.parametrize("passage_length", [16, 24, 64])
def test_no_text_is_lost(passage_length):
  rng = np.random.default_rng(passage_length)
  words = "The cat É e\u0301 xyx 日本 🐄 “sat.” ran. ate! Dr. … (x)".split() + ["x" * 40, "\n\n"]
  for _ in range(30):
    text = " ".join(rng.choice(words, rng.integers(1, 120))).strip()
    passages = split(text, passage_length)
    encoding = VOCABULARY.encode([text])[0]
    np.testing.assert_array_equal(np.concatenate([p.body_encoding.token_id for p in passages]), encoding.token_id)
    assert "".join("".join(p.body.split()) for p in passages) == "".join(text.split())
    begin = 0
    for passage in passages:
      assert len(passage.title_token_id) + len(passage.body_encoding.token_id) + NUM_SPECIAL_TOKENS <= passage_length
      assert passage.sentence_start[0] == 0
      surfaces = [passage.body[a:b] for a, b in passage.body_encoding.char_range]
      end = begin + len(surfaces)
      assert surfaces == [text[a:b] for a, b in encoding.char_range[begin:end]]
      begin = end
