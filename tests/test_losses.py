"""Losses: against enumeration and hand-worked cases, gradients against the paper's formula."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from realm_jax.model import losses


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def random_masked_batch(num_queries=3, num_passages=4, num_masks=3, seed=0):
  rng = np.random.default_rng(seed)
  weight_BM = (np.arange(num_masks) < rng.integers(1, num_masks + 1, (num_queries, 1))).astype(np.float64)
  return (
    rng.normal(0, 2, (num_queries, num_passages)),
    np.log(rng.uniform(0.01, 0.9, (num_queries, num_passages, num_masks))),
    weight_BM,
  )


def test_per_token_likelihood_by_enumeration(float64):
  score_BK, gold_log_prob_BKM, _ = random_masked_batch()
  result = losses.per_token_marginal_log_likelihood(score_BK, gold_log_prob_BKM)
  for b, m in itertools.product(range(3), range(3)):
    prior_K = np.exp(score_BK[b]) / np.exp(score_BK[b]).sum()
    expected = np.log(sum(prior_K[k] * np.exp(gold_log_prob_BKM[b, k, m]) for k in range(4)))
    np.testing.assert_allclose(result[b, m], expected, rtol=1e-12)


def test_per_example_likelihood_by_enumeration(float64):
  score_BK, gold_log_prob_BKM, weight_BM = random_masked_batch()
  assert 0 < (weight_BM == 0).sum()
  result = losses.per_example_marginal_log_likelihood(score_BK, gold_log_prob_BKM, weight_BM)
  for b in range(3):
    prior_K = np.exp(score_BK[b]) / np.exp(score_BK[b]).sum()
    likelihood = 0.0
    for k in range(4):
      product = prior_K[k]
      for m in range(3):
        if weight_BM[b, m]:
          product *= np.exp(gold_log_prob_BKM[b, k, m])
      likelihood += product
    np.testing.assert_allclose(result[b], np.log(likelihood), rtol=1e-12)


def test_all_fillings_of_two_masks_have_probability_one(float64):
  """Per example the 3 x 3 fillings form one distribution, per token each mask does: what tells the two apart."""
  rng = np.random.default_rng(1)
  score_BK, log_prob_KMV = rng.normal(0, 2, (1, 4)), log_softmax(rng.normal(0, 2, (4, 2, 3)), -1)
  per_example, per_token = {}, {}
  for words in itertools.product(range(3), repeat=2):
    gold_log_prob_BKM = log_prob_KMV[:, [0, 1], words][None]
    per_example[words] = losses.per_example_marginal_log_likelihood(score_BK, gold_log_prob_BKM, np.ones((1, 2)))[0]
    per_token[words] = losses.per_token_marginal_log_likelihood(score_BK, gold_log_prob_BKM)[0]
  np.testing.assert_allclose(np.exp(list(per_example.values())).sum(), 1, rtol=1e-12)
  np.testing.assert_allclose(np.exp([per_token[w, 0][0] for w in range(3)]).sum(), 1, rtol=1e-12)
  np.testing.assert_allclose(np.exp([per_token[0, w][1] for w in range(3)]).sum(), 1, rtol=1e-12)
  assert abs(per_example[0, 0] - per_token[0, 0].sum()) > 0.01


def test_loss_means_over_tokens_or_over_examples(float64):
  score_BK, gold_log_prob_BKM, weight_BM = random_masked_batch()
  log_prior_BK = log_softmax(score_BK, 1)
  per_token_BM = logsumexp(log_prior_BK[..., None] + gold_log_prob_BKM, 1)
  masked = (gold_log_prob_BKM * weight_BM[:, None]).sum(2)
  per_token, per_example = (
    losses.masked_word_loss(score_BK, gold_log_prob_BKM, weight_BM, per_example=flag) for flag in (False, True)
  )
  np.testing.assert_allclose(per_token, -per_token_BM[weight_BM > 0].mean(), rtol=1e-12)
  np.testing.assert_allclose(per_example, -logsumexp(log_prior_BK + masked, 1).mean(), rtol=1e-12)


def test_both_losses_coincide_where_one_token_is_masked(float64):
  score_BK, gold_log_prob_BKM, _ = random_masked_batch()
  weight_BM = np.array([[1.0, 0, 0]] * 3)
  per_token, per_example = (
    losses.masked_word_loss(score_BK, gold_log_prob_BKM, weight_BM, per_example=flag) for flag in (False, True)
  )
  np.testing.assert_allclose(per_token, per_example, rtol=1e-12)
  many = [losses.masked_word_loss(*random_masked_batch(), per_example=flag) for flag in (False, True)]
  assert abs(many[0] - many[1]) > 0.1


def test_unpredicted_tokens_leave_no_trace():
  score_BK, gold_log_prob_BKM, weight_BM = random_masked_batch()
  changed = np.where(weight_BM[:, None] > 0, gold_log_prob_BKM, -1e4)
  for per_example in (False, True):
    before, after = (
      losses.masked_word_loss(score_BK, x, weight_BM, per_example=per_example) for x in (gold_log_prob_BKM, changed)
    )
    assert before == after
  assert losses.masked_word_loss(score_BK, gold_log_prob_BKM, 0 * weight_BM, per_example=False) == 0


def test_gradient_with_respect_to_a_score_is_the_paper_s(float64):
  """r(z) = [p(y|z,x) / p(y|x) - 1] p(z|x), appendix A of Guu et al. 2020."""
  score_BK, gold_log_prob_BKM, weight_BM = random_masked_batch()
  likelihood = losses.per_example_marginal_log_likelihood
  gradient = jax.grad(lambda s: likelihood(s, gold_log_prob_BKM, weight_BM).sum())(score_BK)
  assert gradient.dtype == np.float64
  prior_BK = softmax(score_BK, 1)
  likelihood_BK = np.exp((gold_log_prob_BKM * weight_BM[:, None]).sum(2))
  marginal_B1 = (prior_BK * likelihood_BK).sum(1, keepdims=True)
  np.testing.assert_allclose(gradient, (likelihood_BK / marginal_B1 - 1) * prior_BK, rtol=1e-10, atol=1e-14)
  np.testing.assert_allclose(gradient.sum(1), 0, atol=1e-14)


def test_gradient_per_token_is_the_paper_s_for_each_token(float64):
  score_BK, gold_log_prob_BKM, weight_BM = random_masked_batch()
  gradient = jax.grad(lambda s: losses.masked_word_loss(s, gold_log_prob_BKM, weight_BM, per_example=False))(score_BK)
  prior_BK1 = softmax(score_BK, 1)[..., None]
  likelihood_BKM = np.exp(gold_log_prob_BKM)
  r_BKM = (likelihood_BKM / (prior_BK1 * likelihood_BKM).sum(1, keepdims=True) - 1) * prior_BK1
  expected = -(r_BKM * weight_BM[:, None]).sum(2) / weight_BM.sum()
  np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-14)


def test_retrieval_utility_by_hand(float64):
  # Priors 1/2 and 1/2; with the null passage the words have 1/8 and 1/2, with the other 3/8 and 1/4:
  # marginals 1/4 and 3/8, so log 2 and log 3/4. The third word is not predicted.
  gold_log_prob_BKM = np.log([[[1 / 8, 1 / 2, 0.9], [3 / 8, 1 / 4, 0.1]]])
  result = losses.retrieval_utility(np.zeros((1, 2)), gold_log_prob_BKM, np.array([[1.0, 1.0, 0.0]]))
  np.testing.assert_allclose(result, (np.log(2) + np.log(3 / 4)) / 2, rtol=1e-12)


def test_retrieval_utility_is_zero_where_the_null_passage_has_all_mass(float64):
  _, gold_log_prob_BKM, weight_BM = random_masked_batch()
  score_BK = np.array([[800.0, 0, 0, 0]] * 3)
  np.testing.assert_allclose(losses.retrieval_utility(score_BK, gold_log_prob_BKM, weight_BM), 0, atol=1e-14)


def test_ict_loss_matches_numpy(float64):
  rng = np.random.default_rng(3)
  query_emb_BD = rng.normal(size=(5, 4))
  passage_emb_BD = np.concatenate([query_emb_BD[:2] * 3, rng.normal(size=(3, 4))])
  loss, is_correct_B = losses.ict_loss(query_emb_BD, passage_emb_BD)
  score_BB = query_emb_BD @ passage_emb_BD.T
  expected = -np.mean([score_BB[b, b] - np.log(np.exp(score_BB[b]).sum()) for b in range(5)])
  np.testing.assert_allclose(loss, expected, rtol=1e-12)
  np.testing.assert_array_equal(is_correct_B, score_BB.argmax(1) == np.arange(5))
  assert 0 < is_correct_B.sum() < 5


def test_ict_loss_of_equal_embeddings_is_the_log_of_the_batch():
  loss, _ = losses.ict_loss(jnp.ones((8, 4)), jnp.ones((8, 4)))
  np.testing.assert_allclose(loss, np.log(8), rtol=1e-6)


def test_marginal_log_loss_by_enumeration(float64):
  rng = np.random.default_rng(4)
  logit, is_correct = rng.normal(0, 3, (4, 6)), rng.random((4, 6)) < 0.4
  is_correct[:, 0] = True
  expected = [-np.log(np.exp(row[flags]).sum() / np.exp(row).sum()) for row, flags in zip(logit, is_correct)]
  np.testing.assert_allclose(losses.marginal_log_loss(logit, is_correct), expected, rtol=1e-12)
  np.testing.assert_allclose(losses.marginal_log_loss(logit, np.ones((4, 6), bool)), 0, atol=1e-14)


def test_marginal_log_loss_gradient_is_prior_minus_posterior(float64):
  rng = np.random.default_rng(5)
  logit, is_correct = rng.normal(0, 3, (2, 6)), np.array([[1, 0, 1, 0, 0, 0], [0] * 6], bool)
  gradient = jax.grad(lambda x: losses.marginal_log_loss(x, is_correct).sum())(logit)
  posterior = softmax(np.where(is_correct[0], logit[0], -np.inf))
  np.testing.assert_allclose(gradient[0], softmax(logit[0]) - posterior, rtol=1e-10, atol=1e-14)
  np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_marginal_log_loss_is_zero_where_nothing_is_correct(dtype):
  # Masked spans are at -10,000 already; 16 bits of either kind must not make them NaN.
  logit = jnp.array([[3.0, -1.0, -10_000.0], [3.0, -1.0, -10_000.0], [-10_000.0] * 3], dtype)
  is_correct = jnp.array([[False, False, False], [False, True, False], [False, False, True]])
  loss_B = losses.marginal_log_loss(logit, is_correct)
  gradient = jax.grad(lambda x: losses.marginal_log_loss(x, is_correct).sum())(logit)
  assert loss_B.dtype == gradient.dtype == dtype
  assert np.isfinite(np.float32(loss_B)).all() and np.isfinite(np.float32(gradient)).all()
  epsilon = float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(np.float32(loss_B[:2]), [0, 4 + np.log1p(np.exp(-4))], rtol=2 * epsilon)
  # All three at -10,000: log 3, with the steps that numbers of that size have.
  np.testing.assert_allclose(np.float32(loss_B[2]), np.log(3), atol=10_000 * epsilon)
  np.testing.assert_array_equal(np.float32(gradient[0]), 0)
  np.testing.assert_allclose(np.float32(gradient[1]), [0.982, -0.982, 0], atol=0.001 + epsilon)


def test_question_loss_normalises_spans_over_all_passages(float64):
  rng = np.random.default_rng(6)
  beam_score_BR, span_logit_BKS = rng.normal(0, 2, (2, 5)), rng.normal(0, 2, (2, 3, 4))
  beam_has_answer_BR, span_is_gold_BKS = rng.random((2, 5)) < 0.5, rng.random((2, 3, 4)) < 0.4
  beam_has_answer_BR[:, 4] = span_is_gold_BKS[:, 1, 2] = True
  retriever_loss_B, reader_loss_B = losses.question_loss(
    beam_score_BR, beam_has_answer_BR, span_logit_BKS, span_is_gold_BKS
  )
  for b in range(2):
    weight_R = np.exp(beam_score_BR[b])
    np.testing.assert_allclose(
      retriever_loss_B[b], -np.log(weight_R[beam_has_answer_BR[b]].sum() / weight_R.sum()), rtol=1e-12
    )
    total = gold = 0.0
    for k, s in itertools.product(range(3), range(4)):
      weight = np.exp(span_logit_BKS[b, k, s]) * np.exp(beam_score_BR[b, k])
      total += weight
      gold += weight * span_is_gold_BKS[b, k, s]
    np.testing.assert_allclose(reader_loss_B[b], -np.log(gold / total), rtol=1e-12)


def test_question_loss_drops_what_has_no_answer(float64):
  """The two rules of supervision may disagree: each loss is dropped by its own."""
  none_BR, none_BKS = np.zeros((2, 5), bool), np.zeros((2, 3, 4), bool)
  none_BR[0, 2] = none_BKS[1, 0, 1] = True
  retriever_loss_B, reader_loss_B = losses.question_loss(np.zeros((2, 5)), none_BR, np.zeros((2, 3, 4)), none_BKS)
  np.testing.assert_allclose(retriever_loss_B, [np.log(5), 0], rtol=1e-12)
  np.testing.assert_allclose(reader_loss_B, [0, np.log(12)], rtol=1e-12)
