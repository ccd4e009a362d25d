"""Random numbers that depend on (seed, stream, example number) alone, so that any example can be drawn again."""

from __future__ import annotations

import functools

import numpy as np


def uniform(seed: int, stream: int, number: np.ndarray) -> np.ndarray:
  """float64 in [0, 1), one for each example number; streams are independent."""
  x = _mix(np.asarray(seed % 2**63, np.uint64) * np.uint64(2) + np.uint64(1))
  x = _mix(x ^ np.uint64(stream))
  x = _mix(x + np.asarray(number).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
  return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(seed: int, number: np.ndarray, size: int) -> np.ndarray:
  """Example number -> index below `size`: every run of `size` numbers (an epoch) visits all, in an order of its own."""
  number = np.asarray(number)
  epoch, position = np.divmod(number, size)
  index = np.empty_like(number)
  for e in np.unique(epoch):
    index[epoch == e] = _permutation(seed, int(e), size)[position[epoch == e]]
  return index


@functools.lru_cache(maxsize=2)  # a batch spans at most two epochs, unless the corpus is smaller than the batch
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(size)


def _mix(x: np.ndarray) -> np.ndarray:
  """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
  with np.errstate(over="ignore"):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
