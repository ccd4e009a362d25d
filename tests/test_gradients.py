"""What benchmarks/gradients.py says of gradients: hand-worked cases."""

import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / "benchmarks" / "gradients.py"
spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
gradients = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gradients)


def test_signal_and_noise_by_hand():
  mean = gradients.mean_of(map(jnp.array, ([1.0, 5.0], [3.0, 5.0])))
  np.testing.assert_allclose(mean.mean, [2, 5])
  np.testing.assert_allclose(mean.half, [[1, 5], [3, 5]])
  # The first component: 1 and 3 have the variance 2, their mean half of it; 1 x 3 is an unbiased guess of the square.
  np.testing.assert_allclose(mean.squared_norm(), 3 + 25)
  np.testing.assert_allclose(mean.noise_scale(16), 16 * 2 / 28)
  first = mean.only(jnp.array([1.0, 0.0]))
  np.testing.assert_allclose(first.squared_norm(), 3)
  np.testing.assert_allclose(first.noise_scale(16), 16 * 2 / 3)


def test_no_signal_is_an_infinite_noise_scale():
  assert gradients.mean_of(map(jnp.array, ([1.0], [-1.0]))).noise_scale(16) == np.inf


def test_the_noise_scale_of_planted_gradients():
  # Batches of 16 examples whose gradients have the mean 1 and the deviation 8 in each of 1,000 components.
  rng = np.random.default_rng(0)
  batches = rng.normal(1, 8 / np.sqrt(16), (64, 1000))
  mean = gradients.mean_of(map(jnp.array, batches))
  assert mean.noise_scale(16) == pytest.approx(64, rel=0.1)


def test_word_embeddings_are_told_apart():
  params = {"encoder": {"word_embeddings": {"embedding": jnp.ones((2, 2))}, "dense": jnp.ones(3)}}
  np.testing.assert_array_equal(gradients.is_word_embedding(params), [0, 0, 0, 1, 1, 1, 1])
