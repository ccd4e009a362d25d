"""Reader: span candidates, the span head's NumPy twin and masking, the two heads on one encoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.batch import Packed
from realm_jax.config import make_reader, paper_config
from realm_jax.model.bert import Bert, MaskedWordHead
from realm_jax.model.reader import SpanHead, span_candidates

pytestmark = pytest.mark.usefixtures("exact_products")

VOCAB_SIZE = 17


@pytest.fixture(scope="module")
def reader():
  model = paper_config("finetune").model
  model.update(hidden_size=8, num_layers=1, num_heads=2, mlp_size=12, max_length=10, dropout_rate=0.0)
  model.update(span_hidden_size=6, max_span_width=3)
  return make_reader(model, VOCAB_SIZE)


@pytest.fixture(scope="module")
def joint():
  """Two queries with three passages each, 10 tokens long."""
  rng = np.random.default_rng(0)
  return Packed(
    rng.integers(1, VOCAB_SIZE, (2, 3, 10)).astype(np.int32),
    np.broadcast_to((np.arange(10) > 3).astype(np.int32), (2, 3, 10)),
    np.arange(10) < rng.integers(7, 11, (2, 3, 1)),
  )


@pytest.fixture(scope="module")
def params(reader, joint):
  return random_params(lambda key: reader.init(key, joint, np.zeros((2, 3, 2), np.int32)))


def random_params(init):
  """No parameter is 0 or 1, so that none can be left out unseen."""
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(init, jax.random.key(0))["params"]
  return jax.tree_util.tree_map_with_path(
    lambda path, x: rng.normal(path[-1].key == "scale", 0.4, x.shape).astype(np.float32), shapes
  )


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(module, params, *inputs, method=None):
  return module.apply({"params": params}, *inputs, method=method)


def numpy_span_logits(p, hidden_JE, is_body_J, max_width, epsilon=1e-3):
  """Span by span: {(start, end): logit}."""
  half = p["endpoint"]["kernel"].shape[1] // 2
  projected = hidden_JE @ p["endpoint"]["kernel"] + p["endpoint"]["bias"]
  logits = {}
  for start in range(len(hidden_JE)):
    for end in range(start, min(start + max_width, len(hidden_JE))):
      x = np.maximum(projected[start, :half] + projected[end, half:], 0)
      x = (x - x.mean()) / np.sqrt(x.var() + epsilon) * p["layer_norm"]["scale"] + p["layer_norm"]["bias"]
      logit = (x @ p["score"]["kernel"] + p["score"]["bias"]).item()
      logits[start, end] = logit if is_body_J[start] and is_body_J[end] else logit - 10_000
  return logits


def test_320_tokens_have_3155_candidates_of_up_to_10():
  start, end = span_candidates(320, 10)
  spans = set(zip(start.tolist(), end.tolist()))
  assert len(start) == len(end) == len(spans) == 3155
  assert spans == {(s, e) for s in range(320) for e in range(320) if 0 <= e - s < 10}


def test_candidates_stand_by_width_then_start():
  start, end = span_candidates(4, 3)
  assert list(zip(start.tolist(), end.tolist())) == [
    (0, 0), (1, 1), (2, 2), (3, 3),
    (0, 1), (1, 2), (2, 3),
    (0, 2), (1, 3),
  ]  # fmt: skip


@pytest.mark.parametrize(("length", "max_width"), [(1, 1), (5, 5), (12, 4)])
def test_number_of_candidates(length, max_width):
  assert len(span_candidates(length, max_width)[0]) == max_width * length - max_width * (max_width - 1) // 2


def test_more_width_than_tokens_gives_every_span_once():
  start, end = span_candidates(3, 10)
  assert sorted(zip(start.tolist(), end.tolist())) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]


def test_span_head_matches_numpy():
  head = SpanHead(hidden_size=6, max_width=3, layer_norm_epsilon=1e-3)
  rng = np.random.default_rng(2)
  hidden = rng.normal(size=(2, 7, 8)).astype(np.float32)
  is_body = np.array([[0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0, 0]], bool)
  params = random_params(lambda key: head.init(key, hidden, is_body))
  assert params["endpoint"]["kernel"].shape == (8, 12)
  logit = np.asarray(apply(head, params, hidden, is_body))
  start, end = span_candidates(7, 3)
  p = jax.tree.map(np.float64, params)
  for row in range(2):
    expected = numpy_span_logits(p, np.float64(hidden[row]), is_body[row], 3)
    expected = np.array([expected[span] for span in zip(start.tolist(), end.tolist())])
    is_inside = is_body[row][start] & is_body[row][end]
    np.testing.assert_allclose(logit[row][is_inside], expected[is_inside], rtol=0, atol=1e-5)
    # A float32 near 10,000 has steps of 0.001.
    np.testing.assert_allclose(logit[row][~is_inside], expected[~is_inside], rtol=0, atol=1e-3)
    assert (logit[row] > -100).sum() == is_inside.sum() == (9 if row == 0 else 1)


def test_span_head_takes_bfloat16_hidden_states():
  head = SpanHead(hidden_size=6, max_width=3, layer_norm_epsilon=1e-3)
  hidden = jnp.asarray(np.random.default_rng(2).normal(size=(7, 8)), jnp.bfloat16)
  params = random_params(lambda key: head.init(key, hidden, np.ones(7, bool)))
  logit = apply(head, params, hidden, np.ones(7, bool))
  assert logit.dtype == jnp.float32
  np.testing.assert_array_equal(logit, apply(head, params, hidden.astype(jnp.float32), np.ones(7, bool)))


def test_both_heads_read_the_one_encoder(reader, params, joint):
  hidden = apply(Bert(**reader.bert), params["encoder"], joint)
  mask_position = np.array([[[1, 4]] * 3, [[2, 0]] * 3], np.int32)
  masked = np.take_along_axis(np.asarray(hidden), mask_position[..., None], -2)
  expected = apply(
    MaskedWordHead(VOCAB_SIZE), params["masked_word_head"], masked, params["encoder"]["word_embeddings"]["embedding"]
  )
  log_prob = apply(reader, params, joint, mask_position, method="masked_word_log_prob")
  assert log_prob.shape == (2, 3, 2, VOCAB_SIZE)
  np.testing.assert_allclose(log_prob, expected, rtol=0, atol=1e-6)
  is_body = (joint.segment_id == 1) & joint.is_token
  logit = apply(reader, params, joint, is_body, method="span_logit")
  head = SpanHead(6, 3, 1e-3)
  np.testing.assert_allclose(logit, apply(head, params["span_head"], hidden, is_body), rtol=0, atol=1e-6)


def test_joint_argmax_is_the_best_span_of_the_best_passage(reader, params, joint):
  is_body = (joint.segment_id == 1) & joint.is_token
  span_logit_BKS = np.asarray(apply(reader, params, joint, is_body, method="span_logit"))
  hidden = np.float64(apply(Bert(**reader.bert), params["encoder"], joint))
  start_S, end_S = span_candidates(10, 3)
  for score_K in ([0.0, 0.0, 0.0], [0.0, 40.0, 0.0], [9.0, 0.0, 90.0]):
    joint_BKS = span_logit_BKS + np.array(score_K)[:, None]
    k_B, s_B = np.unravel_index(joint_BKS.reshape(2, -1).argmax(1), joint_BKS.shape[1:])
    # ORQA takes the two arguments one by one (section 2.3).
    np.testing.assert_array_equal(k_B, joint_BKS.max(2).argmax(1))
    np.testing.assert_array_equal(s_B, joint_BKS.max(1).argmax(1))
    if max(score_K) > 20:
      assert (k_B == np.argmax(score_K)).all()
    for b in range(2):
      expected = numpy_best(params["span_head"], hidden[b], is_body[b], score_K)
      assert (k_B[b], start_S[s_B[b]], end_S[s_B[b]]) == expected
      assert is_body[b, k_B[b], start_S[s_B[b]]] and is_body[b, k_B[b], end_S[s_B[b]]]


def numpy_best(span_head_params, hidden_KJE, is_body_KJ, score_K):
  p = jax.tree.map(np.float64, span_head_params)
  logits = {
    (k, *span): logit + score
    for k, score in enumerate(score_K)
    for span, logit in numpy_span_logits(p, hidden_KJE[k], is_body_KJ[k], 3).items()
  }
  return max(logits, key=logits.get)
