"""Vocabulary: ids, character ranges, digests, learning and refusals."""

import numpy as np
import pytest

from realm_jax.data.vocabulary import MAX_SIZE, SPECIAL_TOKENS, Vocabulary

TEXTS = ["The cat sat on the mat.", "A cat, a mat and a hat sat there.", "Cats chatter; hats matter."] * 3


def spell(vocabulary: Vocabulary, text: str) -> list[str]:
  return [vocabulary.tokens[i] for i in vocabulary.encode([text])[0].token_id]


def test_ids_are_line_numbers():
  vocabulary = Vocabulary(["x", "[MASK]", "[SEP]", "##y", "[CLS]", "[UNK]", "[PAD]"], lowercase=True)
  assert len(vocabulary) == 7
  assert (vocabulary.pad_id, vocabulary.unk_id, vocabulary.cls_id) == (6, 5, 4)
  assert (vocabulary.sep_id, vocabulary.mask_id) == (2, 1)
  np.testing.assert_array_equal(vocabulary.is_continuation_V, [False, False, False, True, False, False, False])


def test_encodes_the_longest_pieces_first():
  vocabulary = Vocabulary([*SPECIAL_TOKENS, "un", "##a", "##aff", "##able", "!"], lowercase=True)
  (encoding,) = vocabulary.encode(["Unaffable !"])
  np.testing.assert_array_equal(encoding.token_id, [5, 7, 8, 9])
  np.testing.assert_array_equal(encoding.char_range, [[0, 2], [2, 5], [5, 9], [10, 11]])
  assert encoding.token_id.dtype == encoding.char_range.dtype == np.int32


def test_ranges_count_characters_not_bytes():
  vocabulary = Vocabulary([*SPECIAL_TOKENS, "ecole", "日", "本", "b", "##u"], lowercase=True)
  text = "😀 École 日本 e\u0301cole bü"
  (encoding,) = vocabulary.encode([text])
  assert [text[a:b] for a, b in encoding.char_range] == ["😀", "École", "日", "本", "e\u0301cole", "b", "ü"]
  np.testing.assert_array_equal(encoding.token_id, [1, 5, 6, 7, 5, 8, 9])


def test_cased_keeps_case_and_accents():
  tokens = [*SPECIAL_TOKENS, "École", "ecole"]
  assert spell(Vocabulary(tokens, lowercase=False), "École Ecole ecole") == ["École", "[UNK]", "ecole"]
  assert spell(Vocabulary(tokens, lowercase=True), "École Ecole ecole") == ["ecole"] * 3


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_special_tokens_are_not_read_from_text(special):
  vocabulary = Vocabulary([*SPECIAL_TOKENS, "[", "]", "mask"], lowercase=True)
  pieces = spell(vocabulary, f"a {special}")
  assert pieces == ["[UNK]", "[", "mask" if special == "[MASK]" else "[UNK]", "]"]
  cased = Vocabulary([*SPECIAL_TOKENS, "[", "]", "MASK"], lowercase=False)
  assert spell(cased, "[MASK][MASK]") == ["[", "MASK", "]"] * 2


def test_empty_text_has_arrays_without_rows():
  empty, blank = Vocabulary(SPECIAL_TOKENS, lowercase=True).encode(["", " \n"])
  assert empty.token_id.shape == blank.token_id.shape == (0,)
  assert empty.char_range.shape == blank.char_range.shape == (0, 2)


def test_save_and_load(tmp_path):
  vocabulary = Vocabulary([*SPECIAL_TOKENS, "é", "##é"], lowercase=False)
  vocabulary.save(tmp_path / "vocab.txt")
  assert (tmp_path / "vocab.txt").read_bytes() == "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\né\n##é\n".encode()
  loaded = Vocabulary.load(tmp_path / "vocab.txt", lowercase=False)
  assert loaded.tokens == vocabulary.tokens
  assert loaded.digest == vocabulary.digest


def test_digest_names_order_and_case():
  digests = {
    Vocabulary([*SPECIAL_TOKENS, "a", "b"], lowercase=True).digest,
    Vocabulary([*SPECIAL_TOKENS, "b", "a"], lowercase=True).digest,
    Vocabulary([*SPECIAL_TOKENS, "a", "b"], lowercase=False).digest,
  }
  assert len(digests) == 3


@pytest.mark.parametrize(
  ("tokens", "message"),
  [
    (["[PAD]", "[UNK]", "[CLS]", "a"], r"of 4 wordpieces lacks \[SEP\], \[MASK\]; give a BERT vocab.txt, one wordp"),
    ([*SPECIAL_TOKENS, "a", "b", "a"], "holds 'a' twice; every wordpiece must stand on one line"),
    ([*SPECIAL_TOKENS, *map(str, range(MAX_SIZE))], "has 65541 wordpieces; at most 65536 fit the store"),
  ],
)
def test_refuses_tokens(tokens, message):
  with pytest.raises(ValueError, match=message):
    Vocabulary(tokens, lowercase=True)


def test_refuses_files(tmp_path):
  message = "no vocabulary at .*none.txt; give a vocab.txt with one wordpiece a line"
  with pytest.raises(FileNotFoundError, match=message):
    Vocabulary.load(tmp_path / "none.txt", lowercase=True)
  (tmp_path / "latin.txt").write_bytes(b"[PAD]\n\xe9\n")
  with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 text \(byte 6\); give a BERT vocab.txt"):
    Vocabulary.load(tmp_path / "latin.txt", lowercase=True)


def test_learns_the_merges_worked_out_by_hand():
  # "a ##a ##b" three times and "a ##b" once; the merge of ##a and ##b has the lower numbers, so it goes first.
  vocabulary = Vocabulary.train(["aab aab aab ab"], size=12, lowercase=True)
  assert vocabulary.tokens == (*SPECIAL_TOKENS, "##a", "##b", "a", "b", "##ab", "aab", "ab")


def test_learning_twice_gives_the_same_digest():
  # Ten times, because the order of a hash table can be right by chance.
  assert len({Vocabulary.train(TEXTS, size=70, lowercase=True).digest for _ in range(10)}) == 1


def test_learns_no_more_than_size():
  for size in (7, 20, 45):
    assert len(Vocabulary.train(TEXTS, size=size, lowercase=True)) <= size
  vocabulary = Vocabulary.train(TEXTS, size=15, lowercase=True)  # 5 characters, 4 of them inside words too
  assert {t for t in vocabulary.tokens if len(t) == 1} >= {"a", "t", "e"}
  assert spell(vocabulary, "zat") == ["[UNK]"]


def test_learns_continuations_of_what_stands_inside_words():
  tokens = Vocabulary.train(["日本 ab, c"], size=100, lowercase=True).tokens
  assert set(tokens) == {*SPECIAL_TOKENS, "日", "本", "a", "b", "c", ",", "##a", "##b", "##c", "ab"}


def test_learning_refuses_what_it_cannot_read_twice():
  with pytest.raises(ValueError, match="is an iterator, but is read twice; give a list"):
    Vocabulary.train(iter(TEXTS), size=100, lowercase=True)
  with pytest.raises(ValueError, match="size 6 has no room for 5 special tokens and a character; give 100 or more"):
    Vocabulary.train(TEXTS, size=6, lowercase=True)


def test_long_texts_are_cut_into_wordpieces_piece_by_piece(sample_vocabulary, monkeypatch):
  rng = np.random.default_rng(0)
  words = ["The", "İstanbul", "e\u0301t\u0301é", "日本語", "(x)", "\u0301", "\n", "supercalifragilistic", "U.S."]
  texts = [" ".join(rng.choice(words, 200)), "", "日" * 300, "a b"]
  expected = sample_vocabulary.encode(texts)
  for size in (40, 41, 64):
    monkeypatch.setattr("realm_jax.data.vocabulary._PIECE", size)
    for one, other in zip(sample_vocabulary.encode(texts), expected, strict=True):
      np.testing.assert_array_equal(one.token_id, other.token_id)
      np.testing.assert_array_equal(one.char_range, other.char_range)
      assert one.token_id.dtype == one.char_range.dtype == np.int32
