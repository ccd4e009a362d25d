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
  begin: int = 0,
  end: int | None = None,
) -> np.ndarray:
  """Passages begin to end - 1 (None: all), each as [CLS] title [SEP] body [SEP] -> bfloat16 [end - begin, D].

  Args:
    params: the passage tower's parameters.
    batch_size: passages on the device at once.
    progress: wraps the batches' first passages, to show how far it is.

  Raises:
    ValueError: progress left out a batch, or changed their order.
  """
  end = len(store) if end is None else end
  batch_size = min(batch_size, end - begin)
  params = jax.device_put(params)
  emb_ND = None
  num_embedded = begin
  for first in progress(range(begin, end, batch_size)):
    if first != num_embedded:
      raise ValueError(_out_of_order(num_embedded, f"a batch that begins with passage {first}"))
    # The last batch is filled up, so that there is one shape and one compilation.
    passage_id = np.minimum(np.arange(first, first + batch_size), end - 1)
    packed = pack(store.title_tokens(passage_id), store.body_tokens(passage_id), store.passage_length, vocabulary)
    emb_BD = np.asarray(jax.device_get(_embed(tower, params, jax.device_put(packed))))
    if emb_ND is None:
      emb_ND = np.empty((end - begin, emb_BD.shape[1]), ml_dtypes.bfloat16)
    emb_ND[first - begin : first - begin + batch_size] = emb_BD[: end - first]
    num_embedded = first + batch_size
  if emb_ND is None or num_embedded < end:
    raise ValueError(_out_of_order(num_embedded, "the end"))
  return emb_ND


def _out_of_order(due: int, came: str) -> str:
  return f"passage {due} was due for embedding, {came} came: progress must give every batch once, in order"


@functools.partial(jax.jit, static_argnums=0)
def _embed(tower: Tower, params: Any, packed):
  return tower.apply({"params": params}, packed)
