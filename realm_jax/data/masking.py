"""Which tokens of a sentence are masked: a salient span, a random span or random tokens."""

from __future__ import annotations

import numpy as np

from realm_jax.batch import QueryBatch
from realm_jax.data.draws import uniform

TOKEN_RATE = 0.15  # of a sentence's tokens: BERT's rate
# SpanBERT (Joshi et al. 2020, 3.1) draws spans of 1 to 10 whole words with probability proportional to 0.2 * 0.8^(n-1).
_MAX_WORDS = 10
_SHARE_UP_TO_LENGTH = np.cumsum(0.8 ** np.arange(_MAX_WORDS))[:-1] / np.sum(0.8 ** np.arange(_MAX_WORDS))


def mask_tokens(batch: QueryBatch, is_masked_BQ: np.ndarray, mask_id: int) -> QueryBatch:
  """Replaces the tokens by [MASK]; all are masked, the first M are predicted (section 1.5)."""
  num_masks = batch.mask_position_BM.shape[1]
  row, position = np.nonzero(is_masked_BQ)
  count_B = np.bincount(row, minlength=len(is_masked_BQ))
  rank = np.arange(len(row)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
  row, position, rank = (x[rank < num_masks] for x in (row, position, rank))
  mask_position_BM = np.zeros_like(batch.mask_position_BM)
  mask_target_BM = np.zeros_like(batch.mask_target_BM)
  mask_position_BM[row, rank] = position
  mask_target_BM[row, rank] = batch.token_id_BQ[row, position]
  return batch._replace(
    token_id_BQ=np.where(is_masked_BQ, np.int32(mask_id), batch.token_id_BQ),
    mask_position_BM=mask_position_BM,
    mask_target_BM=mask_target_BM,
    mask_weight_BM=(np.arange(num_masks) < count_B[:, None]).astype(np.float32),
  )


def span_mask(batch: QueryBatch, first_B: np.ndarray, end_B: np.ndarray) -> np.ndarray:
  """bool [B, Q]: positions first to end - 1."""
  position_BQ = np.arange(batch.token_id_BQ.shape[1])[None, :]
  return (position_BQ >= first_B[:, None]) & (position_BQ < end_B[:, None])


def random_span_mask(
  batch: QueryBatch, is_cut_B: np.ndarray, is_continuation_V: np.ndarray, *, seed: int, number_B: np.ndarray
) -> np.ndarray:
  """bool [B, Q]: one random span of whole words, whose length is SpanBERT's.

  SpanBERT draws spans until 15 % of 512 tokens are masked. Here it is one a sentence: so is the salient span that it is
  compared with, and its 3.8 words in the mean are about 15 % of a sentence of 25. With a second span, or with the
  lengths of salient spans, the comparison would measure more than the choice of what to mask.

  Args:
    batch: packed sentences.
    is_cut_B: the last word goes on behind the end, so it is not whole; it is left out unless it is the only one.
    is_continuation_V: the wordpieces that begin with ##.
    seed, number_B: decide the draws.
  """
  token_id_BQ = batch.token_id_BQ
  position_BQ = np.arange(token_id_BQ.shape[1])[None, :]
  is_text_BQ = (position_BQ > 0) & (position_BQ < batch.num_tokens_B[:, None] - 1)
  begins_BQ = is_text_BQ & ~(is_continuation_V[token_id_BQ] & (position_BQ > 1))
  word_BQ = np.where(is_text_BQ, np.cumsum(begins_BQ, axis=1, dtype=np.int16) - 1, -1)
  num_words_B = begins_BQ.sum(1)
  num_words_B = np.maximum(num_words_B - is_cut_B, np.minimum(num_words_B, 1))
  length_B = 1 + np.searchsorted(_SHARE_UP_TO_LENGTH, uniform(seed, 3, number_B), side="right")
  length_B = np.minimum(length_B, num_words_B)
  first_B = (uniform(seed, 4, number_B) * (num_words_B - length_B + 1)).astype(np.int16)
  return (word_BQ >= first_B[:, None]) & (word_BQ < (first_B + length_B)[:, None])


def random_token_mask(
  batch: QueryBatch, is_cut_B: np.ndarray, is_continuation_V: np.ndarray, *, seed: int, number_B: np.ndarray
) -> np.ndarray:
  """bool [B, Q]: BERT's number of tokens, 15 % but at least one and at most M, anywhere in the sentence.

  BERT leaves a tenth of them as they are and replaces a tenth by others, because its encoder must later read text
  without masks. REALM's reader is asked about masks alone, so all are [MASK], as in the other two.

  Args:
    batch, seed, number_B: as for `random_span_mask`; it asks not where words begin and end.
  """
  del is_cut_B, is_continuation_V
  length = batch.token_id_BQ.shape[1]
  position_BQ = np.arange(length)[None, :]
  is_text_BQ = (position_BQ > 0) & (position_BQ < batch.num_tokens_B[:, None] - 1)
  num_text_B = batch.num_tokens_B - 2
  count_B = np.clip(np.round(TOKEN_RATE * num_text_B).astype(np.int64), 1, batch.mask_position_BM.shape[1])
  key_BQ = np.where(is_text_BQ, uniform(seed, 5, number_B[:, None] * length + position_BQ), 2.0)
  largest_B1 = np.take_along_axis(np.sort(key_BQ, axis=1), count_B[:, None] - 1, 1)
  return is_text_BQ & (key_BQ <= largest_B1)


# Of any sentence; the salient span, which not every sentence has, is drawn with the sentence.
RANDOM_MASKS = {"random_span": random_span_mask, "random_token": random_token_mask}
MASKINGS = ("salient_span", *RANDOM_MASKS)
