"""BERT-base at the paper's shapes: forward and backward, in both types."""

import jax
import numpy as np
import pytest

from realm_jax.batch import MaskedBatch, Packed
from realm_jax.config import make_reader, make_retriever, paper_config
from realm_jax.training.objectives import masked_word_objective

pytestmark = pytest.mark.slow
VOCAB_SIZE = 30_522


def random_packed(*shape):
  rng = np.random.default_rng(shape[-1])
  position = np.arange(shape[-1])
  num_tokens = rng.integers(shape[-1] // 2, shape[-1] + 1, (*shape[:-1], 1))
  is_token = position < num_tokens
  token_id = np.where(is_token, rng.integers(1000, VOCAB_SIZE, shape), 0).astype(np.int32)
  return Packed(token_id, (is_token & (position >= 64)).astype(np.int32), is_token)


@pytest.fixture(scope="module")
def batch():
  """One query of 96 tokens, two passages of 288, joint inputs of 384, 10 masks."""
  position_BM = np.arange(1, 11, dtype=np.int32)[None]
  return MaskedBatch(
    query_BQ=random_packed(1, 96),
    passage_BKP=random_packed(1, 2, 288),
    joint_BKJ=random_packed(1, 2, 384),
    mask_position_BM=position_BM,
    mask_target_BM=position_BM + 2000,
    mask_weight_BM=np.ones((1, 10), np.float32),
  )


@pytest.fixture(scope="module")
def params(batch):
  config = paper_config("pretrain")
  retriever, reader = make_retriever(config.model, VOCAB_SIZE), make_reader(config.model, VOCAB_SIZE)

  @jax.jit
  def init(key):
    return {
      "retriever": retriever.init(key, batch.query_BQ, batch.passage_BKP)["params"],
      "reader": reader.init(key, batch.joint_BKJ, np.zeros((1, 2, 1), np.int32))["params"],
    }

  return init(jax.random.key(0))


def loss_and_gradient(params, batch, **model):
  config = paper_config("pretrain")
  config.model.update(dropout_rate=0.0, **model)
  retriever, reader = make_retriever(config.model, VOCAB_SIZE), make_reader(config.model, VOCAB_SIZE)
  objective = masked_word_objective(retriever, reader, per_example=False)
  run = jax.jit(jax.value_and_grad(objective, has_aux=True))
  (loss, _), grads = jax.device_get(run(params, batch, jax.random.key(0)))
  return loss, grads


def test_bert_base_at_the_papers_shapes(params, batch):
  """The paper prints 330M parameters, three times BERT; with shared towers there are two BERTs."""
  num_params = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}
  assert 109e6 < num_params["retriever"] < 110e6 and 109e6 < num_params["reader"] < 111e6
  exact, exact_grads = loss_and_gradient(params, batch)
  # Untrained, so about uniform over the vocabulary: log 30522 = 10.3.
  assert abs(exact - np.log(VOCAB_SIZE)) < 0.5
  for model in ({"dtype": "bfloat16"}, {"dtype": "bfloat16", "attention": "xla", "remat": "layer"}):
    loss, grads = loss_and_gradient(params, batch, **model)
    print(f"\nloss {exact:.5f} in float32, {loss:.5f} with {model}")
    np.testing.assert_allclose(loss, exact, rtol=1e-2)
    for part in ("retriever", "reader"):
      a, b = (np.concatenate([x.ravel() for x in jax.tree.leaves(g[part])]) for g in (exact_grads, grads))
      cosine = a @ b / np.sqrt((a @ a) * (b @ b))
      print(f"{part}: gradients of norm {np.sqrt(a @ a):.4g} and {np.sqrt(b @ b):.4g}, cosine {cosine:.5f}")
      assert np.isfinite(b).all() and cosine > 0.99
