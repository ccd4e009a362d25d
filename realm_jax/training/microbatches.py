"""A batch in parts, one after the other: the activations of one part are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

Objective = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]

_SHARDED = PartitionSpec(None, "data")  # of parts: their rows


def in_microbatches(
  objective: Objective, num_microbatches: int, weight_of: Callable[[Any], jax.Array] = lambda batch: jnp.ones(())
) -> Objective:
  """The objective of a whole batch, computed in parts; its gradient too is added up as they come.

  On a mesh (jax.set_mesh) the devices along "data" each add up their own rows' gradient, and all of them theirs once,
  behind the last part. Each part on each of them has dropout masks of its own.

  Args:
    weight_of: a part's weight in the mean over all, for the loss, the gradient and the metrics.
  """
  if num_microbatches == 1:
    return objective

  @jax.custom_vjp
  def loss_of(params, batch, key):
    return gradient_of(params, batch, key)[0]

  def gradient_of(params, batch, key):
    metrics, grads = each_shard(add_up, PartitionSpec())(params, *split_batch(batch, key, num_microbatches))
    return (metrics["loss"], metrics), grads

  def add_up(params, parts, keys):
    weights = jax.vmap(weight_of)(parts)
    weights = weights / jnp.maximum(_sum_of_shards(weights.sum()), 1e-9)

    def add(total, part):
      batch, key, weight = part
      (_, metrics), grads = jax.value_and_grad(objective, has_aux=True)(params, batch, key)
      return jax.tree.map(lambda t, x: t + weight * x, total, (metrics, grads)), None

    first = jax.tree.map(lambda x: x[0], (parts, keys))
    metrics = jax.eval_shape(lambda: objective(params, *first)[1])
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (metrics, params))
    total, _ = jax.lax.scan(add, zero, (parts, keys, weights))
    return _sum_of_shards(total)

  loss_of.defvjp(gradient_of, lambda grads, cotangent: (jax.tree.map(lambda g: cotangent[0] * g, grads), None, None))
  return loss_of


def map_microbatches(function: Callable[[Any, Any, jax.Array], Any], params: Any, batch: Any, key: jax.Array, num: int):
  """function(params, part, key) -> arrays [rows, ...], for each part of a batch; in the order of the batch's rows.

  The backward pass computes each part anew; on a mesh it adds up the parameters' gradient over devices once, as
  `in_microbatches`.
  """

  def run(params, parts, keys):
    return jax.lax.map(lambda part: jax.checkpoint(function)(params, *part), (parts, keys))

  results = each_shard(run, _SHARDED)(params, *split_batch(batch, key, num))
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), results)


def split_batch(batch: Any, key: jax.Array, num_parts: int) -> tuple[Any, jax.Array]:
  """[B, ...] -> [parts, B / parts, ...], each part with every so-manieth row, so that no row changes its device; and
  keys [parts, devices along "data"]."""
  parts = jax.tree.map(lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), batch)
  return parts, jax.random.split(key, (num_parts, jax.sharding.get_abstract_mesh().shape.get("data", 1)))


def each_shard(function: Callable[..., Any], out_specs: PartitionSpec) -> Callable[..., Any]:
  """function(params, parts, keys [parts]) for the rows of each device along "data"; the compiler splits the rest."""

  def run(params, parts, keys):
    return function(params, parts, keys[:, 0])

  if "data" not in jax.sharding.get_abstract_mesh().axis_names:
    return run
  return jax.shard_map(
    run,
    in_specs=(PartitionSpec(), _SHARDED, _SHARDED),
    out_specs=out_specs,
    axis_names={"data"},
    check_vma=False,
  )


def _sum_of_shards(tree: Any) -> Any:
  """A collective, where there are several: all of a gradient moves."""
  return jax.lax.psum(tree, "data") if "data" in jax.sharding.get_abstract_mesh().manual_axes else tree
