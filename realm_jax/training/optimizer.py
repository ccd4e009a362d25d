"""BERT's optimizer and schedule, from optax' pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def warmup_steps(num_steps: int) -> int:
  """Google's formula: min(10000, max(100, T / 10)) (section 1.8)."""
  return min(10_000, max(100, num_steps // 10))


def bert_schedule(learning_rate: float, num_steps: int, num_warmup_steps: int) -> optax.Schedule:
  """Linear from 0 during the warm-up, then lr * (1 - t / T): the decay counts from step 0."""

  def schedule(step):
    decay = learning_rate * jnp.maximum(0.0, 1.0 - step / num_steps)
    return jnp.where(step < num_warmup_steps, learning_rate * step / max(1, num_warmup_steps), decay)

  return schedule


class MomentsState(NamedTuple):
  """Running means of the gradient and of its square, each a tree like the parameters."""

  mu: Any
  nu: Any


def scale_by_moments(b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-6) -> optax.GradientTransformation:
  """Adam's m / (sqrt(v) + epsilon) without bias correction, as in BERT's AdamWeightDecayOptimizer."""

  def init(params):
    return MomentsState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

  def update(grads, state, params=None):
    del params
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.nu, grads)
    return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu), MomentsState(mu, nu)

  return optax.GradientTransformation(init, update)


def bert_optimizer(
    *, learning_rate: float, num_steps: int, num_warmup_steps: int, weight_decay: float, max_grad_norm: float,
    corrects_bias: bool, frozen: Sequence[str] = (), retriever_scale: float = 1.0,
) -> optax.GradientTransformation:  # fmt: skip
  """Clip by the global norm, Adam, decoupled weight decay except on biases and layer norms, BERT's schedule.

  frozen: subtrees of the parameters, by name, that stay as they are to the bit.
  retriever_scale: the retriever's learning rate over the others'; 0 freezes it.
  """
  if retriever_scale == 0:
    frozen = (*frozen, "retriever")
  num_warmup_steps = warmup_steps(num_steps) if num_warmup_steps < 0 else num_warmup_steps
  trained = optax.chain(
    optax.clip_by_global_norm(max_grad_norm),
    optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-6) if corrects_bias else scale_by_moments(),
    optax.add_decayed_weights(weight_decay, mask=decays),
    optax.scale_by_learning_rate(bert_schedule(learning_rate, num_steps, num_warmup_steps)),
    optax.masked(optax.scale(retriever_scale), lambda params: _is_below(("retriever",), params)),
  )
  return optax.multi_transform(
    {"trained": trained, "frozen": optax.set_to_zero()},
    lambda params: jax.tree.map(lambda is_frozen: "frozen" if is_frozen else "trained", _is_below(frozen, params)),
  )


def configured_optimizer(config: ConfigDict, frozen: Sequence[str]) -> optax.GradientTransformation:
  """The optimizer that a config describes, with some parameters left as they are."""
  return bert_optimizer(
    learning_rate=config.optimizer.learning_rate,
    num_steps=config.num_steps,
    num_warmup_steps=config.optimizer.warmup_steps,
    weight_decay=config.optimizer.weight_decay,
    max_grad_norm=config.optimizer.max_grad_norm,
    corrects_bias=config.optimizer.corrects_bias,
    retriever_scale=config.optimizer.retriever_scale,
    frozen=frozen,
  )


def _is_below(names: Sequence[str], params: Any) -> Any:
  """True for the parameters in subtrees of these names."""
  return jax.tree_util.tree_map_with_path(lambda path, _: any(key.key in names for key in path), params)


def decays(params: Any) -> Any:
  """True for the parameters that weight decay shrinks: all but biases and layer norms."""

  def is_decayed(path, _):
    names = [str(key.key) for key in path]
    return names[-1] != "bias" and not any("layer_norm" in name for name in names)

  return jax.tree_util.tree_map_with_path(is_decayed, params)
