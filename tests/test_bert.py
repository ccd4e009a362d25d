"""Bert and its masked-word head: a NumPy twin in float64, padding, axes and types."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import norm

from realm_jax.batch import Packed
from realm_jax.model.bert import Bert, MaskedWordHead

pytestmark = pytest.mark.usefixtures("exact_products")

SIZES = {"vocab_size": 23, "hidden_size": 12, "num_layers": 2, "num_heads": 3, "mlp_size": 20, "max_length": 9}


@pytest.fixture(scope="module")
def params():
  return random_params(lambda key: Bert(**SIZES).init(key, random_packed((1,), 4), method=encode_and_pool))


@pytest.fixture(scope="module")
def head_params():
  return random_params(lambda key: MaskedWordHead(23).init(key, jnp.zeros((1, 12)), jnp.zeros((23, 12))))


def random_params(init):
  """No parameter is 0 or 1, so that none can be left out unseen."""
  rng = np.random.default_rng(5)
  shapes = jax.eval_shape(init, jax.random.key(0))["params"]
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}
  return jax.tree_util.tree_map_with_path(
    lambda path, x: rng.normal(path[-1].key == "scale", 0.4, x.shape).astype(np.float32), shapes
  )


def encode_and_pool(bert, packed):
  hidden = bert(packed)
  return hidden, bert.pool(hidden)


def random_packed(shape, length, num_tokens=None):
  rng = np.random.default_rng(length)
  is_token = np.arange(length) < (length if num_tokens is None else np.asarray(num_tokens)[..., None])
  return Packed(
    rng.integers(0, SIZES["vocab_size"], (*shape, length)).astype(np.int32),
    (np.arange(length) >= length // 2).astype(np.int32) * np.ones((*shape, 1), np.int32),
    np.broadcast_to(is_token, (*shape, length)),
  )


@functools.partial(jax.jit, static_argnames="dtype")
def encode(params, packed, dtype=jnp.float32):
  return Bert(**SIZES, dtype=dtype).apply({"params": params}, packed)


@jax.jit
def encode_with_dropout(params, packed, key):
  bert = Bert(**SIZES, dropout_rate=0.5)
  return bert.apply({"params": params}, packed, deterministic=False, rngs={"dropout": key})


@functools.partial(jax.jit, static_argnames="dtype")
def predict(head_params, hidden, word_embedding_VE, dtype=jnp.float32):
  return MaskedWordHead(23, dtype=dtype).apply({"params": head_params}, hidden, word_embedding_VE)


def dense(p, x):
  return x @ p["kernel"] + p["bias"]


def layer_norm(p, x):
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + 1e-12) * p["scale"] + p["bias"]


def gelu(x):
  """The tanh form of Google's code, with its constants."""
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def exact_gelu(x):
  return x * norm.cdf(x)


def numpy_encode(p, packed, num_heads=3, gelu=gelu):
  """One row [L] at a time, one head at a time."""
  x = p["word_embeddings"]["embedding"][packed.token_id]
  x = x + p["token_type_embeddings"]["embedding"][packed.segment_id]
  x = layer_norm(p["layer_norm"], x + p["position_embeddings"]["embedding"][: len(x)])
  for n in range(SIZES["num_layers"]):
    layer = p[f"layer_{n}"]
    query, key, value = (np.split(dense(layer[name], x), num_heads, -1) for name in ("query", "key", "value"))
    heads = []
    for q, k, v in zip(query, key, value):
      logit = q @ k.T / np.sqrt(q.shape[-1])
      heads.append(softmax(np.where(packed.is_token[None, :], logit, -np.inf), -1) @ v)
    context = dense(layer["attention_output"], np.concatenate(heads, -1))
    x = layer_norm(layer["attention_layer_norm"], x + context)
    x = layer_norm(layer["mlp_layer_norm"], x + dense(layer["mlp_out"], gelu(dense(layer["mlp_in"], x))))
  return x


def test_encoder_and_pooled_output_match_numpy(params):
  packed = random_packed((3,), 7, num_tokens=[7, 5, 2])
  p = jax.tree.map(np.float64, params)
  hidden, pooled = jax.jit(lambda p: Bert(**SIZES).apply({"params": p}, packed, method=encode_and_pool))(params)
  for row in range(3):
    expected = numpy_encode(p, Packed(*(x[row] for x in packed)))
    np.testing.assert_allclose(hidden[row], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(pooled[row], np.tanh(dense(p["pooler"], expected[0])), rtol=0, atol=1e-5)


def test_exact_gelu_matches_numpy(params, head_params):
  packed = random_packed((1,), 7)
  p, head = jax.tree.map(np.float64, (params, head_params))
  exact = {"gelu_is_approximate": False}
  hidden = jax.jit(Bert(**SIZES, **exact).apply)({"params": params}, packed)
  row = Packed(*(x[0] for x in packed))
  expected = numpy_encode(p, row, gelu=exact_gelu)
  np.testing.assert_allclose(hidden[0], expected, rtol=0, atol=1e-5)
  assert np.abs(numpy_encode(p, row) - expected).max() > 1e-4  # the tanh form would not pass
  word_embedding_VE = params["word_embeddings"]["embedding"]
  log_prob = MaskedWordHead(23, **exact).apply({"params": head_params}, hidden, word_embedding_VE)
  x = layer_norm(head["layer_norm"], exact_gelu(dense(head["transform"], np.float64(hidden))))
  logit = x @ np.float64(word_embedding_VE).T + head["bias"]
  np.testing.assert_allclose(log_prob, log_softmax(logit, -1), rtol=0, atol=1e-5)


def test_masked_word_head_matches_numpy(params, head_params):
  hidden = np.random.default_rng(2).normal(size=(2, 4, 12)).astype(np.float32)
  word_embedding_VE = params["word_embeddings"]["embedding"]
  log_prob = predict(head_params, hidden, word_embedding_VE)
  p = jax.tree.map(np.float64, head_params)
  x = layer_norm(p["layer_norm"], gelu(dense(p["transform"], hidden.astype(np.float64))))
  expected = log_softmax(x @ np.float64(word_embedding_VE).T + p["bias"], -1)
  assert np.ptp(expected) > 1  # a flat distribution would match anything
  np.testing.assert_allclose(log_prob, expected, rtol=0, atol=1e-5)


def test_padding_changes_no_real_token(params):
  short = random_packed((2,), 5)
  padding = [np.full((2, 4), 7, np.int32), np.ones((2, 4), np.int32), np.zeros((2, 4), bool)]
  long = Packed(*(np.concatenate(pair, 1) for pair in zip(short, padding)))
  np.testing.assert_allclose(np.asarray(encode(params, long))[:, :5], encode(params, short), rtol=0, atol=2e-6)
  other = long._replace(token_id=np.where(long.is_token, long.token_id, 11))
  np.testing.assert_array_equal(*(np.asarray(encode(params, x))[:, :5] for x in (other, long)))


def test_tokens_and_segments_matter(params):
  packed = random_packed((2,), 6)
  hidden = np.asarray(encode(params, packed))
  for change in (
    packed._replace(token_id=(packed.token_id + 1) % 23),
    packed._replace(segment_id=1 - packed.segment_id),
    Packed(*(x[:, ::-1] for x in packed)),
  ):
    assert np.abs(encode(params, change) - hidden).max(-1).min() > 1e-2


def test_leading_axes_are_rows(params):
  packed = random_packed((2, 3), 6)
  flat = Packed(*(x.reshape(6, 6) for x in packed))
  np.testing.assert_allclose(encode(params, packed).reshape(6, 6, 12), encode(params, flat), rtol=0, atol=1e-6)


def test_a_row_of_padding_alone_is_finite(params):
  packed = random_packed((2,), 6, num_tokens=[0, 6])
  assert np.isfinite(encode(params, packed)).all()
  grads = jax.jit(jax.grad(lambda p: encode(p, packed).std()))(params)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_refuses_what_is_longer_than_its_positions(params):
  with pytest.raises(ValueError, match="a sequence of 10 tokens is longer than the model's 9 positions"):
    encode(params, random_packed((1,), 10))


def test_dropout_follows_its_key(params):
  packed = random_packed((2,), 6)

  def hidden(seed):
    return np.asarray(encode_with_dropout(params, packed, jax.random.key(seed)))

  np.testing.assert_array_equal(hidden(0), hidden(0))
  assert np.abs(hidden(0) - hidden(1)).max() > 0.1
  assert np.abs(hidden(0) - np.asarray(encode(params, packed))).max() > 0.1


def test_bfloat16_keeps_log_probs_in_float32(params, head_params):
  packed = random_packed((2,), 6)
  hidden = encode(params, packed, dtype=jnp.bfloat16)
  assert hidden.dtype == jnp.bfloat16
  log_prob = predict(head_params, hidden, params["word_embeddings"]["embedding"], dtype=jnp.bfloat16)
  assert log_prob.dtype == jnp.float32
  np.testing.assert_allclose(np.exp(log_prob).sum(-1), 1, rtol=0, atol=1e-6)
  # bfloat16 has 8 bits; hidden states of a layer norm are about 1, and two layers of four roundings each follow.
  assert np.abs(np.float32(hidden) - np.asarray(encode(params, packed))).mean() < 8 * 2**-8


def loss_and_grads(params, packed, **options):
  """A loss that every hidden state of a token is in, and its gradients."""
  bert = Bert(**SIZES, **options)

  @jax.jit
  def run(params):
    def loss(params):
      hidden = bert.apply({"params": params}, packed, deterministic=False, rngs={"dropout": jax.random.key(3)})
      return (hidden**3 * packed.is_token[..., None]).sum()

    return jax.value_and_grad(loss)(params)

  return run(params)


@pytest.mark.parametrize(
  "attention",
  [
    "xla",
    "splash",  # on a CPU by XLA; the kernel itself has tests in test_splash.py
    "cudnn",  # likewise
  ],
)
def test_fused_attention_is_attention(params, attention):
  packed = random_packed((2, 3), 7, num_tokens=[[7, 5, 2], [1, 6, 7]])
  # cuDNN itself takes 16 bits only.
  is_kernel = attention == "cudnn" and jax.default_backend() == "gpu"
  dtype, rtol = (jnp.bfloat16, 2e-2) if is_kernel else (jnp.float32, 1e-5)
  options = {"dropout_rate": 0.0, "dtype": dtype}
  loss, grads = loss_and_grads(params, packed, **options)
  fused_loss, fused_grads = loss_and_grads(params, packed, **options, attention=attention)
  np.testing.assert_allclose(fused_loss, loss, rtol=rtol)
  size = max(np.abs(g).max() for g in jax.tree.leaves(grads))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rtol * size), fused_grads, grads)


def test_fused_attention_gives_way_to_dropout(params):
  """The fused ones know no dropout of attention weights, so the naive one is taken: the same masks, the same bits."""
  packed = random_packed((2,), 6)
  naive, fused = (loss_and_grads(params, packed, dropout_rate=0.5, attention=name)[0] for name in ("naive", "xla"))
  assert naive == fused
  assert abs(naive - loss_and_grads(params, packed, dropout_rate=0.0, attention="xla")[0]) > 1


def test_attention_has_a_dropout_rate_of_its_own(params):
  """Where it is 0 the fused ones come into their own, whatever is dropped elsewhere; -1 is the rate of all."""
  packed = random_packed((2,), 6)

  def hidden(attention_dropout_rate, attention):
    bert = Bert(**SIZES, dropout_rate=0.5, attention_dropout_rate=attention_dropout_rate, attention=attention)
    run = jax.jit(functools.partial(bert.apply, deterministic=False))
    return np.asarray(run({"params": params}, packed, rngs={"dropout": jax.random.key(3)}))

  np.testing.assert_array_equal(hidden(-1.0, "naive"), hidden(0.5, "xla"))
  assert np.abs(hidden(0.0, "naive") - hidden(0.0, "xla")).max() > 0.1  # which has one dropout less: other masks


def test_an_unknown_attention_is_named(params):
  expected = r"^model.attention='flash' is unknown; set it to one of naive, xla, cudnn, splash"
  with pytest.raises(ValueError, match=expected):
    Bert(**SIZES, attention="flash").apply({"params": params}, random_packed((1,), 4))


@pytest.mark.parametrize("dropout_rate", [0.0, 0.5])
def test_remat_changes_no_number(params, dropout_rate):
  packed = random_packed((2,), 6, num_tokens=[6, 4])
  loss, grads = loss_and_grads(params, packed, dropout_rate=dropout_rate)
  remat_loss, remat_grads = loss_and_grads(params, packed, dropout_rate=dropout_rate, remat="layer")
  np.testing.assert_allclose(remat_loss, loss, rtol=1e-6)
  size = max(np.abs(g).max() for g in jax.tree.leaves(grads))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * size), remat_grads, grads)


def test_remat_keeps_little_for_the_backward_pass():
  """Counted in what is saved: the CPU's compiler undoes the recomputation, so that its memory tells nothing."""
  sizes = SIZES | {"num_layers": 6, "max_length": 64}
  packed = random_packed((4,), 64)

  def num_saved(remat):
    bert = Bert(**sizes, remat=remat)
    abstract = jax.eval_shape(bert.init, jax.random.key(0), packed)["params"]

    def run(params):
      return bert.apply({"params": params}, packed, deterministic=False, rngs={"dropout": jax.random.key(0)})

    saved = jax.eval_shape(lambda params: jax.vjp(run, params)[1], abstract)
    num_params = sum(x.size for x in jax.tree.leaves(abstract))
    return sum(x.size for x in jax.tree.leaves(saved)) - num_params

  layer_inputs = 6 * 4 * 64 * 12
  assert num_saved(remat="none") > 50 * layer_inputs
  assert num_saved(remat="layer") < 6 * layer_inputs
