"""Batches of queries, for tests: compared, and cut."""

import numpy as np

from realm_jax.batch import QueryBatch


def equal(one: QueryBatch, other: QueryBatch) -> None:
  for name, x, y in zip(QueryBatch._fields, one, other):
    np.testing.assert_array_equal(x, y, err_msg=name)
    assert x.dtype == y.dtype, name


def rows(batch: QueryBatch, index) -> QueryBatch:
  return QueryBatch(*(x[index] for x in batch))
