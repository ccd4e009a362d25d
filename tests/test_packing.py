"""Packing: BERT's format, its cutting rule and the null passage."""

import numpy as np
import pytest

from realm_jax.data.packing import Tokens, pack
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary

VOCABULARY = Vocabulary([*SPECIAL_TOKENS, *(f"w{i}" for i in range(95))], lowercase=True)
PAD, CLS, SEP = 0, 2, 3


def rows(*sequences: list[int]) -> Tokens:
  """Sequences in an array of garbage, each behind a start of its own."""
  start = np.arange(len(sequences))
  token_id = np.full((len(sequences), start.max(initial=0) + max(map(len, sequences)) + 1), 99, np.uint16)
  for row, begin, sequence in zip(token_id, start, sequences):
    row[begin : begin + len(sequence)] = sequence
  return Tokens(token_id, start, np.array([len(s) for s in sequences]))


def bert_format(length: int, *sequences: list[int]) -> tuple[list[int], list[int], list[bool]]:
  """The twin: appends tokens one by one, as long as there is room for the [SEP]s to come."""
  token_id, segment_id = [CLS], [0]
  for n, sequence in enumerate(sequences):
    for token in sequence:
      if len(token_id) < length - (len(sequences) - n):
        token_id.append(token)
        segment_id.append(n)
    token_id.append(SEP)
    segment_id.append(n)
  padding = length - len(token_id)
  return token_id + [PAD] * padding, segment_id + [0] * padding, [True] * len(token_id) + [False] * padding


def test_one_sequence():
  packed = pack(rows([10, 11], [], [20, 21, 22, 23]), None, 5, VOCABULARY)
  np.testing.assert_array_equal(packed.token_id, [[2, 10, 11, 3, 0], [2, 3, 0, 0, 0], [2, 20, 21, 22, 3]])
  np.testing.assert_array_equal(packed.segment_id, np.zeros((3, 5)))
  np.testing.assert_array_equal(packed.is_token, [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
  assert packed.token_id.dtype == packed.segment_id.dtype == np.int32
  assert packed.is_token.dtype == bool


def test_two_sequences():
  packed = pack(rows([10]), rows([20, 21]), 8, VOCABULARY)
  np.testing.assert_array_equal(packed.token_id, [[2, 10, 3, 20, 21, 3, 0, 0]])
  np.testing.assert_array_equal(packed.segment_id, [[0, 0, 0, 1, 1, 1, 0, 0]])
  np.testing.assert_array_equal(packed.is_token, [[1, 1, 1, 1, 1, 1, 0, 0]])


def test_the_null_passage_is_cls_sep_sep():
  packed = pack(rows([]), rows([]), 5, VOCABULARY)
  np.testing.assert_array_equal(packed.token_id, [[2, 3, 3, 0, 0]])
  np.testing.assert_array_equal(packed.segment_id, [[0, 0, 1, 0, 0]])
  np.testing.assert_array_equal(packed.is_token, [[1, 1, 1, 0, 0]])


def test_the_null_passage_behind_a_query_is_one_more_sep():
  packed = pack(rows([10, 11]), rows([]), 6, VOCABULARY)
  np.testing.assert_array_equal(packed.token_id, [[2, 10, 11, 3, 3, 0]])
  np.testing.assert_array_equal(packed.segment_id, [[0, 0, 0, 0, 1, 0]])


def test_the_second_sequence_is_cut_first():
  packed = pack(rows([10, 11, 12], [10, 11, 12, 13, 14]), rows([20, 21, 22], [20]), 7, VOCABULARY)
  np.testing.assert_array_equal(packed.token_id, [[2, 10, 11, 12, 3, 20, 3], [2, 10, 11, 12, 13, 3, 3]])
  np.testing.assert_array_equal(packed.segment_id, [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 1]])


def test_special_tokens_alone_fit():
  assert pack(rows([10]), None, 2, VOCABULARY).token_id.tolist() == [[2, 3]]
  assert pack(rows([10]), rows([20]), 3, VOCABULARY).token_id.tolist() == [[2, 3, 3]]


def test_refuses_a_length_without_room():
  with pytest.raises(ValueError, match="length 1 has no room for the 2 special tokens"):
    pack(rows([10]), None, 1, VOCABULARY)
  with pytest.raises(ValueError, match="length 2 has no room for the 3 special tokens"):
    pack(rows([10]), rows([20]), 2, VOCABULARY)


@pytest.mark.parametrize("num_sequences", [1, 2])
@pytest.mark.parametrize("length", [3, 4, 9, 16])
def test_equals_its_twin(num_sequences, length):
  rng = np.random.default_rng(length)
  sequences = [[rng.integers(5, 99, rng.integers(12)).tolist() for _ in range(50)] for _ in range(num_sequences)]
  packed = pack(rows(*sequences[0]), rows(*sequences[1]) if num_sequences == 2 else None, length, VOCABULARY)
  expected = [bert_format(length, *row) for row in zip(*sequences)]
  for field, values in zip(packed, zip(*expected)):
    np.testing.assert_array_equal(field, values)


def test_uses_the_ids_of_the_vocabulary():
  vocabulary = Vocabulary(["a", "[MASK]", "[SEP]", "[CLS]", "[UNK]", "[PAD]"], lowercase=True)
  assert pack(rows([0]), rows([]), 6, vocabulary).token_id.tolist() == [[3, 0, 2, 2, 5, 5]]
