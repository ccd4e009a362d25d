"""BERT's encoder and masked-word head (Devlin et al. 2019), of any size."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from realm_jax.batch import Packed
from realm_jax.model import splash
from realm_jax.model.layout import gather, split_rows

ATTENTIONS = ("naive", "xla", "cudnn", "splash")
REMATS = {"none": None, "layer": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}

_init = nn.initializers.truncated_normal(0.02)


class Bert(nn.Module):
  """Post-layer-norm transformer encoder with learned positions.

  attention_dropout_rate: of the attention weights; -1: dropout_rate.
  attention: "naive", the default because nothing is faster on a CPU; an implementation of
    jax.nn.dot_product_attention: "xla", "cudnn" (GPUs, 16 bits); or "splash", the kernel that comes with JAX for TPUs.
    Where its kind of device is missing, each of the last two is the same as "xla", so that what was trained with it
    runs anywhere. All but the first know no dropout of attention weights: where that is active, attention is naive.
  remat: what the backward pass computes anew instead of keeping it: "none"; "layer": all inside each layer; "dots":
    the same, but for the results of dense products.
  """

  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  mlp_size: int
  max_length: int = 512
  dropout_rate: float = 0.1
  attention_dropout_rate: float = -1.0
  layer_norm_epsilon: float = 1e-12
  gelu_is_approximate: bool = True  # its tanh form, as in Google's BERT; HF's BERTs were trained on with the exact one
  dtype: Any = jnp.float32
  attention: str = "naive"
  remat: str = "none"

  def setup(self):
    if self.remat not in REMATS:
      raise ValueError(f"model.remat={self.remat!r} is unknown; set it to one of {', '.join(REMATS)}")
    if self.attention not in ATTENTIONS:
      raise ValueError(f"model.attention={self.attention!r} is unknown; set it to one of {', '.join(ATTENTIONS)}")

    def embed(size):
      return nn.Embed(size, self.hidden_size, embedding_init=_init, dtype=self.dtype)

    self.word_embeddings = embed(self.vocab_size)
    self.position_embeddings = embed(self.max_length)
    self.token_type_embeddings = embed(2)
    self.layer_norm = nn.LayerNorm(self.layer_norm_epsilon, dtype=self.dtype)
    self.dropout = nn.Dropout(self.dropout_rate)
    layer = Layer
    if self.remat != "none":  # argument 3: deterministic
      layer = nn.remat(Layer, static_argnums=3, policy=REMATS[self.remat])
    self.layers = [
      layer(
        self.num_heads,
        self.mlp_size,
        self.dropout_rate,
        self.dropout_rate if self.attention_dropout_rate < 0 else self.attention_dropout_rate,
        self.layer_norm_epsilon,
        self.gelu_is_approximate,
        self.dtype,
        self.attention,
        name=f"layer_{i}",
      )
      for i in range(self.num_layers)
    ]  # fmt: skip
    self.pooler = nn.Dense(self.hidden_size, kernel_init=_init, dtype=self.dtype)

  def __call__(self, packed: Packed, *, deterministic: bool = True) -> jax.Array:
    """Packed [..., L] -> hidden states [..., L, E]."""
    length = packed.token_id.shape[-1]
    if length > self.max_length:
      raise ValueError(f"a sequence of {length} tokens is longer than the model's {self.max_length} positions")
    x = self._look_up(self.word_embeddings, packed.token_id)
    x = x + self._look_up(self.position_embeddings, jnp.arange(length))
    x = x + self._look_up(self.token_type_embeddings, packed.segment_id)
    x = split_rows(self.dropout(self.layer_norm(x), deterministic=deterministic))
    for layer in self.layers:
      x = split_rows(layer(x, packed.is_token, deterministic))
    return x

  def _look_up(self, embeddings: nn.Embed, index: jax.Array) -> jax.Array:
    return jnp.take(gather(embeddings.embedding).astype(self.dtype), index, axis=0)

  def pool(self, hidden: jax.Array) -> jax.Array:
    """Hidden states [..., L, E] -> tanh(Dense([CLS])) [..., E]."""
    return jnp.tanh(self.pooler(hidden[..., 0, :]))


class Layer(nn.Module):
  """Self-attention, then a two-layer perceptron, each added to its input and normalised."""

  num_heads: int
  mlp_size: int
  dropout_rate: float
  attention_dropout_rate: float
  layer_norm_epsilon: float
  gelu_is_approximate: bool
  dtype: Any
  attention: str

  @nn.compact
  def __call__(self, x: jax.Array, is_token: jax.Array, deterministic: bool) -> jax.Array:
    def dense(size, name):
      return nn.Dense(size, kernel_init=_init, dtype=self.dtype, name=name)

    def add_and_normalize(x, y, name):
      y = nn.Dropout(self.dropout_rate)(y, deterministic=deterministic)
      return nn.LayerNorm(self.layer_norm_epsilon, dtype=self.dtype, name=name)(x + y)

    def attend(query, key, value):
      logit = jnp.einsum("...qhd,...khd->...hqk", query, key) / jnp.sqrt(query.shape[-1]).astype(self.dtype)
      # The softmax in float32; -1e9 and not -inf, so that a row of padding alone gives no NaN.
      logit = jnp.where(is_token[..., None, None, :], logit.astype(jnp.float32), -1e9)
      weight = jax.nn.softmax(logit).astype(self.dtype)
      weight = nn.Dropout(self.attention_dropout_rate)(weight, deterministic=deterministic)
      return jnp.einsum("...hqk,...khd->...qhd", weight, value)

    hidden_size = x.shape[-1]
    split = (*x.shape[:-1], self.num_heads, hidden_size // self.num_heads)
    query, key, value = (dense(hidden_size, name)(x).reshape(split) for name in ("query", "key", "value"))
    has_dropout = self.attention_dropout_rate > 0 and not deterministic
    if self.attention == "naive" or has_dropout:
      context = attend(query, key, value).reshape(x.shape)
    else:
      context = _attend_fused(query, key, value, is_token, self.attention).reshape(x.shape)
    x = add_and_normalize(x, dense(hidden_size, "attention_output")(context), "attention_layer_norm")
    hidden = jax.nn.gelu(dense(self.mlp_size, "mlp_in")(x), approximate=self.gelu_is_approximate)
    return add_and_normalize(x, dense(hidden_size, "mlp_out")(hidden), "mlp_layer_norm")


def _attend_fused(query: jax.Array, key: jax.Array, value: jax.Array, is_token: jax.Array, implementation) -> jax.Array:
  """[..., L, H, head size] -> the same; padding comes last, so that the number of tokens says where it is."""
  query, key, value = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
  if implementation == "splash":
    return splash.attend(query, key, value, is_token.reshape(-1, is_token.shape[-1]))
  if implementation == "cudnn" and jax.default_backend() != "gpu":
    implementation = "xla"  # here, for jax.lax.platform_dependent would trace the kernel, which needs cuDNN
  num_tokens = is_token.sum(-1, dtype=jnp.int32).reshape(-1)
  return jax.nn.dot_product_attention(
    query, key, value, key_value_seq_lengths=num_tokens, implementation=implementation
  )  # fmt: skip


class MaskedWordHead(nn.Module):
  """Hidden states -> log-probabilities over the vocabulary; the last layer is tied to the word embeddings."""

  vocab_size: int
  layer_norm_epsilon: float = 1e-12
  gelu_is_approximate: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, hidden: jax.Array, word_embedding_VE: jax.Array) -> jax.Array:
    """[..., E] -> float32 [..., V]."""
    x = nn.Dense(hidden.shape[-1], kernel_init=_init, dtype=self.dtype, name="transform")(hidden)
    x = jax.nn.gelu(x, approximate=self.gelu_is_approximate)
    x = nn.LayerNorm(self.layer_norm_epsilon, dtype=self.dtype, name="layer_norm")(x)
    bias_V = self.param("bias", nn.initializers.zeros, (self.vocab_size,))
    word_embedding_VE = gather(word_embedding_VE).astype(self.dtype)
    logit = jnp.einsum("...e,ve->...v", x, word_embedding_VE, preferred_element_type=jnp.float32)
    return jax.nn.log_softmax(logit + bias_V)
