"""Draws hard negatives: passages that look like a query's own and are not."""

from __future__ import annotations

import numpy as np

from realm_jax.batch import NO_PASSAGE, NULL_PASSAGE, QueryBatch
from realm_jax.data.draws import uniform
from realm_jax.data.queries import QuerySource

_STREAM = 9  # of the random numbers; the sources use 1 to 8


class HardNegativeSource:
  """Queries of another source, each with some of its passage's neighbours, drawn anew for each example."""

  def __init__(self, source: QuerySource, neighbour_id_NR: np.ndarray, num_negatives: int, *, seed: int):
    """neighbour_id_NR has the rows of passages that are similar to each of the N, -1 where there are fewer than R."""
    self._source, self._neighbour_id_NR, self._seed = source, neighbour_id_NR, seed
    self._num_negatives = num_negatives
    num_neighbours = neighbour_id_NR.shape[1]
    if not 1 <= num_negatives <= num_neighbours:
      raise ValueError(
        f"num_hard_negatives={num_negatives}, expected 1 to {num_neighbours}, the neighbours that were mined for "
        "each passage; set it so, or run realm mine_negatives with another --num_neighbours and --output"
      )

  def draw(self, number_B: np.ndarray) -> QueryBatch:
    """No negative comes twice for one query; the null passage stands where a passage has too few neighbours."""
    batch = self._source.draw(number_B)
    neighbour_id_BR = self._neighbour_id_NR[batch.passage_id_B]
    num_neighbours = neighbour_id_BR.shape[1]
    order_BR = uniform(self._seed, _STREAM, number_B[:, None] * num_neighbours + np.arange(num_neighbours))
    order_BR[neighbour_id_BR < 0] = 1.0  # those that are not there come last
    chosen_BK = np.argsort(order_BR, axis=1, kind="stable")[:, : self._num_negatives]
    negative_id_BK = np.take_along_axis(neighbour_id_BR, chosen_BK, 1)
    negative_id_BK = np.where(negative_id_BK < 0, NULL_PASSAGE, negative_id_BK).astype(np.int32)
    return batch._replace(negative_id_BK=np.insert(negative_id_BK, 0, NO_PASSAGE, axis=1))
