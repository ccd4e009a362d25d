"""Hard negatives as they are drawn: which passages, how often, by what."""

import numpy as np
import pytest

from realm_jax.data.negatives import HardNegativeSource
from realm_jax.data.queries import SentenceSource

SETTINGS = {"seed": 3, "query_length": 48, "max_masks": 6}


def neighbours_of(store, counts=(5, 3, 1, 0)):
  """Passage i's neighbours are i + 1, i + 2, ..., as many as its count."""
  neighbour_id_NR = np.full((len(store), max(counts)), -1, np.int32)
  for i in range(len(store)):
    count = counts[i % len(counts)]
    neighbour_id_NR[i, :count] = (i + 1 + np.arange(count)) % len(store)
  return neighbour_id_NR


@pytest.fixture(scope="module")
def sentences(sample_store):
  return SentenceSource(sample_store, **SETTINGS)


def test_negatives_are_distinct_neighbours_of_the_own_passage(sample_store, sentences):
  neighbour_id_NR = neighbours_of(sample_store)
  batch = HardNegativeSource(sentences, neighbour_id_NR, 3, seed=3).draw(np.arange(400))
  for name, alone, drawn in zip(batch._fields, sentences.draw(np.arange(400)), batch):
    if name != "negative_id_BK":
      np.testing.assert_array_equal(alone, drawn)
  assert batch.negative_id_BK.shape == (400, 4) and (batch.negative_id_BK[:, 0] == -1).all()
  assert batch.negative_id_BK.dtype == np.int32
  seen = {}
  for i, negatives in zip(batch.passage_id_B.tolist(), batch.negative_id_BK[:, 1:].tolist()):
    mine = set(neighbour_id_NR[i].tolist()) - {-1}
    real = [j for j in negatives if j >= 0]
    assert set(real) <= mine and len(set(real)) == len(real) == min(3, len(mine))
    assert negatives[len(real) :] == [-1] * (3 - len(real))  # the null passage, last
    seen.setdefault(i, []).append(negatives)
  # Ten draws of three out of five: all five came up, and not the same three each time.
  for i in range(0, len(sample_store), 4):
    assert {j for row in seen[i] for j in row} == set(neighbour_id_NR[i].tolist())


def test_each_neighbour_is_drawn_as_often():
  class OnePassage:
    def draw(self, number_B):
      return type("Batch", (), {"passage_id_B": np.zeros(len(number_B), int), "_replace": lambda self, **x: x})()

  source = HardNegativeSource(OnePassage(), np.array([[7, 8, 9, -1]]), 1, seed=0)
  drawn = source.draw(np.arange(30_000))["negative_id_BK"][:, 1]
  share = np.bincount(drawn)[7:] / 30_000
  np.testing.assert_allclose(share, 1 / 3, atol=0.01)  # 3.7 standard deviations


def test_a_draw_depends_on_seed_and_number_alone(sample_store, sentences):
  source = HardNegativeSource(sentences, neighbours_of(sample_store), 2, seed=3)
  whole = source.draw(np.arange(90)).negative_id_BK
  np.testing.assert_array_equal(source.draw(np.arange(30, 60)[::-1]).negative_id_BK, whole[30:60][::-1])
  other = HardNegativeSource(sentences, neighbours_of(sample_store), 2, seed=4).draw(np.arange(90)).negative_id_BK
  assert (other != whole).any()


@pytest.mark.parametrize("num_negatives", [6, -1])
def test_as_many_negatives_as_neighbours_at_most(sample_store, sentences, num_negatives):
  message = f"num_hard_negatives={num_negatives}, expected 1 to 5, .* another --num_neighbours and --output"
  with pytest.raises(ValueError, match=message):
    HardNegativeSource(sentences, neighbours_of(sample_store), num_negatives, seed=3)
