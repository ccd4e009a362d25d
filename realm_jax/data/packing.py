"""Packs token sequences into BERT's input format: the one place that does."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from realm_jax.batch import Packed
from realm_jax.data.vocabulary import Vocabulary

# Names the format below. Raise it when the same tokens are packed in another way: embeddings of both don't mix.
PACKING = "bert-1"


class Tokens(NamedTuple):
  """Row r's sequence is token_id_RL[r, start_R[r] : start_R[r] + num_tokens_R[r]]."""

  token_id_RL: np.ndarray
  start_R: np.ndarray
  num_tokens_R: np.ndarray


def pack(first: Tokens, second: Tokens | None, length: int, vocabulary: Vocabulary) -> Packed:
  """[CLS] first [SEP], or [CLS] first [SEP] second [SEP], cut and padded to `length`.

  As much as possible is kept of the first sequence, then of the second; [CLS] and every [SEP] always stay. Segments
  are 0 up to the first [SEP] and 1 after it (section 1.3 of Google's formats: `bert_format`).

  Returns:
    Packed with arrays [R, length].
  """
  num_special = 2 if second is None else 3
  if length < num_special:
    raise ValueError(f"length {length} has no room for the {num_special} special tokens")
  first_length = np.minimum(first.num_tokens_R, length - num_special)[:, None]
  position = np.arange(length)[None, :]
  token_id = np.full((len(first_length), length), vocabulary.pad_id, np.int32)
  _place(token_id, first, position - 1, first_length)
  token_id[:, 0] = vocabulary.cls_id
  first_sep = first_length + 1
  np.put_along_axis(token_id, first_sep, vocabulary.sep_id, axis=1)
  last = first_sep
  if second is not None:
    second_length = np.minimum(second.num_tokens_R[:, None], length - num_special - first_length)
    _place(token_id, second, position - first_sep - 1, second_length)
    last = first_sep + 1 + second_length
    np.put_along_axis(token_id, last, vocabulary.sep_id, axis=1)
  is_token = position <= last
  return Packed(token_id, ((position > first_sep) & is_token).astype(np.int32), is_token)


def _place(token_id: np.ndarray, source: Tokens, index: np.ndarray, length: np.ndarray) -> None:
  """Writes source[r, index[r]] where 0 <= index[r] < length[r]."""
  index = np.broadcast_to(index, token_id.shape)
  inside = (index >= 0) & (index < length)
  row, column = np.nonzero(inside)
  token_id[row, column] = source.token_id_RL[row, source.start_R[row] + index[row, column]]
