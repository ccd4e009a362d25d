"""Embeds all passages of a corpus with one set of parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from realm_jax.data.packing import pack
from realm_jax.data.passages import PassageStore
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.index.host_arrays import HostRows, whole
from realm_jax.index.hosts import settle
from realm_jax.model.retriever import Tower

_LENGTH_STEP = 32


def embed_passages(
  tower: Tower,
  params: Any,
  store: PassageStore,
  vocabulary: Vocabulary,
  passage_id_N: np.ndarray | None = None,
  *,
  batch_size: int = 256,
  progress: Callable[[Iterable[int]], Iterable[int]] = lambda batches: batches,
) -> np.ndarray:
  """Passages, all or those with these numbers, each as [CLS] title [SEP] body [SEP] -> bfloat16 [N, D].

  All devices share each batch, those of all hosts of a job: each host calls this, and has all embeddings. Passages are
  taken by length, and a batch is padded to its own longest one (in steps of 32 tokens, so that there are few
  compilations): short passages cost what they are worth.

  Args:
    params: the passage tower's parameters.
    batch_size: passages at once, on all devices together.
    progress: wraps the number of passages before each batch, to show how far it is.

  Raises:
    ValueError: progress left out a batch, or changed their order.
  """
  if passage_id_N is None:
    passage_id_N = np.arange(len(store))
  num_passages = len(passage_id_N)
  emb_ND = np.empty((num_passages, tower.retrieval_size), ml_dtypes.bfloat16)
  if num_passages == 0:
    return emb_ND
  mesh = jax.sharding.Mesh(np.array(jax.devices()), "passages")
  split, everywhere = NamedSharding(mesh, PartitionSpec("passages")), NamedSharding(mesh, PartitionSpec())
  # The last batch is filled up: the same shapes again, and a share for each device.
  batch_size = -(-min(batch_size, num_passages) // mesh.size) * mesh.size
  length_N = _padded_length(store, passage_id_N)
  order = np.argsort(length_N, kind="stable")
  params = jax.device_put(params, everywhere)
  rows = HostRows(split, batch_size)
  num_due = 0
  pending: tuple[np.ndarray, jax.Array] | None = None
  for first in progress(range(0, num_passages, batch_size)):
    if first != num_due:
      raise ValueError(_out_of_order(num_due, f"a batch that begins with passage {first}"))
    batch = order[np.minimum(np.arange(first, first + batch_size), num_passages - 1)]
    length = int(length_N[batch].max())
    mine = passage_id_N[batch[rows.rows]]
    packed = pack(store.title_tokens(mine), store.body_tokens(mine), length, vocabulary)
    emb_BD = _embed(tower, everywhere, params, rows.put(packed))
    settle(emb_BD)
    # What the device did meanwhile is fetched while it does the next.
    if pending is not None:
      emb_ND[pending[0]] = whole(pending[1])
    pending = batch, emb_BD
    num_due = first + batch_size
  if pending is None or num_due < num_passages:
    raise ValueError(_out_of_order(num_due, "the end"))
  emb_ND[pending[0]] = whole(pending[1])
  return emb_ND


def _padded_length(store: PassageStore, passage_id_N: np.ndarray) -> np.ndarray:
  """Tokens of each passage as it is packed, with [CLS] and two [SEP], up to the next multiple of 32."""
  length_N = store.title_length_N[passage_id_N].astype(np.int32) + store.body_length_N[passage_id_N] + 3
  return np.minimum(-(-length_N // _LENGTH_STEP) * _LENGTH_STEP, store.passage_length)


def _out_of_order(due: int, came: str) -> str:
  return f"passage {due} was due for embedding, {came} came: progress must give every batch once, in order"


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(tower: Tower, everywhere: NamedSharding, params: Any, packed):
  # emb_BD is split over B; each device gets all of it, a few kilobytes.
  return jax.lax.with_sharding_constraint(tower.apply({"params": params}, packed), everywhere)
