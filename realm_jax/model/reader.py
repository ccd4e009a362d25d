"""The reader: the knowledge-augmented encoder, with a masked-word head for pre-training and a span head for answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.batch import Packed
from realm_jax.model.bert import Bert, MaskedWordHead

_MASKED_LOGIT = -10_000.0  # Google's; finite, so that no product with 0 is NaN


class Reader(nn.Module):
  """Reads a query and a passage together."""

  bert: Mapping[str, Any]  # arguments of Bert; hashable, as flax.core.FrozenDict is
  span_hidden_size: int = 256
  max_span_width: int = 10
  span_layer_norm_epsilon: float = 1e-3

  def setup(self):
    self.encoder = Bert(**self.bert)
    self.masked_word_head = MaskedWordHead(
      self.bert["vocab_size"],
      self.encoder.layer_norm_epsilon,
      self.encoder.gelu_is_approximate,
      self.encoder.dtype,
    )
    self.span_head = SpanHead(self.span_hidden_size, self.max_span_width, self.span_layer_norm_epsilon)

  def __call__(self, joint: Packed, mask_position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Runs both heads, for initialisation."""
    return self.masked_word_log_prob(joint, mask_position), self.span_logit(joint, joint.is_token)

  def masked_word_log_prob(self, joint: Packed, mask_position: jax.Array, *, deterministic: bool = True) -> jax.Array:
    """Packed [..., J], positions [..., M] -> log p(word | query, passage) [..., M, V]."""
    hidden = self.encoder(joint, deterministic=deterministic)
    hidden = jnp.take_along_axis(hidden, mask_position[..., None], axis=-2)
    return self.masked_word_head(hidden, self.encoder.word_embeddings.embedding)

  def span_logit(self, joint: Packed, is_body: jax.Array, *, deterministic: bool = True) -> jax.Array:
    """Packed [..., J], where answers may stand [..., J] -> logits [..., S], in the order of `span_candidates`."""
    return self.span_head(self.encoder(joint, deterministic=deterministic), is_body)


class SpanHead(nn.Module):
  """Scores every span of at most `max_width` tokens: MLP(start + end) (section 2.3 of ORQA)."""

  hidden_size: int
  max_width: int
  layer_norm_epsilon: float

  @nn.compact
  def __call__(self, hidden: jax.Array, is_body: jax.Array) -> jax.Array:
    def dense(size, name):
      return nn.Dense(size, kernel_init=nn.initializers.truncated_normal(0.02), name=name)

    # All starts against all ends of one width are two slices: a gather's gradient is a scatter, which takes far longer.
    length = hidden.shape[-2]
    widths = range(min(self.max_width, length))
    start_half, end_half = jnp.split(dense(2 * self.hidden_size, "endpoint")(hidden.astype(jnp.float32)), 2, axis=-1)
    endpoints = [start_half[..., : length - w, :] + end_half[..., w:, :] for w in widths]
    is_inside = [is_body[..., : length - w] & is_body[..., w:] for w in widths]
    x = jax.nn.relu(jnp.concatenate(endpoints, -2))
    logit = dense(1, "score")(nn.LayerNorm(self.layer_norm_epsilon, name="layer_norm")(x))[..., 0]
    return jnp.where(jnp.concatenate(is_inside, -1), logit, logit + _MASKED_LOGIT)


def span_candidates(length: int, max_width: int) -> tuple[np.ndarray, np.ndarray]:
  """All spans of 1 to max_width tokens in `length`, by width, then start: first and last positions, each [S].

  S = max_width * length - max_width * (max_width - 1) / 2 = 3155 for 320 and 10.
  """
  pairs = [(start, start + width) for width in range(max_width) for start in range(length - width)]
  start, end = np.array(pairs, np.int32).T
  return start, end


def span_is_gold(first_BKA: jax.Array, last_BKA: jax.Array, length: int, max_width: int) -> jax.Array:
  """Which of the `span_candidates` are one of A spans, given by their first and last positions: bool [B, K, S]."""
  start_S, end_S = span_candidates(length, max_width)
  return ((first_BKA[..., None] == start_S) & (last_BKA[..., None] == end_S)).any(-2)
