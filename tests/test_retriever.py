"""Retriever: the projection's NumPy twin, shared and separate towers, the tower that the indexer gets."""

import functools

import jax
import numpy as np
import pytest

from realm_jax.batch import Packed
from realm_jax.config import make_retriever, make_tower, paper_config
from realm_jax.model.bert import Bert
from realm_jax.model.retriever import passage_tower_params

pytestmark = pytest.mark.usefixtures("exact_products")

VOCAB_SIZE = 19


def tiny_model(**changes):
  model = paper_config("pretrain").model
  model.update(hidden_size=12, num_layers=2, num_heads=2, mlp_size=16, max_length=8, dropout_rate=0.0, retrieval_size=5)
  model.update(changes)
  return model


def random_packed(seed, num_rows=3, length=6):
  rng = np.random.default_rng(seed)
  num_tokens = rng.integers(3, length + 1, num_rows)[:, None]
  return Packed(
    rng.integers(1, VOCAB_SIZE, (num_rows, length)).astype(np.int32),
    rng.integers(0, 2, (num_rows, length)).astype(np.int32),
    np.arange(length) < num_tokens,
  )


def random_params(retriever):
  """No parameter is 0 or 1, so that none can be left out unseen."""
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(lambda key: retriever.init(key, random_packed(0), random_packed(1)), jax.random.key(0))
  return jax.tree_util.tree_map_with_path(
    lambda path, x: rng.normal(path[-1].key == "scale", 0.4, x.shape).astype(np.float32), shapes["params"]
  )


@functools.partial(jax.jit, static_argnums=(0, 3))
def embed(retriever, params, packed, method):
  return retriever.apply({"params": params}, packed, method=method)


@functools.partial(jax.jit, static_argnums=0)
def embed_alone(tower, params, packed):
  return tower.apply({"params": params}, packed)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.grad, argnums=1)
def score_gradient(retriever, params, query, passage):
  query_emb, passage_emb = retriever.apply({"params": params}, query, passage)
  return (query_emb * passage_emb).sum()


@pytest.mark.parametrize("epsilon", [1e-12, 1e-3])
def test_embedding_is_the_pooled_output_projected_and_normalised(epsilon):
  model = tiny_model(projection_layer_norm_epsilon=epsilon)
  tower = make_tower(model, VOCAB_SIZE)
  packed = random_packed(2)
  params = random_params(make_retriever(model, VOCAB_SIZE))["query_tower"]
  bert = Bert(VOCAB_SIZE, 12, 2, 2, 16, 8)
  pooled = jax.jit(lambda p: bert.apply({"params": p}, packed, method=lambda m, x: m.pool(m(x))))(params["encoder"])
  p = jax.tree.map(np.float64, params)
  x = np.float64(pooled) @ p["projection"]["kernel"] + p["projection"]["bias"]
  centred = x - x.mean(-1, keepdims=True)
  expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
  expected = expected * p["layer_norm"]["scale"] + p["layer_norm"]["bias"]
  embedding = embed_alone(tower, params, packed)
  assert embedding.shape == (3, 5) and embedding.dtype == np.float32
  np.testing.assert_allclose(embedding, expected, rtol=0, atol=1e-5)


def tokens_mean(tower_params, packed):
  """The mean hidden state of each row's tokens, in NumPy."""
  bert = Bert(VOCAB_SIZE, 12, 2, 2, 16, 8)
  hidden = np.float64(jax.jit(lambda p: bert.apply({"params": p}, packed))(tower_params["encoder"]))
  return np.stack([h[: n.sum()].mean(0) for h, n in zip(hidden, packed.is_token)])


def test_the_mean_of_the_tokens_is_projected_without_a_pooler():
  model, packed = tiny_model(pooling="mean"), random_packed(2)
  params = random_params(make_retriever(model, VOCAB_SIZE))["query_tower"]
  assert "pooler" not in params["encoder"]
  p = jax.tree.map(np.float64, params)
  x = tokens_mean(params, packed) @ p["projection"]["kernel"] + p["projection"]["bias"]
  expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
  expected = expected * p["layer_norm"]["scale"] + p["layer_norm"]["bias"]
  np.testing.assert_allclose(embed_alone(make_tower(model, VOCAB_SIZE), params, packed), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("retrieval_size", [12, 5])
def test_a_tower_that_takes_the_mean_starts_with_20_times_the_cosine(retrieval_size):
  retriever = make_retriever(
    tiny_model(pooling="mean", towers_are_shared=False, retrieval_size=retrieval_size), VOCAB_SIZE
  )
  query, passage = random_packed(3), random_packed(4)
  params = jax.jit(retriever.init)(jax.random.key(0), query, passage)["params"]
  params["passage_tower"]["encoder"] = params["query_tower"]["encoder"]
  x, y = (tokens_mean(params["query_tower"], packed)[:, :retrieval_size] for packed in (query, passage))
  x, y = (z - z.mean(1, keepdims=True) for z in (x, y))
  cosine = (x @ y.T) / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
  score = embed(retriever, params, query, "embed_queries") @ embed(retriever, params, passage, "embed_passages").T
  np.testing.assert_allclose(score, 20 * cosine, rtol=0, atol=1e-4)


def test_refuses_an_unknown_pooling():
  with pytest.raises(ValueError, match="model.pooling='max' is unknown; set it to one of cls, mean"):
    random_params(make_retriever(tiny_model(pooling="max"), VOCAB_SIZE))


def test_shared_towers_have_one_set_of_parameters():
  shared = random_params(make_retriever(tiny_model(), VOCAB_SIZE))
  separate = random_params(make_retriever(tiny_model(towers_are_shared=False), VOCAB_SIZE))
  assert set(shared) == {"query_tower"}
  assert set(separate) == {"query_tower", "passage_tower"}
  structure = jax.tree.structure(shared["query_tower"])
  assert jax.tree.structure(separate["query_tower"]) == jax.tree.structure(separate["passage_tower"]) == structure
  # Three embeddings and a norm: 19*12 + 8*12 + 2*12 + 24. Per layer 6 dense and 2 norms: 4*(12*12 + 12) + 12*16 + 16
  # + 16*12 + 12 + 48. Pooler, projection, norm: 156 + 65 + 10.
  assert sum(x.size for x in jax.tree.leaves(shared)) == 372 + 2 * 1084 + 231


def test_separate_towers_start_apart():
  retriever = make_retriever(tiny_model(towers_are_shared=False, num_layers=0), VOCAB_SIZE)
  params = jax.jit(retriever.init)(jax.random.key(0), random_packed(0), random_packed(1))["params"]
  kernel = {name: params[name]["projection"]["kernel"] for name in params}
  assert np.abs(kernel["query_tower"] - kernel["passage_tower"]).min() > 0


def test_shared_towers_embed_alike_and_separate_ones_do_not():
  packed = random_packed(3)
  for is_shared in (True, False):
    retriever = make_retriever(tiny_model(towers_are_shared=is_shared), VOCAB_SIZE)
    params = random_params(retriever)
    query_emb = embed(retriever, params, packed, "embed_queries")
    passage_emb = embed(retriever, params, packed, "embed_passages")
    assert np.array_equal(query_emb, passage_emb) == is_shared
    for name in ("query_tower",) if is_shared else ("query_tower", "passage_tower"):
      expected = embed_alone(retriever.make_tower(), params[name], packed)
      np.testing.assert_allclose(query_emb if name == "query_tower" else passage_emb, expected, rtol=0, atol=1e-6)


def test_gradients_reach_every_parameter_of_both_towers():
  query, passage = random_packed(4), random_packed(5)
  separate = make_retriever(tiny_model(towers_are_shared=False), VOCAB_SIZE)
  grads = score_gradient(separate, random_params(separate), query, passage)
  size = {jax.tree_util.keystr(k): np.abs(g).max() for k, g in jax.tree_util.tree_leaves_with_path(grads)}
  for name, value in size.items():
    if "'key']['bias']" in name:
      assert value < 1e-6, name  # a softmax doesn't see what is added to all its logits
    else:
      assert value > 1e-5, name


def test_a_shared_tower_gets_the_sum_of_both_gradients():
  query, passage = random_packed(4), random_packed(5)
  shared = make_retriever(tiny_model(), VOCAB_SIZE)
  separate = make_retriever(tiny_model(towers_are_shared=False), VOCAB_SIZE)
  tower = random_params(shared)["query_tower"]
  both = score_gradient(separate, {"query_tower": tower, "passage_tower": tower}, query, passage)
  one = score_gradient(shared, {"query_tower": tower}, query, passage)
  expected = jax.tree.map(np.add, both["query_tower"], both["passage_tower"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one["query_tower"], expected)


@pytest.mark.parametrize("is_shared", [True, False])
def test_the_indexer_s_tower_gives_the_retriever_s_embeddings(is_shared):
  model = tiny_model(towers_are_shared=is_shared)
  retriever, packed = make_retriever(model, VOCAB_SIZE), random_packed(6)
  params = random_params(retriever)
  expected = embed(retriever, params, packed, "embed_passages")
  for tower in (retriever.make_tower(), make_tower(model, VOCAB_SIZE)):
    embedding = embed_alone(tower, passage_tower_params(params), packed)
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=1e-6)


def test_embedding_dropout_keeps_the_mean():
  model = tiny_model(embedding_dropout_rate=0.1)
  tower, packed = make_tower(model, VOCAB_SIZE), random_packed(7, num_rows=1)
  params = random_params(make_retriever(model, VOCAB_SIZE))["query_tower"]
  embedding = embed_alone(tower, params, packed)
  many = Packed(*(np.repeat(x, 2000, 0) for x in packed))
  rngs = {"dropout": jax.random.key(0)}
  dropped = jax.jit(lambda p: tower.apply({"params": p}, many, deterministic=False, rngs=rngs))(params)
  is_dropped = np.asarray(dropped) == 0
  assert abs(is_dropped.mean() - 0.1) < 0.01  # 10,000 draws: a standard deviation of 0.003
  expected = np.where(is_dropped, 0, np.asarray(embedding) / 0.9)
  np.testing.assert_allclose(dropped, expected, rtol=1e-5, atol=1e-6)
