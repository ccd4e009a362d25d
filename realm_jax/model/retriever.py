"""The retriever: a query tower and a passage tower whose inner product is the retrieval score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from realm_jax.batch import Packed
from realm_jax.model.bert import Bert


class Tower(nn.Module):
  """BERT's pooled output, projected to D and layer-normalised (section 3.1 of Guu et al. 2020; SPEC of ORQA's ICT)."""

  bert: Mapping[str, Any]  # arguments of Bert; hashable, as flax.core.FrozenDict is
  retrieval_size: int
  layer_norm_epsilon: float = 1e-12  # as in the released weights; ORQA's open ICT code has 1e-3
  embedding_dropout_rate: float = 0.0  # ICT trains with 0.1

  def setup(self):
    self.encoder = Bert(**self.bert)
    self.projection = nn.Dense(self.retrieval_size, kernel_init=nn.initializers.truncated_normal(0.02))
    self.layer_norm = nn.LayerNorm(self.layer_norm_epsilon)
    self.dropout = nn.Dropout(self.embedding_dropout_rate)

  def __call__(self, packed: Packed, *, deterministic: bool = True) -> jax.Array:
    """Packed [..., L] -> embeddings float32 [..., D]."""
    pooled = self.encoder.pool(self.encoder(packed, deterministic=deterministic))
    return self.dropout(self.layer_norm(self.projection(pooled).astype(jnp.float32)), deterministic=deterministic)


class Retriever(nn.Module):
  """Both towers: one network with one set of parameters if `towers_are_shared`, else two."""

  bert: Mapping[str, Any]  # arguments of Bert; hashable, as flax.core.FrozenDict is
  retrieval_size: int
  towers_are_shared: bool = True
  layer_norm_epsilon: float = 1e-12
  embedding_dropout_rate: float = 0.0

  def setup(self):
    self.query_tower = self.make_tower()
    self.passage_tower = self.query_tower if self.towers_are_shared else self.make_tower()

  def __call__(self, query: Packed, passage: Packed) -> tuple[jax.Array, jax.Array]:
    return self.embed_queries(query), self.embed_passages(passage)

  def embed_queries(self, query: Packed, *, deterministic: bool = True) -> jax.Array:
    return self.query_tower(query, deterministic=deterministic)

  def embed_passages(self, passage: Packed, *, deterministic: bool = True) -> jax.Array:
    return self.passage_tower(passage, deterministic=deterministic)

  def make_tower(self) -> Tower:
    """A tower on its own, as the indexer needs it."""
    return Tower(self.bert, self.retrieval_size, self.layer_norm_epsilon, self.embedding_dropout_rate, parent=None)


def passage_tower_params(retriever_params: dict[str, Any]) -> dict[str, Any]:
  """The parameters that embed passages: all that the indexer needs."""
  return retriever_params.get("passage_tower", retriever_params["query_tower"])
