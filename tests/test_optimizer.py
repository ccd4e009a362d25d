"""Optimizer: steps against NumPy's BERT AdamWeightDecay and optax' adamw, clipping, decay mask, schedule."""

import jax
import numpy as np
import optax
import pytest

from realm_jax.batch import Packed
from realm_jax.config import make_reader, make_retriever, paper_config
from realm_jax.training.optimizer import bert_optimizer, bert_schedule, decays, warmup_steps

SETTINGS = {
  "learning_rate": 0.1,
  "num_steps": 10,
  "num_warmup_steps": 0,
  "weight_decay": 0.01,
  "max_grad_norm": 1.0,
  "corrects_bias": False,
}
IS_DECAYED = {"dense": {"kernel": True, "bias": False}, "layer_norm": {"scale": False, "bias": False}}


@pytest.fixture
def params():
  rng = np.random.default_rng(0)
  shapes = {"dense": {"kernel": (3, 2), "bias": (2,)}, "layer_norm": {"scale": (2,), "bias": (2,)}}
  return jax.tree.map(lambda s: rng.normal(0, 1, s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))


def random_grads(params, num_steps, size):
  rng = np.random.default_rng(1)
  return [jax.tree.map(lambda x: rng.normal(0, size, x.shape).astype(np.float32), params) for _ in range(num_steps)]


def run(optimizer, params, grads):
  state = optimizer.init(params)
  for g in grads:
    updates, state = optimizer.update(g, state, params)
    params = optax.apply_updates(params, updates)
  return params


def numpy_steps(params, grads, *, learning_rate, num_steps, num_warmup_steps, weight_decay, max_grad_norm):
  """AdamWeightDecayOptimizer and create_optimizer of google-research/bert, in float64."""
  paths = [("dense", "kernel"), ("dense", "bias"), ("layer_norm", "scale"), ("layer_norm", "bias")]
  p = {path: np.float64(params[path[0]][path[1]]) for path in paths}
  m = {path: np.zeros_like(x) for path, x in p.items()}
  v = {path: np.zeros_like(x) for path, x in p.items()}
  for step, tree in enumerate(grads):
    g = {path: np.float64(tree[path[0]][path[1]]) for path in paths}
    norm = np.sqrt(sum((x**2).sum() for x in g.values()))
    rate = learning_rate * (1 - step / num_steps)
    if step < num_warmup_steps:
      rate = learning_rate * step / num_warmup_steps
    for path in paths:
      clipped = g[path] * max_grad_norm / max(norm, max_grad_norm)
      m[path] = 0.9 * m[path] + 0.1 * clipped
      v[path] = 0.999 * v[path] + 0.001 * clipped**2
      update = m[path] / (np.sqrt(v[path]) + 1e-6)
      if path == ("dense", "kernel"):
        update = update + weight_decay * p[path]
      p[path] = p[path] - rate * update
  return {
    "dense": {n: p["dense", n] for n in ("kernel", "bias")},
    "layer_norm": {n: p["layer_norm", n] for n in ("scale", "bias")},
  }


def assert_trees_close(a, b, rtol=0, atol=2e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("num_steps_made", [1, 3])
@pytest.mark.parametrize("size", [0.01, 5.0])  # below and above the clip
@pytest.mark.parametrize("num_warmup_steps", [0, 2])
def test_steps_match_bert(params, num_steps_made, size, num_warmup_steps):
  settings = SETTINGS | {"num_warmup_steps": num_warmup_steps}
  grads = random_grads(params, num_steps_made, size)
  result = run(bert_optimizer(**settings), params, grads)
  settings.pop("corrects_bias")
  assert_trees_close(result, numpy_steps(params, grads, **settings))


def test_first_step_by_hand():
  # g = 0.3, m = 0.03, v = 0.00009: 0.03 / (0.0094868 + 0.000001) = 3.16194, and decay adds 0.01 * 2.
  params, grads = {"kernel": np.full((), 2.0, np.float32)}, [{"kernel": np.full((), 0.3, np.float32)}]
  result = run(bert_optimizer(**SETTINGS), params, grads)
  np.testing.assert_allclose(result["kernel"], 2 - 0.1 * (3.16194 + 0.02), rtol=0, atol=1e-6)
  # With bias correction the first update is the gradient's sign.
  result = run(bert_optimizer(**SETTINGS | {"corrects_bias": True}), params, grads)
  np.testing.assert_allclose(result["kernel"], 2 - 0.1 * (1 + 0.02), rtol=0, atol=1e-6)


def test_clips_by_the_norm_of_all_gradients(params):
  small = random_grads(params, 1, 1.0)[0]
  norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(small)))
  large = jax.tree.map(lambda x: x * 1000, small)
  unit = jax.tree.map(lambda x: x / norm, small)
  optimizer = bert_optimizer(**SETTINGS)
  assert_trees_close(run(optimizer, params, [large, large]), run(optimizer, params, [unit, unit]))
  half = jax.tree.map(lambda x: x / norm / 2, small)  # below 1.0 nothing is scaled
  unclipped = bert_optimizer(**SETTINGS | {"max_grad_norm": 1e9})
  assert_trees_close(run(optimizer, params, [half]), run(unclipped, params, [half]), atol=0)


def test_with_bias_correction_it_is_adamw(params):
  grads = random_grads(params, 3, 0.1)
  schedule = bert_schedule(0.1, 10, 2)
  adamw = optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01, mask=IS_DECAYED)
  expected = run(optax.chain(optax.clip_by_global_norm(1.0), adamw), params, grads)
  result = run(bert_optimizer(**SETTINGS | {"num_warmup_steps": 2, "corrects_bias": True}), params, grads)
  assert_trees_close(result, expected, atol=0)
  assert np.abs(result["dense"]["kernel"] - params["dense"]["kernel"]).min() > 0.01


def test_decay_alone_shrinks_kernels_only(params):
  zeros = jax.tree.map(np.zeros_like, params)
  result = run(bert_optimizer(**SETTINGS), params, [zeros])
  expected = params | {"dense": params["dense"] | {"kernel": params["dense"]["kernel"] * (1 - 0.1 * 0.01)}}
  assert_trees_close(result, expected, atol=1e-7)


def test_frozen_parts_stay_to_the_bit(params):
  grads = random_grads(params, 3, 0.01)  # below the clip, where the parts don't scale each other
  all_trained = run(bert_optimizer(**SETTINGS), params, grads)
  result = run(bert_optimizer(**SETTINGS, frozen=("layer_norm",)), params, grads)
  assert_trees_close(result["layer_norm"], params["layer_norm"], atol=0)
  assert_trees_close(result["dense"], all_trained["dense"], atol=0)


def test_the_retriever_learns_at_a_rate_of_its_own(params):
  trees = {"retriever": params["dense"], "reader": params["dense"]}
  grads = [{"retriever": g["dense"], "reader": g["dense"]} for g in random_grads(params, 3, 0.01)]
  result = run(bert_optimizer(**SETTINGS, retriever_scale=0.25), trees, grads)
  equal = run(bert_optimizer(**SETTINGS), trees, grads)
  assert_trees_close(equal["retriever"], equal["reader"], atol=0)
  assert_trees_close(result["reader"], equal["reader"], atol=0)
  # After one step the way is a quarter; later ones differ by the decay of what the step before left.
  one, all_of_it = (
    run(bert_optimizer(**SETTINGS, retriever_scale=scale), trees, grads[:1])["retriever"] for scale in (0.25, 1.0)
  )
  ways = [jax.tree.map(lambda after, before: after - before, tree, trees["retriever"]) for tree in (one, all_of_it)]
  assert_trees_close(ways[0], jax.tree.map(lambda way: way / 4, ways[1]), atol=1e-7)
  frozen = run(bert_optimizer(**SETTINGS, retriever_scale=0.0), trees, grads)
  assert_trees_close(frozen["retriever"], trees["retriever"], atol=0)
  assert_trees_close(frozen["reader"], equal["reader"], atol=0)


def test_decay_mask_of_the_whole_model():
  model = paper_config("finetune").model
  model.update(hidden_size=4, num_layers=1, num_heads=1, mlp_size=4, max_length=4, retrieval_size=4, span_hidden_size=4)
  row = np.zeros((1, 4), np.int32)
  packed = Packed(row, row, row == 0)

  def init(key):
    retriever, reader = make_retriever(model, 9), make_reader(model, 9)
    return {"retriever": retriever.init(key, packed, packed), "reader": reader.init(key, packed, row[:, :1])}

  params = jax.eval_shape(init, jax.random.key(0))
  names = {True: set(), False: set()}
  for path, is_decayed in jax.tree_util.tree_leaves_with_path(decays(params)):
    names[is_decayed].add("/".join(key.key for key in path))
  assert {name.rsplit("/", 1)[1] for name in names[True]} == {"kernel", "embedding"}
  assert {name.rsplit("/", 1)[1] for name in names[False]} == {"bias", "scale"}
  assert not any("norm" in name for name in names[True])
  assert "reader/params/masked_word_head/bias" in names[False]
  # Encoder: 3 embeddings, 6 kernels, and a pooler in both towers; projections; transform, endpoint, score.
  assert len(names[True]) == 2 * (3 + 6 + 1 + 1) + 3 + 6 + 3


@pytest.mark.parametrize(
  ("num_steps", "expected"),
  [(1, 100), (1000, 100), (1001, 100), (2000, 200), (68_340, 6834), (100_000, 10_000), (200_000, 10_000)],
)
def test_warmup_formula(num_steps, expected):
  assert warmup_steps(num_steps) == expected


def test_schedule_values():
  schedule = bert_schedule(1e-4, 1000, 100)
  # After the warm-up the line from step 0 goes on: a step down at 100.
  expected = {0: 0, 1: 1e-6, 50: 5e-5, 99: 9.9e-5, 100: 9e-5, 101: 8.99e-5, 500: 5e-5, 999: 1e-7, 1000: 0, 1500: 0}
  for step, rate in expected.items():
    np.testing.assert_allclose(schedule(np.int32(step)), rate, rtol=1e-4, atol=1e-12, err_msg=str(step))
  assert bert_schedule(1e-4, 1000, 0)(0) == np.float32(1e-4)


def test_minus_one_stands_for_the_formula(params):
  grads = random_grads(params, 2, 0.1)
  results = [
    run(bert_optimizer(**SETTINGS | {"num_steps": 2000, "num_warmup_steps": n}), params, grads) for n in (-1, 200, 0)
  ]
  assert_trees_close(results[0], results[1], atol=0)
  assert np.abs(results[0]["dense"]["kernel"] - results[2]["dense"]["kernel"]).min() > 0.01
