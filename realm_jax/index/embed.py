"""Embeds all passages of a corpus with one set of parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_dtypes
import numpy as np

from realm_jax.data.packing import pack
from realm_jax.data.passages import PassageStore
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.model.retriever import Tower


def embed_passages(
  tower: Tower,
  params: Any,
  store: PassageStore,
  vocabulary: Vocabulary,
  *,
  batch_size: int = 256,
  progress: Callable[[Iterable[int]], Iterable[int]] = lambda batches: batches,
) -> np.ndarray:
  """Every passage as [CLS] title [SEP] body [SEP] -> bfloat16 [N, D].

  Args:
    params: the passage tower's parameters.
    batch_size: passages on the device at once.
    progress: wraps the batches' first passages, to show how far it is.

  Raises:
    ValueError: progress left out a batch, or changed their order.
  """
  num_passages = len(store)
  batch_size = min(batch_size, num_passages)
  params = jax.device_put(params)
  emb_ND = None
  num_embedded = 0
  for begin in progress(range(0, num_passages, batch_size)):
    if begin != num_embedded:
      raise ValueError(_out_of_order(num_embedded, f"a batch that begins with passage {begin}"))
    # The last batch is filled up, so that there is one shape and one compilation.
    passage_id = np.minimum(np.arange(begin, begin + batch_size), num_passages - 1)
    packed = pack(store.title_tokens(passage_id), store.body_tokens(passage_id), store.passage_length, vocabulary)
    emb_BD = np.asarray(jax.device_get(_embed(tower, params, jax.device_put(packed))))
    if emb_ND is None:
      emb_ND = np.empty((num_passages, emb_BD.shape[1]), ml_dtypes.bfloat16)
    emb_ND[begin : begin + batch_size] = emb_BD[: num_passages - begin]
    num_embedded = begin + batch_size
  if emb_ND is None or num_embedded < num_passages:
    raise ValueError(_out_of_order(num_embedded, "the end"))
  return emb_ND


def _out_of_order(due: int, came: str) -> str:
  return f"passage {due} was due for embedding, {came} came: progress must give every batch once, in order"


@functools.partial(jax.jit, static_argnums=0)
def _embed(tower: Tower, params: Any, packed):
  return tower.apply({"params": params}, packed)
