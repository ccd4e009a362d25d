"""Objectives: their losses and metrics from separate parts, and what gets a gradient."""

import functools

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from realm_jax.batch import IctBatch, MaskedBatch, Packed, QuestionBatch, ReadingBatch
from realm_jax.config import make_reader, make_retriever, paper_config
from realm_jax.model import losses
from realm_jax.model.reader import span_candidates
from realm_jax.training import objectives
from realm_jax.training.objectives import (
  ict_objective,
  masked_word_objective,
  question_objective,
  reading_objective,
)
from realm_jax.training.stages import frozen_parameters, make_objective

pytestmark = pytest.mark.usefixtures("exact_products")

VOCAB_SIZE = 13
CLS, SEP = 1, 2
# What they add to one logit they add to all of a softmax.
IN_ALL_LOGITS = ("key/bias", "passage_tower/layer_norm/bias", "span_head/layer_norm/bias", "span_head/score/bias")


@pytest.fixture(scope="module")
def retriever():
  return make_retriever(tiny_model(), VOCAB_SIZE)


@pytest.fixture(scope="module")
def reader():
  return make_reader(tiny_model(), VOCAB_SIZE)


@pytest.fixture(scope="module")
def params(retriever, reader):
  """No parameter is 0 or 1, so that no path is closed by chance."""
  query, joint = random_packed((1,), 5), random_packed((1,), 9)

  def init(key):
    return {
      "retriever": retriever.init(key, query, query)["params"],
      "reader": reader.init(key, joint, joint.token_id[:, :2])["params"],
    }

  rng = np.random.default_rng(0)

  def random(path, x):
    mean, deviation = {"scale": (1, 0.4), "bias": (0, 0.2)}.get(path[-1].key, (0, 0.4))
    return rng.normal(mean, deviation, x.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(random, jax.eval_shape(init, jax.random.key(0)))


@pytest.fixture(scope="module")
def masked_batch():
  """Two queries; the passages are the null passage and two real ones."""
  passage_BKP = random_packed((2, 3), 6, seed=1)
  passage_BKP.token_id[:, 0] = [CLS, SEP, SEP, 0, 0, 0]
  passage_BKP.segment_id[:, 0] = [0, 0, 1, 0, 0, 0]
  passage_BKP.is_token[:, 0] = [True, True, True, False, False, False]
  return MaskedBatch(
    query_BQ=random_packed((2,), 5, seed=2),
    passage_BKP=passage_BKP,
    joint_BKJ=random_packed((2, 3), 9, seed=3),
    mask_position_BM=np.array([[2, 3], [1, 0]], np.int32),
    mask_target_BM=np.array([[7, 8], [9, 0]], np.int32),
    mask_weight_BM=np.array([[1, 1], [1, 0]], np.float32),
  )


@pytest.fixture(scope="module")
def question_batch():
  """Two questions, a beam of four, two passages read; the first has three gold spans, the second none that fits."""
  return QuestionBatch(
    query_BQ=random_packed((2,), 5, seed=4),
    beam_emb_BRD=np.random.default_rng(5).normal(0, 1, (2, 4, 4)).astype(np.float32),
    beam_has_answer_BR=np.array([[True, False, False, True], [False] * 4]),
    joint_BKJ=random_packed((2, 2), 9, seed=6),
    is_body_BKJ=np.broadcast_to((np.arange(9) > 3) & (np.arange(9) < 8), (2, 2, 9)),
    # The second question's span of four tokens is wider than max_span_width.
    gold_start_BKA=np.array([[[4, -1], [5, 7]], [[4, -1], [-1, -1]]], np.int32),
    gold_end_BKA=np.array([[[5, -1], [6, 7]], [[7, -1], [-1, -1]]], np.int32),
  )


def tiny_model():
  model = paper_config("pretrain").model
  model.update(hidden_size=8, num_layers=1, num_heads=2, mlp_size=8, max_length=9, dropout_rate=0.0, retrieval_size=4)
  model.update(span_hidden_size=6, max_span_width=3, towers_are_shared=False)
  return model


def random_packed(shape, length, seed=0):
  rng = np.random.default_rng(seed)
  return Packed(
    rng.integers(3, VOCAB_SIZE, (*shape, length)).astype(np.int32),
    np.tile((np.arange(length) >= 3).astype(np.int32), (*shape, 1)),
    np.tile(np.arange(length) < length - 1, (*shape, 1)),
  )


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(objective, params, batch):
  """Loss, metrics, gradient."""
  (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(params, batch, jax.random.key(0))
  return loss, metrics, grads


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(module, method, params, *inputs):
  return module.apply({"params": params}, *inputs, method=method)


# One function each, so that one compilation serves all tests.
@functools.cache
def masked_objective_once(retriever, reader):
  return masked_word_objective(retriever, reader, per_example=False)


@functools.cache
def question_objective_once(retriever, reader):
  return question_objective(retriever, reader)


def largest(tree):
  return max(np.abs(x).max() for x in jax.tree.leaves(tree))


def assert_reaches(grads, *, but=()):
  """Every parameter's gradient is nonzero, but for those that no softmax sees, and exactly 0 for the parts in `but`."""
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    name = "/".join(key.key for key in path)
    if any(part in name for part in but):
      assert not np.any(grad), name
    elif name.endswith(IN_ALL_LOGITS):
      assert np.abs(grad).max() < 1e-6, name
    else:
      assert np.abs(grad).max() > 1e-7, name


def masked_parts(retriever, reader, params, batch):
  """Scores and gold log-probabilities, in float64."""
  query_emb_BD = np.float64(apply(retriever, "embed_queries", params["retriever"], batch.query_BQ))
  passage_emb_BKD = np.float64(apply(retriever, "embed_passages", params["retriever"], batch.passage_BKP))
  position_BKM = np.repeat(batch.mask_position_BM[:, None], 3, 1)
  log_prob_BKMV = np.float64(apply(reader, "masked_word_log_prob", params["reader"], batch.joint_BKJ, position_BKM))
  gold_log_prob_BKM = np.array(
    [[[log_prob_BKMV[b, k, m, batch.mask_target_BM[b, m]] for m in range(2)] for k in range(3)] for b in range(2)]
  )
  return (query_emb_BD[:, None] * passage_emb_BKD).sum(-1), gold_log_prob_BKM


def test_masked_word_objectives_from_their_parts(retriever, reader, params, masked_batch):
  loss, metrics, _ = loss_and_gradient(masked_objective_once(retriever, reader), params, masked_batch)
  per_example = jax.jit(masked_word_objective(retriever, reader, per_example=True))
  loss_per_example, _ = per_example(params, masked_batch, jax.random.key(0))
  score_BK, gold_log_prob_BKM = masked_parts(retriever, reader, params, masked_batch)
  assert np.ptp(score_BK, axis=1).min() > 0.1
  log_prior_BK = log_softmax(score_BK, 1)
  marginal_BM = logsumexp(log_prior_BK[..., None] + gold_log_prob_BKM, 1)
  tokens = [(0, 0), (0, 1), (1, 0)]
  expected = -np.mean([marginal_BM[token] for token in tokens])
  first, second = log_prior_BK[0] + gold_log_prob_BKM[0].sum(-1), log_prior_BK[1] + gold_log_prob_BKM[1, :, 0]
  np.testing.assert_allclose(loss_per_example, -(logsumexp(first) + logsumexp(second)) / 2, rtol=1e-5)
  utility = np.mean([marginal_BM[b, m] - gold_log_prob_BKM[b, 0, m] for b, m in tokens])
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
  np.testing.assert_allclose(metrics["retrieval_utility"], utility, rtol=0, atol=1e-5)
  np.testing.assert_allclose(metrics["null_mass"], np.exp(log_prior_BK[:, 0]).mean(), rtol=1e-4)


def test_masked_word_gradients_reach_both_towers_and_the_reader(retriever, reader, params, masked_batch):
  objective = masked_objective_once(retriever, reader)
  grads = loss_and_gradient(objective, params, masked_batch)[2]
  assert_reaches(grads, but=("span_head",))


def test_passage_tower_learns_through_null_and_real_passages(retriever, reader, params, masked_batch):
  """The tower's gradient is the sum over slots of r(z) <e_q, d e_z>, and each slot's part is there."""
  objective = masked_objective_once(retriever, reader)
  grads = loss_and_gradient(objective, params, masked_batch)[2]["retriever"]["passage_tower"]
  score_BK, gold_log_prob_BKM = masked_parts(retriever, reader, params, masked_batch)
  prior_BK1, likelihood_BKM = softmax(score_BK, 1)[..., None], np.exp(gold_log_prob_BKM)
  r_BKM = (likelihood_BKM / (prior_BK1 * likelihood_BKM).sum(1, keepdims=True) - 1) * prior_BK1
  r_BK = np.float32((r_BKM * masked_batch.mask_weight_BM[:, None]).sum(2) / 3)  # three tokens are predicted
  query_emb_BD = apply(retriever, "embed_queries", params["retriever"], masked_batch.query_BQ)

  @jax.jit
  @jax.grad
  def slot_gradient(tower_params, slot):
    passage = Packed(*(x[:, slot] for x in map(jax.numpy.asarray, masked_batch.passage_BKP)))
    emb_BD = retriever.make_tower().apply({"params": tower_params}, passage)
    return -(jax.numpy.asarray(r_BK)[:, slot] * (query_emb_BD * emb_BD).sum(-1)).sum()

  parts = [slot_gradient(params["retriever"]["passage_tower"], slot) for slot in range(3)]
  assert min(map(largest, parts)) > 1e-3
  total = jax.tree.map(lambda *x: sum(x), *parts)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, total)


def test_a_passage_that_helps_gets_a_higher_score(retriever, reader, params, masked_batch):
  """One small step against the gradient of the retriever alone lowers the loss."""
  objective = masked_objective_once(retriever, reader)
  loss, metrics, grads = loss_and_gradient(objective, params, masked_batch)
  step = jax.tree.map(lambda p, g: p - 0.002 * g, params["retriever"], grads["retriever"])
  after, _, _ = loss_and_gradient(objective, params | {"retriever": step}, masked_batch)
  norm = sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(grads["retriever"]))
  # To first order the loss falls by the step times the squared norm of the gradient.
  np.testing.assert_allclose(loss - after, 0.002 * norm, rtol=0.1)


def question_parts(retriever, reader, params, batch):
  """Beam scores [B, R] and span logits [B, K, S], in float64."""
  query_emb_BD = np.float64(apply(retriever, "embed_queries", params["retriever"], batch.query_BQ))
  span_logit_BKS = np.float64(apply(reader, "span_logit", params["reader"], batch.joint_BKJ, batch.is_body_BKJ))
  return (query_emb_BD[:, None] * batch.beam_emb_BRD).sum(-1), span_logit_BKS


def test_reading_objective_from_its_parts(reader, params):
  batch = ReadingBatch(
    joint_BJ=random_packed((2,), 9, seed=3),
    mask_position_BM=np.array([[2, 3], [1, 0]], np.int32),
    mask_target_BM=np.array([[7, 8], [9, 0]], np.int32),
    mask_weight_BM=np.array([[1, 1], [1, 0]], np.float32),
  )
  loss, metrics, grads = loss_and_gradient(reading_objective(reader), {"reader": params["reader"]}, batch)
  log_prob_BMV = np.float64(
    apply(reader, "masked_word_log_prob", params["reader"], batch.joint_BJ, batch.mask_position_BM)
  )
  expected = -(log_prob_BMV[0, 0, 7] + log_prob_BMV[0, 1, 8] + log_prob_BMV[1, 0, 9]) / 3
  np.testing.assert_allclose([loss, metrics["loss"]], expected, rtol=1e-6)
  assert_reaches(grads, but=("span_head",))


def test_question_objective_from_its_parts(retriever, reader, params, question_batch):
  loss, metrics, _ = loss_and_gradient(question_objective_once(retriever, reader), params, question_batch)
  beam_score_BR, span_logit_BKS = question_parts(retriever, reader, params, question_batch)
  start_S, end_S = span_candidates(9, 3)
  spans = list(zip(start_S.tolist(), end_S.tolist()))
  retriever_loss = -np.log(softmax(beam_score_BR[0])[[0, 3]].sum())
  prob_KS = softmax(span_logit_BKS[0] + beam_score_BR[0, :2, None])  # over both axes at once
  reader_loss = -np.log(
    prob_KS[0, spans.index((4, 5))] + prob_KS[1, spans.index((5, 6))] + prob_KS[1, spans.index((7, 7))]
  )
  # The second question has no hit and adds 0, but counts in the mean.
  np.testing.assert_allclose(metrics["retriever_loss"], retriever_loss / 2, rtol=1e-5)
  np.testing.assert_allclose(metrics["reader_loss"], reader_loss / 2, rtol=1e-5)
  np.testing.assert_allclose(loss, (retriever_loss + reader_loss) / 2, rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"], loss)
  assert metrics["reader_oracle"] == 0.5


def test_exact_match_looks_at_the_best_span_of_all_passages(retriever, reader, params, question_batch):
  beam_score_BR, span_logit_BKS = question_parts(retriever, reader, params, question_batch)
  joint_BKS = span_logit_BKS + beam_score_BR[:, :2, None]
  best_B2 = np.sort(joint_BKS.reshape(2, -1))[:, -2:]
  assert np.diff(best_B2).min() > 1e-3  # the best two are no tie
  start_S, end_S = span_candidates(9, 3)

  def metrics_of(ranks):
    """Metrics where each question's only gold span is the one of its rank, 0 the best."""
    gold = np.full((2, 2, 2, 2), -1, np.int32)
    for b, rank in enumerate(ranks):
      k, s = np.unravel_index(np.argsort(-joint_BKS[b].ravel())[rank], joint_BKS.shape[1:])
      gold[:, b, k, 1] = start_S[s], end_S[s]
    batch = question_batch._replace(gold_start_BKA=gold[0], gold_end_BKA=gold[1])
    return loss_and_gradient(question_objective_once(retriever, reader), params, batch)[1]

  for ranks, expected in (((0, 0), 1.0), ((0, 1), 0.5), ((1, 1), 0.0)):
    metrics = metrics_of(ranks)
    assert metrics["token_exact_match"] == expected
    assert metrics["reader_oracle"] == 1.0


def test_question_gradients_reach_query_tower_and_reader_only(retriever, reader, params, question_batch):
  """The beam's embeddings are inputs, so the passage tower gets nothing: the index is frozen (section 2.2)."""
  grads = loss_and_gradient(question_objective_once(retriever, reader), params, question_batch)[2]
  assert_reaches(grads, but=("passage_tower", "masked_word_head"))


@pytest.fixture(scope="module")
def read_anew_batch(question_batch):
  """The same, with the two passages that are read as the passage tower reads them."""
  return question_batch._replace(passage_BKP=random_packed((2, 2), 6, seed=10))


def test_passages_that_are_read_anew_change_nothing_but_their_scores(retriever, reader, params, read_anew_batch):
  """With the tower's own embeddings as the index', loss and all other gradients are those of a frozen tower."""
  beam_emb_BRD = read_anew_batch.beam_emb_BRD.copy()
  beam_emb_BRD[:, :2] = apply(retriever, "embed_passages", params["retriever"], read_anew_batch.passage_BKP)
  frozen = read_anew_batch._replace(beam_emb_BRD=beam_emb_BRD, passage_BKP=None)
  objective = question_objective_once(retriever, reader)
  loss, _, grads = loss_and_gradient(objective, params, read_anew_batch)
  frozen_loss, _, frozen_grads = loss_and_gradient(objective, params, frozen)
  # Only these two of the beam are scored by the tower, so that its last bias counts too.
  assert min(map(largest, jax.tree.leaves(grads["retriever"]["passage_tower"]["layer_norm"]))) > 1e-4
  assert largest(frozen_grads["retriever"]["passage_tower"]) == 0
  del grads["retriever"]["passage_tower"], frozen_grads["retriever"]["passage_tower"]
  np.testing.assert_allclose(loss, frozen_loss, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, frozen_grads)


def joint_score_gradient(beam_score_BR, has_answer_BR, span_logit_BKS, is_gold_BKS):
  """d loss / d score [B, K] of the mean over B questions: what the softmax gives minus what the right ones share."""
  gradient_BK = np.zeros(span_logit_BKS.shape[:2])
  for b, score_R in enumerate(beam_score_BR):
    if has_answer_BR[b].any():
      prior_R = softmax(score_R)
      right_R = prior_R * has_answer_BR[b]
      gradient_BK[b] += (prior_R - right_R / right_R.sum())[: gradient_BK.shape[1]]
    if is_gold_BKS[b].any():
      prob_KS = softmax(span_logit_BKS[b] + score_R[: gradient_BK.shape[1], None])
      right_KS = prob_KS * is_gold_BKS[b]
      gradient_BK[b] += (prob_KS - right_KS / right_KS.sum()).sum(1)
  return gradient_BK / len(beam_score_BR)


@pytest.mark.parametrize("name", ["joint", *losses.RETRIEVER_LOSSES])
def test_passage_tower_learns_from_the_passages_that_are_read(name, retriever, reader, params, read_anew_batch):
  """Its gradient is the sum over the passages read of (d loss / d score) <e_q, d e_z>."""
  objective = question_objective(retriever, reader, retriever_loss=name)
  found = loss_and_gradient(objective, params, read_anew_batch)[2]["retriever"]["passage_tower"]
  passage_emb_BKD = apply(retriever, "embed_passages", params["retriever"], read_anew_batch.passage_BKP)
  query_emb_BD = apply(retriever, "embed_queries", params["retriever"], read_anew_batch.query_BQ)
  beam_emb_BRD = np.concatenate([passage_emb_BKD, read_anew_batch.beam_emb_BRD[:, 2:]], 1)
  beam_score_BR, span_logit_BKS = question_parts(
    retriever, reader, params, read_anew_batch._replace(beam_emb_BRD=beam_emb_BRD)
  )
  start_S, end_S = span_candidates(9, 3)
  gold_BKS = np.zeros(span_logit_BKS.shape, bool)
  for (b, k, a), start in np.ndenumerate(read_anew_batch.gold_start_BKA):
    gold_BKS[b, k] |= (start_S == start) & (end_S == read_anew_batch.gold_end_BKA[b, k, a])
  assert gold_BKS.sum() == 3
  if name == "joint":
    gradient_BK = joint_score_gradient(beam_score_BR, read_anew_batch.beam_has_answer_BR, span_logit_BKS, gold_BKS)
  else:

    def loss_of(score_BK):
      return losses.separate_question_loss(name, score_BK, np.float32(span_logit_BKS), gold_BKS)[0].mean()

    gradient_BK = jax.grad(loss_of)(np.float32(beam_score_BR[:, :2]))
  gradient_BK = np.float32(gradient_BK)
  assert np.abs(gradient_BK[0]).min() > 1e-3 and not gradient_BK[1].any()

  @jax.jit
  @jax.grad
  def expected(tower_params):
    emb_BKD = retriever.make_tower().apply({"params": tower_params}, read_anew_batch.passage_BKP)
    return (gradient_BK * (query_emb_BD[:, None] * emb_BKD).sum(-1)).sum()

  expected = expected(params["retriever"]["passage_tower"])
  assert largest(expected) > 1e-3
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), found, expected)


def test_the_null_passage_is_right_where_no_passage_has_a_gold_span(retriever, reader, params, question_batch):
  """Slot 0 is the null passage with one span: the second question's gold. The early loss does not see it."""
  null_BP = Packed(
    np.array([[CLS, SEP, SEP]] * 2, np.int32), np.array([[0, 0, 1]] * 2, np.int32), np.ones((2, 3), bool)
  )
  gold = {
    name: np.insert(getattr(question_batch, name), 0, [[-1, -1], [4, -1]], axis=1)
    for name in ("gold_start_BKA", "gold_end_BKA")
  }
  gold["gold_start_BKA"][1, 1:] = gold["gold_end_BKA"][1, 1:] = -1
  is_body_BKJ = np.insert(question_batch.is_body_BKJ, 0, np.arange(9) == 4, axis=1)
  batch = question_batch._replace(
    joint_BKJ=random_packed((2, 3), 9, seed=11), is_body_BKJ=is_body_BKJ, null_BP=null_BP, **gold
  )
  loss, metrics, grads = loss_and_gradient(question_objective_once(retriever, reader), params, batch)

  beam_score_BR, span_logit_BKS = question_parts(retriever, reader, params, batch)
  query_emb_BD = np.float64(apply(retriever, "embed_queries", params["retriever"], batch.query_BQ))
  null_emb_BD = np.float64(apply(retriever, "embed_passages", params["retriever"], null_BP))
  score_BK = np.concatenate([(query_emb_BD * null_emb_BD).sum(1, keepdims=True), beam_score_BR[:, :2]], 1)
  start_S, end_S = span_candidates(9, 3)
  spans = list(zip(start_S.tolist(), end_S.tolist()))
  prob_BKS = np.array([softmax(logit_KS + score_K[:, None]) for logit_KS, score_K in zip(span_logit_BKS, score_BK)])
  first = (
    prob_BKS[0, 1, spans.index((4, 5))] + prob_BKS[0, 2, spans.index((5, 6))] + prob_BKS[0, 2, spans.index((7, 7))]
  )
  reader_loss = -(np.log(first) + np.log(prob_BKS[1, 0, spans.index((4, 4))])) / 2
  np.testing.assert_allclose(metrics["reader_loss"], reader_loss, rtol=1e-5)
  retriever_loss = -np.log(softmax(beam_score_BR[0])[[0, 3]].sum()) / 2
  np.testing.assert_allclose(loss, reader_loss + retriever_loss, rtol=1e-5)
  np.testing.assert_allclose(metrics["null_probability"], prob_BKS[:, 0].sum(1).mean(), rtol=1e-4)
  assert 0.01 < metrics["null_probability"] < 0.99
  assert metrics["reader_oracle"] == 0.5  # an answer is a passage's
  assert_reaches(grads, but=("passage_tower", "masked_word_head"))


def test_questions_without_a_hit_give_no_gradient(retriever, reader, params, question_batch):
  nothing = np.full_like(question_batch.gold_start_BKA, -1)
  batch = question_batch._replace(
    beam_has_answer_BR=np.zeros((2, 4), bool), gold_start_BKA=nothing, gold_end_BKA=nothing
  )
  loss, metrics, grads = loss_and_gradient(question_objective_once(retriever, reader), params, batch)
  assert loss == 0 and metrics["reader_oracle"] == 0 and metrics["token_exact_match"] == 0
  assert largest(grads) == 0


@pytest.mark.parametrize("num_microbatches", [1, 2])
@pytest.mark.parametrize("num_negatives", [0, 2])
def test_ict_objective_from_its_parts(retriever, params, num_negatives, num_microbatches):
  params = {"retriever": params["retriever"]}
  batch = IctBatch(random_packed((4,), 5, seed=7), random_packed((4, 1 + num_negatives), 6, seed=8), np.zeros(4, bool))
  objective = ict_objective(retriever, num_microbatches=num_microbatches)
  loss, metrics, grads = loss_and_gradient(objective, params, batch)
  query_emb_BD = np.float64(apply(retriever, "embed_queries", params["retriever"], batch.query_BQ))
  passage_emb_BKD = np.float64(apply(retriever, "embed_passages", params["retriever"], batch.passage_BKP))
  candidates_BCD = [np.concatenate([passage_emb_BKD[:, 0], passage_emb_BKD[b, 1:]]) for b in range(4)]
  score_BC = np.array([candidate_CD @ query_emb_BD[b] for b, candidate_CD in enumerate(candidates_BCD)])
  np.testing.assert_allclose(loss, -np.diag(log_softmax(score_BC, 1)).mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["ict_accuracy"], (score_BC.argmax(1) == np.arange(4)).mean())
  assert_reaches(grads)


def test_a_hard_negative_is_pushed_away_from_its_query(retriever, params):
  """The passage tower's gradient has a part from each negative: p(negative) <e_q, d e_z>, over the batch."""
  params = {"retriever": params["retriever"]}
  batch = IctBatch(random_packed((2,), 5, seed=7), random_packed((2, 2), 6, seed=8), np.zeros(2, bool))
  grads = loss_and_gradient(ict_objective(retriever), params, batch)[2]["retriever"]["passage_tower"]
  query_emb_BD = np.float64(apply(retriever, "embed_queries", params["retriever"], batch.query_BQ))
  passage_emb_BKD = np.float64(apply(retriever, "embed_passages", params["retriever"], batch.passage_BKP))
  negative_B1 = np.einsum("bd,bkd->bk", query_emb_BD, passage_emb_BKD[:, 1:])
  prob_BC = softmax(np.concatenate([query_emb_BD @ passage_emb_BKD[:, 0].T, negative_B1], 1), 1)
  # d loss / d e_z of the first passages and of the negatives.
  pull_BKD = np.stack([(prob_BC[:, :2] - np.eye(2)).T @ query_emb_BD, prob_BC[:, 2:] * query_emb_BD], 1) / 2

  @jax.jit
  @jax.grad
  def gradient(tower_params):
    emb_BKD = retriever.make_tower().apply({"params": tower_params}, batch.passage_BKP)
    return (emb_BKD * np.float32(pull_BKD)).sum()

  expected = gradient(params["retriever"]["passage_tower"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, expected)


def test_query_passages_and_reader_get_dropout_of_their_own(
  retriever, reader, params, masked_batch, question_batch, monkeypatch
):
  apply_alone, keys = objectives._apply, []

  def record(module, params, *inputs, key, method):
    keys.append(jax.random.key_data(key).tobytes())
    return jax.numpy.zeros(jax.eval_shape(lambda: apply_alone(module, params, *inputs, key=key, method=method)).shape)

  monkeypatch.setattr(objectives, "_apply", record)
  ict_batch = IctBatch(random_packed((4,), 5, seed=7), random_packed((4, 2), 6, seed=8), np.zeros(4, bool))
  for objective, batch, num_parts in (
    (ict_objective(retriever), ict_batch, 2),
    (masked_word_objective(retriever, reader, per_example=False), masked_batch, 3),
    (question_objective(retriever, reader), question_batch, 2),
    (question_objective(retriever, reader), question_batch._replace(passage_BKP=masked_batch.passage_BKP), 3),
  ):
    keys.clear()
    for seed in (0, 1):
      objective(params, batch, jax.random.key(seed))
    assert len(set(keys)) == len(keys) == 2 * num_parts


@pytest.fixture
def given_outputs(monkeypatch):
  """The networks' outputs, by method, in place of the networks."""
  rng = np.random.default_rng(9)
  num_spans = len(span_candidates(9, 3)[0])
  shapes = {
    "embed_queries": (2, 4), "embed_passages": (2, 3, 4), "span_logit": (2, 2, num_spans),
    "masked_word_log_prob": (2, 3, 2, VOCAB_SIZE),
  }  # fmt: skip
  outputs = {method: rng.normal(0, 1, shape).astype(np.float32) for method, shape in shapes.items()}
  outputs["masked_word_log_prob"] = log_softmax(outputs["masked_word_log_prob"], -1)
  monkeypatch.setattr(objectives, "_apply", lambda module, params, *inputs, key, method: outputs[method])
  return outputs


@pytest.mark.parametrize("name", losses.RETRIEVER_LOSSES)
def test_question_objective_with_a_retriever_loss_of_its_own(
  name, given_outputs, retriever, reader, params, question_batch
):
  """The retriever learns from the two passages that were read, not from the beam of four."""
  objective = question_objective(retriever, reader, retriever_loss=name)
  loss, metrics = objective(params, question_batch, jax.random.key(0))
  score_BK = np.einsum("bd,bkd->bk", given_outputs["embed_queries"], question_batch.beam_emb_BRD[:, :2])
  start_S, end_S = span_candidates(9, 3)
  spans = list(zip(start_S.tolist(), end_S.tolist()))
  gold_BKS = np.zeros((2, 2, len(spans)), bool)
  gold_BKS[0, 0, spans.index((4, 5))] = True
  gold_BKS[0, 1, [spans.index((5, 6)), spans.index((7, 7))]] = True
  parts = losses.separate_question_loss(name, score_BK, given_outputs["span_logit"], gold_BKS)
  np.testing.assert_allclose([metrics["retriever_loss"], metrics["reader_loss"]], np.mean(parts, 1), rtol=1e-5)
  np.testing.assert_allclose([loss, metrics["loss"]], np.sum(parts) / 2, rtol=1e-5)


@pytest.mark.parametrize("per_example", [False, True])
def test_masked_word_objective_with_a_retriever_loss_of_its_own(
  per_example, given_outputs, retriever, reader, params, masked_batch
):
  name = "perplexity_distillation"
  objective = masked_word_objective(retriever, reader, per_example=per_example, retriever_loss=name)
  loss, metrics = objective(params, masked_batch, jax.random.key(0))
  score_BK = np.einsum("bd,bkd->bk", given_outputs["embed_queries"], given_outputs["embed_passages"])
  log_prob_BKMV, target_BM = given_outputs["masked_word_log_prob"], masked_batch.mask_target_BM
  gold_BKM = np.take_along_axis(log_prob_BKMV, np.tile(target_BM[:, None, :, None], (1, 3, 1, 1)), -1)[..., 0]
  parts = losses.separate_masked_word_loss(
    name, score_BK, gold_BKM, masked_batch.mask_weight_BM, per_example=per_example
  )
  np.testing.assert_allclose([metrics["retriever_loss"], metrics["reader_loss"]], parts, rtol=1e-5)
  np.testing.assert_allclose([loss, metrics["loss"]], np.sum(parts), rtol=1e-5)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_config_names_the_retriever_loss(stage, given_outputs, retriever, reader, masked_batch, question_batch):
  if stage == "pretrain":
    batch, make = masked_batch, functools.partial(masked_word_objective, per_example=False)
  else:
    batch, make = question_batch, question_objective
  config, found = paper_config(stage), {}
  for name in ("joint", "emdr2"):
    config.retriever_loss = name
    nothing = {"retriever": {}, "reader": {}}
    config.model.update(tiny_model())
    found[name], _ = make_objective(config, VOCAB_SIZE)(nothing, batch, jax.random.key(0))
    assert found[name] == make(retriever, reader, retriever_loss=name)(nothing, batch, jax.random.key(0))[0]
  assert found["joint"] != found["emdr2"]


@pytest.mark.parametrize(
  ("stage", "name", "message"),
  [
    ("finetune", "atlas", "unknown retriever_loss 'atlas'; there are joint, emdr2, perplexity_distillation, leave_one"),
    ("ict", "emdr2", "retriever_loss=emdr2 is for pretrain and finetune; leave it at joint for ict"),
  ],
)
def test_a_retriever_loss_that_does_not_fit(stage, name, message):
  config = paper_config(stage)
  config.retriever_loss = name
  with pytest.raises(ValueError, match=f"^{message}"):
    make_objective(config, VOCAB_SIZE)


def test_what_is_frozen():
  config = paper_config("finetune")
  assert frozen_parameters(config) == ("passage_tower",)
  config.model.towers_are_shared = True
  with pytest.raises(
    ValueError, match=r"set --config.model.towers_are_shared=False, or --config.trains_passage_tower="
  ):
    frozen_parameters(config)
  config.trains_passage_tower = True
  assert frozen_parameters(config) == ()
  config = paper_config("pretrain")
  assert frozen_parameters(config) == ()
  config.trains_passage_tower = True
  with pytest.raises(ValueError, match="^trains_passage_tower is for finetune; leave it at False for pretrain$"):
    frozen_parameters(config)
