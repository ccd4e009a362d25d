"""How arrays lie on the mesh that is set, while a step uses them."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec


def gather(parameter: jax.Array) -> jax.Array:
  """The whole parameter on each device: where it is looked up in, the compiler would rather move what was found."""
  if "fsdp" in jax.sharding.get_abstract_mesh().axis_names:
    return jax.lax.with_sharding_constraint(parameter, PartitionSpec())
  return parameter


def split_rows(x: jax.Array) -> jax.Array:
  """Splits the first axis over the mesh's axes "data" and "fsdp", if it has them (jax.set_mesh).

  Left alone, the compiler carries over to activations how the parameters are split, and moves them to and fro.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not {"data", "fsdp"} <= set(mesh.axis_names):
    return x
  # Inside of a jax.shard_map over "data" these are the rows of one shard.
  axes = tuple(axis for axis in ("data", "fsdp") if axis not in mesh.manual_axes)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))
