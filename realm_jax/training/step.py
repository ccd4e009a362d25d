"""One optimizer step: the same for every stage."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from realm_jax.batch import Packed
from realm_jax.training.microbatches import Objective


class TrainState(NamedTuple):
  """All that a step changes."""

  step: jax.Array  # int32, updates made
  params: Any
  opt_state: optax.OptState


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
  """Step 0, with the optimizer's state for these parameters."""
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


@functools.partial(jax.jit, static_argnames=("objective", "optimizer"), donate_argnums=0)
def train_step(
  state: TrainState, batch: Any, key: jax.Array, *, objective: Objective, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update. The dropout masks depend on (key, step) alone."""
  grads, metrics = jax.grad(objective, has_aux=True)(state.params, batch, jax.random.fold_in(key, state.step))
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  metrics = metrics | {"grad_norm": optax.global_norm(grads), "num_tokens": count_tokens(batch)}
  return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics


def count_tokens(batch: Any) -> jax.Array:
  """Tokens that a step reads, padding left out."""
  leaves = jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, Packed))
  parts = [x.is_token for x in leaves if isinstance(x, Packed)]
  return sum((x.sum(dtype=jnp.int32) for x in parts), jnp.zeros((), jnp.int32))
