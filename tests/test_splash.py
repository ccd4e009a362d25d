"""The splash attention kernel in Pallas' interpreter, against attention in NumPy and its gradients by XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from realm_jax.model import splash


def make(num_rows, length, num_tokens, dtype=np.float32):
  rng = np.random.default_rng(length)
  inputs = tuple(rng.normal(size=(num_rows, length, 2, 4)).astype(dtype) for _ in range(3))
  return inputs, np.arange(length) < np.array(num_tokens)[:, None]


def naive(query, key, value, is_token):
  logit = jnp.einsum("rqhd,rkhd->rhqk", query, key) / 2
  weight = jax.nn.softmax(jnp.where(is_token[:, None, None, :], logit, -1e9))
  return jnp.einsum("rhqk,rkhd->rqhd", weight, value)


attend = jax.jit(functools.partial(splash.attend, interpret=True))


@pytest.mark.parametrize(("length", "num_tokens"), [(7, [7, 1]), (130, [130, 3])])
def test_values_are_those_of_numpy(length, num_tokens):
  """One block and two, full and nearly empty; every position attends, padding too."""
  (query, key, value), is_token = make(2, length, num_tokens)
  context = np.asarray(attend(query, key, value, is_token))
  for row, n in enumerate(num_tokens):
    for head in range(2):
      weight = softmax(query[row, :, head] @ key[row, :n, head].T / 2, -1)
      np.testing.assert_allclose(context[row, :, head], weight @ value[row, :n, head], rtol=0, atol=1e-6)


def test_gradients_are_those_of_the_naive_form():
  inputs, is_token = make(3, 130, [130, 40, 1])

  def gradients(attend):
    return jax.jit(jax.grad(lambda *x: (attend(*x, is_token) ** 3).sum(), argnums=(0, 1, 2)))(*inputs)

  with jax.default_matmul_precision("highest"):
    expected = gradients(naive)
    for ours, theirs in zip(gradients(functools.partial(splash.attend, interpret=True)), expected):
      assert np.abs(theirs).max() > 1
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


def test_padding_has_no_say_and_gives_no_nan():
  (query, key, value), is_token = make(3, 20, [20, 6, 0])
  context = np.asarray(attend(query, key, value, is_token))
  assert np.isfinite(context).all()
  other = np.where(is_token[..., None, None], value, 9)
  np.testing.assert_array_equal(np.asarray(attend(query, key, other, is_token))[:2], context[:2])


def test_elsewhere_xla_attends():
  """The same numbers, without the interpreter and its loops."""
  inputs, is_token = make(2, 7, [7, 3])
  run = jax.jit(splash.attend).lower(*inputs, is_token).compile()
  assert "while" not in run.as_text()
  np.testing.assert_allclose(run(*inputs, is_token), attend(*inputs, is_token), rtol=0, atol=1e-6)


def test_sixteen_bits_stay_sixteen_bits():
  inputs, is_token = make(1, 7, [7], jnp.bfloat16)
  context = attend(*inputs, is_token)
  assert context.dtype == jnp.bfloat16
  exact = naive(*(np.float32(x) for x in inputs), is_token)
  np.testing.assert_allclose(np.float32(context), exact, rtol=0, atol=2e-2)
