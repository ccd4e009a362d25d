"""The retriever: a query tower and a passage tower whose inner product is the retrieval score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from realm_jax.batch import Packed
from realm_jax.model.bert import Bert

POOLINGS = ("cls", "mean")
_COSINE_SCALE = 20.0  # Sentence-BERT's encoders are trained on 20 times the cosine (Reimers and Gurevych 2019)


class Tower(nn.Module):
  """BERT's pooled output, projected to D and layer-normalised (section 3.1 of Guu et al. 2020; SPEC of ORQA's ICT).

  pooling: "cls", the paper's; or "mean", of all tokens' hidden states, for a start from a sentence encoder. What such a
    one has learnt is kept before any training: the projection begins as the identity (if D is less than E, as the first
    D coordinates) and the norm so that scores are 20 times a cosine, but that the norm centres an embedding first.
  """

  bert: Mapping[str, Any]  # arguments of Bert; hashable, as flax.core.FrozenDict is
  retrieval_size: int
  layer_norm_epsilon: float = 1e-12  # as in the released weights; ORQA's open ICT code has 1e-3
  embedding_dropout_rate: float = 0.0  # ICT trains with 0.1
  pooling: str = "cls"

  def setup(self):
    if self.pooling not in POOLINGS:
      raise ValueError(f"model.pooling={self.pooling!r} is unknown; set it to one of {', '.join(POOLINGS)}")
    kernel_init, scale_init = nn.initializers.truncated_normal(0.02), nn.initializers.ones
    if self.pooling == "mean":
      kernel_init = _identity
      scale_init = nn.initializers.constant((_COSINE_SCALE / self.retrieval_size) ** 0.5)
    self.encoder = Bert(**self.bert)
    self.projection = nn.Dense(self.retrieval_size, kernel_init=kernel_init)
    self.layer_norm = nn.LayerNorm(self.layer_norm_epsilon, scale_init=scale_init)
    self.dropout = nn.Dropout(self.embedding_dropout_rate)

  def __call__(self, packed: Packed, *, deterministic: bool = True) -> jax.Array:
    """Packed [..., L] -> embeddings float32 [..., D]."""
    hidden = self.encoder(packed, deterministic=deterministic)
    pooled = self.encoder.pool(hidden) if self.pooling == "cls" else _mean_of_tokens(hidden, packed.is_token)
    return self.dropout(self.layer_norm(self.projection(pooled).astype(jnp.float32)), deterministic=deterministic)


def _identity(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
  del key  # both towers begin alike
  return jnp.eye(*shape, dtype=dtype)


def _mean_of_tokens(hidden: jax.Array, is_token: jax.Array) -> jax.Array:
  """[..., L, E] -> float32 [..., E], [CLS] and [SEP] among the tokens."""
  weight = is_token[..., None].astype(jnp.float32)
  return (hidden.astype(jnp.float32) * weight).sum(-2) / jnp.maximum(weight.sum(-2), 1)


class Retriever(nn.Module):
  """Both towers: one network with one set of parameters if `towers_are_shared`, else two."""

  bert: Mapping[str, Any]  # arguments of Bert; hashable, as flax.core.FrozenDict is
  retrieval_size: int
  towers_are_shared: bool = True
  layer_norm_epsilon: float = 1e-12
  embedding_dropout_rate: float = 0.0
  pooling: str = "cls"

  def setup(self):
    self.query_tower = self.make_tower()
    self.passage_tower = self.query_tower if self.towers_are_shared else self.make_tower()

  def __call__(self, query: Packed, passage: Packed) -> tuple[jax.Array, jax.Array]:
    return self.embed_queries(query), self.embed_passages(passage)

  def embed_queries(self, query: Packed, *, deterministic: bool = True) -> jax.Array:
    """Packed [..., Q] -> embeddings float32 [..., D]; deterministic: without dropout."""
    return self.query_tower(query, deterministic=deterministic)

  def embed_passages(self, passage: Packed, *, deterministic: bool = True) -> jax.Array:
    """The same for passages, Packed [..., P]; a score is the inner product of the two."""
    return self.passage_tower(passage, deterministic=deterministic)

  def make_tower(self) -> Tower:
    """A tower on its own, as the indexer needs it."""
    return Tower(
      self.bert,
      self.retrieval_size,
      self.layer_norm_epsilon,
      self.embedding_dropout_rate,
      self.pooling,
      parent=None,
    )


def passage_tower_params(retriever_params: dict[str, Any]) -> dict[str, Any]:
  """The parameters that embed passages: all that the indexer needs."""
  return retriever_params.get("passage_tower", retriever_params["query_tower"])
