"""The ledger's set of 64-bit numbers, against Python's."""

import numpy as np

from realm_jax.data.ledger import _HashSet


def test_came_before_as_in_a_set():
  rng = np.random.default_rng(0)
  seen, hash_set = set(), _HashSet()
  for _ in range(200):
    numbers = rng.integers(0, 4000, rng.integers(0, 40)).astype(np.uint64)
    expected = []
    for number in numbers.tolist():
      expected.append(number in seen)
      seen.add(number)
    assert hash_set.add(numbers).tolist() == expected
  assert sum(map(len, hash_set._levels)) >= len(seen)
  assert len(hash_set._levels) <= 12
