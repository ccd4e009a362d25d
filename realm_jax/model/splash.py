"""Attention by the kernel that comes with JAX for TPUs, whose weights never leave the chip."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

_LANES = 128  # of a TPU's vector unit; the kernel takes lengths in multiples of it


def attend(
  query: jax.Array, key: jax.Array, value: jax.Array, is_token: jax.Array, *, interpret: bool = False
) -> jax.Array:
  """[rows, L, H, head size] and is_token [rows, L] -> the context, of query's shape and type.

  The compiler can't split a kernel over devices, so that this is done here, over the mesh that is set (jax.set_mesh):
  rows over all axes but "tensor", heads over that one. On other platforms XLA attends, so that what was trained on TPUs
  runs anywhere.

  Args:
    interpret: run the kernel itself in Pallas' interpreter, on any platform.
  """
  run = functools.partial(_attend, interpret=interpret)
  mesh = jax.sharding.get_abstract_mesh()
  axes = [name for name in mesh.axis_names if name not in mesh.manual_axes]
  if not axes:
    return run(query, key, value, is_token)
  rows = tuple(name for name in axes if name != "tensor")
  by_head = PartitionSpec(rows, None, "tensor" if "tensor" in axes else None)
  return jax.shard_map(
    run, in_specs=(by_head, by_head, by_head, PartitionSpec(rows)), out_specs=by_head, check_vma=False
  )(query, key, value, is_token)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, is_token: jax.Array, *, interpret: bool) -> jax.Array:
  if interpret:
    return _attend_splash(query, key, value, is_token, interpret=True)
  return jax.lax.platform_dependent(query, key, value, is_token, tpu=_attend_splash, default=_attend_xla)


def _attend_xla(query: jax.Array, key: jax.Array, value: jax.Array, is_token: jax.Array) -> jax.Array:
  mask = is_token[:, None, None, :]
  return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")


def _attend_splash(
  query: jax.Array, key: jax.Array, value: jax.Array, is_token: jax.Array, *, interpret: bool = False
) -> jax.Array:
  from jax.experimental.pallas.ops.tpu import splash_attention  # noqa: PLC0415 needed on TPUs only, and experimental

  length, num_heads, head_size = query.shape[1:]
  padded_length = -(-length // _LANES) * _LANES
  # As large as divides the length: at 512 a block of float32 weights takes 1 MB of the 16 MB or more of VMEM.
  block = next(size for size in (512, 384, 256, 128) if padded_length % size == 0)
  mask = splash_attention.MultiHeadMask([splash_attention.FullMask((padded_length, padded_length))] * num_heads)
  block_sizes = splash_attention.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  kernel = splash_attention.make_splash_mha_single_device(mask, block_sizes=block_sizes, interpret=interpret)
  padding = ((0, 0), (0, padded_length - length))
  query, key, value = (
    jnp.pad(x, (*padding, (0, 0), (0, 0))).swapaxes(1, 2) for x in (query * head_size**-0.5, key, value)
  )
  is_token = jnp.pad(is_token, padding).astype(jnp.int32)
  # Padding attends to the tokens too, as in the naive form: a row without a single weight would be divided by 0.
  segment = splash_attention.SegmentIds(jnp.ones_like(is_token), is_token)
  return jax.vmap(kernel)(query, key, value, segment).swapaxes(1, 2)[:, :length]
