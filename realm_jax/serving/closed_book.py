"""Answers without passages: the masked-word head fills in what stands behind the question.

The span head can answer nothing closed-book, as it marks words of a passage. The other head was pre-trained to fill in
masked words with the null passage too, among others, so it is asked  [CLS] question [MASK] ... [MASK] [SEP] [SEP].
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.batch import Packed
from realm_jax.data.packing import Tokens, pack
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from realm_jax.model.reader import Reader

MAX_ANSWER_LENGTH = 5  # wordpieces; NQ-open has answers of at most five words
_BATCH_SIZE = 32


def fill_in_answers(
  reader: Reader, params: Any, vocabulary: Vocabulary, questions: Sequence[str], *, query_length: int
) -> Iterable[str]:
  """One answer to each question: of the fillings of 1 to MAX_ANSWER_LENGTH masks the one with the best mean of
  log p(wordpiece).

  The masks are filled from left to right, each with the most probable wordpiece given those before it; the first one
  begins a word. Words come as the vocabulary spells them, without case in an uncased one.

  Args:
    query_length: of question and masks together; a longer question loses its end.
  """
  begins = np.array([t not in SPECIAL_TOKENS and t[0].isalnum() for t in vocabulary.tokens])
  goes_on = np.array([t not in SPECIAL_TOKENS for t in vocabulary.tokens])
  params = jax.device_put(params)
  for begin in range(0, len(questions), _BATCH_SIZE):
    encodings = [e.token_id for e in vocabulary.encode(questions[begin : begin + _BATCH_SIZE])]
    # Filled up, so that all batches are of one shape.
    row_B = [e[: query_length - 2 - MAX_ANSWER_LENGTH] for e in encodings]
    row_B += row_B[:1] * (_BATCH_SIZE - len(row_B))
    fillings = []
    for length in range(1, MAX_ANSWER_LENGTH + 1):
      joint_BJ = _with_masks(row_B, length, query_length + 1, vocabulary)
      log_prob_B = np.zeros(_BATCH_SIZE)
      for i in range(length):
        position_B = np.array([1 + len(row) + i for row in row_B])
        word_B, word_log_prob_B = jax.device_get(
          _best_word(reader, params, joint_BJ, position_B, goes_on if i else begins)
        )
        joint_BJ.token_id[np.arange(_BATCH_SIZE), position_B] = word_B
        log_prob_B += word_log_prob_B
      token_id_BA = joint_BJ.token_id[np.arange(_BATCH_SIZE)[:, None], position_B[:, None] + np.arange(1 - length, 1)]
      fillings.append((log_prob_B / length, token_id_BA))
    for b in range(len(encodings)):
      _, answer_A = max(((log_prob_B[b], token_id_BA[b]) for log_prob_B, token_id_BA in fillings), key=lambda x: x[0])
      yield " ".join(vocabulary.tokens[i] for i in answer_A).replace(" ##", "")


def _with_masks(row_B: Sequence[np.ndarray], num_masks: int, length: int, vocabulary: Vocabulary) -> Packed:
  """[CLS] question [MASK] ... [SEP] [SEP]: read with the null passage."""
  first = [np.append(row, np.full(num_masks, vocabulary.mask_id)) for row in row_B]
  token_id = np.zeros((len(first), max(map(len, first))), np.int32)
  for b, row in enumerate(first):
    token_id[b, : len(row)] = row
  num_tokens_B, nothing_B = np.array([len(row) for row in first]), np.zeros(len(first), np.int32)
  return pack(Tokens(token_id, nothing_B, num_tokens_B), Tokens(token_id, nothing_B, nothing_B), length, vocabulary)


@functools.partial(jax.jit, static_argnums=0)
def _best_word(reader: Reader, params, joint_BJ, position_B, is_allowed_V):
  """The most probable of the allowed wordpieces at a position, and log p of it among all of them, each [B]."""
  log_prob_B1V: Any = reader.apply({"params": params}, joint_BJ, position_B[:, None], method="masked_word_log_prob")
  log_prob_BV = jnp.where(is_allowed_V, log_prob_B1V[:, 0], -jnp.inf)
  return log_prob_BV.argmax(1), log_prob_BV.max(1)
