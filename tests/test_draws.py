"""Draws: numbers that depend on (seed, stream, example number) alone."""

import numpy as np
import pytest

from realm_jax.data.draws import shuffled, uniform

_MASK = 2**64 - 1


def splitmix(x: int) -> int:
  """The twin, in whole numbers without a limit: the finaliser of splitmix64."""
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
  return x ^ (x >> 31)


def twin(seed: int, stream: int, number: int) -> float:
  x = splitmix(splitmix(2 * seed + 1) ^ stream)
  return (splitmix((x + number * 0x9E3779B97F4A7C15) & _MASK) >> 11) / 2**53


def test_the_twin_is_splitmix64():
  # The first output for seed 0, as published: 0xE220A8397B1DCDAF.
  assert splitmix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("seed", [0, 1, 2**40, 2**63 - 1])
def test_uniform_equals_its_twin(seed):
  numbers = [0, 1, 2, 1000, 2**31, 2**40]
  for stream in (0, 1, 7):
    expected = [twin(seed, stream, n) for n in numbers]
    np.testing.assert_array_equal(uniform(seed, stream, np.array(numbers)), expected)


def test_uniform_depends_on_nothing_else():
  numbers = np.arange(100)
  together = uniform(3, 1, numbers)
  np.testing.assert_array_equal(uniform(3, 1, numbers[::-1]), together[::-1])
  np.testing.assert_array_equal(uniform(3, 1, numbers[37:40]), together[37:40])
  assert together.dtype == np.float64


def test_uniform_is_uniform_and_streams_are_independent():
  numbers = np.arange(20_000)
  draws = np.stack([uniform(seed, stream, numbers) for seed in (0, 1) for stream in (1, 2)])
  assert 0 <= draws.min() and draws.max() < 1
  # Four standard deviations: of a mean of 20,000 draws, of a count of 2,000, of a correlation.
  np.testing.assert_allclose(draws.mean(1), 0.5, atol=4 * (1 / 12 / 20_000) ** 0.5)
  counts = np.stack([np.histogram(row, 10, (0, 1))[0] for row in draws])
  np.testing.assert_allclose(counts, 2000, atol=4 * (2000 * 0.9) ** 0.5)
  np.testing.assert_allclose(np.corrcoef(draws), np.eye(4), atol=4 / 20_000**0.5)


def test_every_epoch_visits_all_once_in_its_own_order():
  index = shuffled(5, np.arange(300), 100).reshape(3, 100)
  np.testing.assert_array_equal(np.sort(index, 1), np.tile(np.arange(100), (3, 1)))
  assert len({tuple(row) for row in index}) == 3
  assert not np.array_equal(index[0], np.arange(100))


def test_shuffled_depends_on_nothing_else():
  index = shuffled(5, np.arange(1000), 7)  # many epochs in one call
  np.testing.assert_array_equal(np.sort(index[:994].reshape(-1, 7), 1), np.tile(np.arange(7), (142, 1)))
  numbers = np.array([993, 0, 500, 0, 13])
  np.testing.assert_array_equal(shuffled(5, numbers, 7), index[numbers])
  assert not np.array_equal(shuffled(6, np.arange(1000), 7), index)


def test_one_thing_is_always_itself():
  np.testing.assert_array_equal(shuffled(0, np.arange(5), 1), np.zeros(5))
