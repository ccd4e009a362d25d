"""Maskings: which tokens each hides, by hand and in distribution."""

import numpy as np
import pytest

from realm_jax.data.masking import mask_tokens, random_span_mask, random_token_mask, span_mask
from realm_jax.data.queries import QuestionSource, RandomMaskSource
from realm_jax.data.questions import Question
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary

VOCABULARY = Vocabulary([*SPECIAL_TOKENS, *"abcdefgh", *(f"##{c}" for c in "abcdefgh")], lowercase=True)
PAD, UNK, CLS, SEP, MASK = range(5)
A, B, C, D, E, F = range(5, 11)


def packed(*texts, query_length, max_masks=3):
  source = QuestionSource(
    [Question(t, ()) for t in texts], VOCABULARY, seed=0, query_length=query_length, max_masks=max_masks
  )
  return source.rows(np.arange(len(texts)))


def test_mask_tokens_by_hand():
  batch = packed("a b c d e", "f", "a b", query_length=8, max_masks=2)
  is_masked_BQ = np.zeros((3, 8), bool)
  is_masked_BQ[0, [1, 3, 5]] = is_masked_BQ[1, 1] = True
  masked = mask_tokens(batch, is_masked_BQ, MASK)
  assert masked.token_id_BQ.tolist() == [
    [CLS, MASK, B, MASK, D, MASK, SEP, PAD],
    [CLS, MASK, SEP, 0, 0, 0, 0, 0],
    [CLS, A, B, SEP, 0, 0, 0, 0],
  ]
  assert masked.mask_position_BM.tolist() == [[1, 3], [1, 0], [0, 0]]  # of three the first two are predicted
  assert masked.mask_target_BM.tolist() == [[A, C], [F, 0], [0, 0]]
  assert masked.mask_weight_BM.tolist() == [[1, 1], [1, 0], [0, 0]]
  assert [x.dtype for x in masked] == [x.dtype for x in batch]
  for name in ("num_tokens_B", "question_id_B", "passage_id_B", "sentence_B2"):
    np.testing.assert_array_equal(getattr(masked, name), getattr(batch, name))


def test_span_mask():
  assert span_mask(packed("a", "b", query_length=4), np.array([1, 2]), np.array([3, 2])).tolist() == [
    [False, True, True, False],
    [False] * 4,
  ]


def test_random_spans_are_whole_words_of_spanberts_lengths():
  words = ["a", "bc", "def"] * 8  # 1, 2 and 3 wordpieces
  batch = packed(*[" ".join(words)] * 8000, query_length=64)
  mask_BQ = random_span_mask(
    batch, np.zeros(8000, bool), VOCABULARY.is_continuation_V, seed=1, number_B=np.arange(8000)
  )
  begins = np.cumsum([1, *map(len, words)])  # positions of the words' first tokens, and of [SEP]
  first_B, end_B = mask_BQ.argmax(1), 64 - mask_BQ[:, ::-1].argmax(1)
  np.testing.assert_array_equal(mask_BQ.sum(1), end_B - first_B)  # one run
  first_word_B, end_word_B = np.searchsorted(begins, first_B), np.searchsorted(begins, end_B)
  np.testing.assert_array_equal(begins[first_word_B], first_B)
  np.testing.assert_array_equal(begins[end_word_B], end_B)
  length_B = end_word_B - first_word_B
  expected = 0.2 * 0.8 ** np.arange(10) / (1 - 0.8**10)
  share = np.bincount(length_B, minlength=11)[1:] / 8000
  np.testing.assert_allclose(share, expected, atol=4 * (0.25 / 8000) ** 0.5)
  assert abs(length_B.mean() - 3.797) < 0.1
  # Of the spans of one word each of the 24 words is as likely.
  ones = np.bincount(first_word_B[length_B == 1], minlength=24)
  assert np.abs(ones - ones.mean()).max() < 4.5 * ones.mean() ** 0.5


def test_a_word_that_goes_on_behind_the_end_is_left_out():
  batch = packed("ab cd ef", query_length=7)  # [CLS] a ##b c ##d e [SEP]
  for number in range(50):
    args = {"seed": 0, "number_B": np.array([number])}
    assert not random_span_mask(batch, np.array([True]), VOCABULARY.is_continuation_V, **args)[0, 5]
  masks = [
    tuple(random_span_mask(batch, np.array([False]), VOCABULARY.is_continuation_V, seed=0, number_B=np.array([n]))[0])
    for n in range(200)
  ]
  assert len(set(masks)) == 6 and any(mask[5] for mask in masks)  # spans of three words
  only = packed("abcdef", query_length=5)
  mask_BQ = random_span_mask(only, np.array([True]), VOCABULARY.is_continuation_V, seed=0, number_B=np.array([3]))
  assert mask_BQ.tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize(("num_tokens", "count"), [(1, 1), (3, 1), (10, 2), (20, 3), (30, 4), (60, 9), (90, 10)])
def test_random_tokens_are_15_percent(num_tokens, count):
  batch = packed(*[" ".join("abcdef"[i % 6] for i in range(num_tokens))] * 500, query_length=96, max_masks=10)
  is_cut_B = np.zeros(500, bool)
  mask_BQ = random_token_mask(batch, is_cut_B, VOCABULARY.is_continuation_V, seed=2, number_B=np.arange(500))
  np.testing.assert_array_equal(mask_BQ.sum(1), count)  # 1.5, 4.5: to the even neighbour, as Python rounds
  assert not mask_BQ[:, 0].any() and not mask_BQ[:, num_tokens + 1 :].any()
  share = mask_BQ[:, 1 : num_tokens + 1].mean(0)
  np.testing.assert_allclose(share, count / num_tokens, atol=5 * (0.25 / 500) ** 0.5)


@pytest.mark.parametrize("masking", ["random_span", "random_token"])
def test_random_masks_hide_tokens_of_a_sentence(sample_store, masking):
  options = {"seed": 3, "query_length": 24, "max_masks": 30}
  batch = RandomMaskSource(sample_store, masking, **options).draw(np.arange(400))
  assert set(batch.passage_id_B[:40]) == set(range(40))
  assert not batch.sentence_is_removed_B.any()
  vocabulary = sample_store.vocabulary()
  for b, (passage, (first, end)) in enumerate(zip(batch.passage_id_B, batch.sentence_B2)):
    begin = int(sample_store.title_length_N[passage])
    sentence = sample_store.padded_tokens(passage)[begin + first : begin + end].tolist()
    is_predicted = batch.mask_weight_BM[b] > 0
    masked = batch.mask_position_BM[b][is_predicted]
    np.testing.assert_array_equal(masked, np.nonzero(batch.token_id_BQ[b] == vocabulary.mask_id)[0])
    restored = batch.token_id_BQ[b].copy()
    restored[masked] = batch.mask_target_BM[b][is_predicted]
    shown = sentence[:22]
    assert restored.tolist() == [vocabulary.cls_id, *shown, vocabulary.sep_id] + [0] * (22 - len(shown))
    if masking == "random_token":
      assert len(masked) == max(1, round(0.15 * len(shown)))
    else:
      np.testing.assert_array_equal(masked, np.arange(masked[0], masked[-1] + 1))
      tokens = sentence + [vocabulary.sep_id]
      assert masked[0] == 1 or not vocabulary.is_continuation_V[tokens[masked[0] - 1]]
      assert not vocabulary.is_continuation_V[tokens[masked[-1]]]
