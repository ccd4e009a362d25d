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
  loss, is_correct_B = losses.ict_loss(query_emb_BD, passage_emb_BD[:, None])
  score_BB = query_emb_BD @ passage_emb_BD.T
  expected = -np.mean([score_BB[b, b] - np.log(np.exp(score_BB[b]).sum()) for b in range(5)])
  np.testing.assert_allclose(loss, expected, rtol=1e-12)
  np.testing.assert_array_equal(is_correct_B, score_BB.argmax(1) == np.arange(5))
  assert 0 < is_correct_B.sum() < 5


def test_ict_loss_of_equal_embeddings_is_the_log_of_the_batch():
  loss, _ = losses.ict_loss(jnp.ones((8, 4)), jnp.ones((8, 1, 4)))
  np.testing.assert_allclose(loss, np.log(8), rtol=1e-6)


def test_hard_negatives_are_candidates_of_their_own_query_only(float64):
  """By hand: orthogonal queries, so that a negative that counted for another query would add exp(0)."""
  query_emb_BD = np.eye(2)
  passage_emb_BKD = np.array([[[2.0, 0], [3.0, 9], [1.0, 9]], [[0, 5.0], [9, 4.0], [9, 1.0]]])
  loss, is_correct_B = losses.ict_loss(query_emb_BD, passage_emb_BKD)
  first = 2 - np.log(np.exp([2, 0, 3, 1]).sum())
  second = 5 - np.log(np.exp([0, 5, 4, 1]).sum())
  np.testing.assert_allclose(loss, -(first + second) / 2, rtol=1e-12)
  assert is_correct_B.tolist() == [False, True]


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
    beam_score_BR, beam_has_answer_BR, beam_score_BR[:, :3], span_logit_BKS, span_is_gold_BKS
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
  retriever_loss_B, reader_loss_B = losses.question_loss(
    np.zeros((2, 5)), none_BR, np.zeros((2, 3)), np.zeros((2, 3, 4)), none_BKS
  )
  np.testing.assert_allclose(retriever_loss_B, [np.log(5), 0], rtol=1e-12)
  np.testing.assert_allclose(reader_loss_B, [0, np.log(12)], rtol=1e-12)


def random_answers(num_queries=3, num_passages=4, num_spans=5, seed=7):
  """Scores, span logits and gold spans; the last query has none, and not every passage has one."""
  rng = np.random.default_rng(seed)
  span_is_gold_BKS = rng.random((num_queries, num_passages, num_spans)) < 0.2
  span_is_gold_BKS[:, :2, 2], span_is_gold_BKS[:, 3], span_is_gold_BKS[-1] = True, False, False
  span_logit_BKS = rng.normal(0, 2, (num_queries, num_passages, num_spans))
  return rng.normal(0, 2, (num_queries, num_passages)), span_logit_BKS, span_is_gold_BKS


def target_in_numpy(name, score_K, likelihood_K):
  """What the retriever's distribution is drawn to: for EMDR2 the posterior."""
  prior_K = softmax(score_K)
  if name == "emdr2":
    weight_K = prior_K * likelihood_K
  elif name == "perplexity_distillation":
    weight_K = likelihood_K
  else:
    others = [[j for j in range(len(score_K)) if j != k] for k in range(len(score_K))]
    weight_K = np.array([prior_K[j].sum() / (prior_K[j] * likelihood_K[j]).sum() for j in others])
  return weight_K / weight_K.sum()


def loss_in_numpy(name, score_K, likelihood_K):
  if name == "emdr2":
    return -np.log((softmax(score_K) * likelihood_K).sum())
  target_K = target_in_numpy(name, score_K, likelihood_K)
  return sum(t * np.log(t / p) for t, p in zip(target_K, softmax(score_K)) if t > 0)


@pytest.mark.parametrize(
  ("name", "likelihood_K", "expected"),
  [
    ("emdr2", [1 / 8, 3 / 8], np.log(4)),  # the mean is 1/4
    # Targets 1/4 and 3/4, priors 1/2.
    ("perplexity_distillation", [1 / 8, 3 / 8], np.log(1 / 2) / 4 + np.log(3 / 2) * 3 / 4),
    # Without each: means of 1/4, 3/8, 3/8; their inverses are as 3 to 2 to 2; priors 1/3.
    ("leave_one_out", [1 / 2, 1 / 4, 1 / 4], np.log(9 / 7) * 3 / 7 + np.log(6 / 7) * 4 / 7),
  ],
)
def test_retriever_losses_by_hand(float64, name, likelihood_K, expected):
  loss_B = losses.RETRIEVER_LOSSES[name](np.zeros((1, len(likelihood_K))), np.log([likelihood_K]))
  np.testing.assert_allclose(loss_B, [expected], rtol=1e-12)


@pytest.mark.parametrize("name", losses.RETRIEVER_LOSSES)
def test_retriever_losses_and_gradients_match_numpy(float64, name):
  """Each draws the prior to its target: the gradient is p(z|q) minus that. The reader gets none."""
  rng = np.random.default_rng(8)
  score_BK, likelihood_BK = rng.normal(0, 2, (3, 4)), rng.uniform(0.01, 0.9, (3, 4))
  (loss, loss_B), gradients = jax.value_and_grad(
    lambda *inputs: (losses.RETRIEVER_LOSSES[name](*inputs).sum(), losses.RETRIEVER_LOSSES[name](*inputs)),
    argnums=(0, 1),
    has_aux=True,
  )(score_BK, np.log(likelihood_BK))
  np.testing.assert_allclose(loss_B, [loss_in_numpy(name, *row) for row in zip(score_BK, likelihood_BK)], rtol=1e-10)
  target_BK = np.array([target_in_numpy(name, *row) for row in zip(score_BK, likelihood_BK)])
  np.testing.assert_allclose(gradients[0], softmax(score_BK, 1) - target_BK, rtol=1e-8, atol=1e-12)
  np.testing.assert_array_equal(gradients[1], 0)


def test_leave_one_out_needs_another_passage():
  with pytest.raises(ValueError, match=r"^leave-one-out needs 2 passages or more; raise num_passages$"):
    losses.leave_one_out_loss(np.zeros((1, 1)), np.zeros((1, 1)))


@pytest.mark.parametrize("name", losses.RETRIEVER_LOSSES)
def test_separate_question_loss_matches_numpy(float64, name):
  """p(a|z,q) is of the spans within each passage, the reader loss of all; the last question has no answer."""
  score_BK, span_logit_BKS, span_is_gold_BKS = random_answers()
  retriever_loss_B, reader_loss_B = losses.separate_question_loss(name, score_BK, span_logit_BKS, span_is_gold_BKS)
  likelihood_BK = (softmax(span_logit_BKS, 2) * span_is_gold_BKS).sum(2)
  assert (likelihood_BK == 0).sum() > 4  # some passages of the first two questions have no answer
  expected = [loss_in_numpy(name, score_BK[b], likelihood_BK[b]) for b in range(2)]
  np.testing.assert_allclose(retriever_loss_B, [*expected, 0], rtol=1e-10)
  joint = losses.question_loss(score_BK, np.zeros((3, 4), bool), score_BK, span_logit_BKS, span_is_gold_BKS)
  np.testing.assert_array_equal(reader_loss_B, joint[1])


@pytest.mark.parametrize("name", losses.RETRIEVER_LOSSES)
def test_separate_question_losses_keep_apart(name):
  """In float32: the retriever's loss moves no span, the reader's no score, a question without answer neither.

  The second question has its answer in one passage alone, which is then the whole target.
  """
  score_BK, span_logit_BKS, span_is_gold_BKS = random_answers()
  span_is_gold_BKS[1, [0, 2]] = False
  retriever, reader = jax.jit(jax.jacrev(
      lambda s, x: [part.sum() for part in losses.separate_question_loss(name, s, x, span_is_gold_BKS)], (0, 1)
  ))(np.float32(score_BK), np.float32(span_logit_BKS))  # fmt: skip
  np.testing.assert_array_equal(retriever[1], 0)
  np.testing.assert_array_equal(reader[0], 0)
  for gradient in (retriever[0], reader[1]):
    assert np.isfinite(gradient).all() and all(np.abs(gradient[b]).max() > 1e-3 for b in range(2))
    np.testing.assert_array_equal(gradient[2], 0)
  np.testing.assert_allclose(retriever[0][1], softmax(score_BK[1]) - [0, 1, 0, 0], atol=1e-6)


@pytest.mark.parametrize("per_example", [False, True])
def test_with_emdr2_masked_words_have_the_joint_gradient(float64, per_example):
  score_BK, gold_log_prob_BKM, weight_BM = random_masked_batch()

  def separate(score_BK, gold_log_prob_BKM):
    return sum(
      losses.separate_masked_word_loss("emdr2", score_BK, gold_log_prob_BKM, weight_BM, per_example=per_example)
    )

  def joint(score_BK, gold_log_prob_BKM):
    return losses.masked_word_loss(score_BK, gold_log_prob_BKM, weight_BM, per_example=per_example)

  for ours, expected in zip(*(jax.grad(loss, (0, 1))(score_BK, gold_log_prob_BKM) for loss in (separate, joint))):
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-14)
  np.testing.assert_allclose(separate(score_BK, gold_log_prob_BKM), 2 * joint(score_BK, gold_log_prob_BKM), rtol=1e-12)


@pytest.mark.parametrize("name", ["perplexity_distillation", "leave_one_out"])
def test_distillation_from_masked_words_matches_numpy(float64, name):
  score_BK, gold_log_prob_BKM, weight_BM = random_masked_batch()
  per_token, per_example = (
    losses.separate_masked_word_loss(name, score_BK, gold_log_prob_BKM, weight_BM, per_example=flag)
    for flag in (False, True)
  )
  tokens = [(b, m) for b in range(3) for m in range(3) if weight_BM[b, m]]
  expected = np.mean([loss_in_numpy(name, score_BK[b], np.exp(gold_log_prob_BKM[b, :, m])) for b, m in tokens])
  np.testing.assert_allclose(per_token[0], expected, rtol=1e-10)
  likelihood_BK = np.exp((gold_log_prob_BKM * weight_BM[:, None]).sum(2))
  expected = np.mean([loss_in_numpy(name, score_BK[b], likelihood_BK[b]) for b in range(3)])
  np.testing.assert_allclose(per_example[0], expected, rtol=1e-10)
  for flag, found in ((False, per_token), (True, per_example)):
    joint = losses.masked_word_loss(score_BK, gold_log_prob_BKM, weight_BM, per_example=flag)
    np.testing.assert_array_equal(found[1], joint)


@pytest.mark.parametrize("per_example", [True, False])
def test_the_score_gradient_of_masked_words_is_that_of_the_loss(per_example):
  rng = np.random.default_rng(4)
  score_BK, gold_BKM = rng.normal(size=(3, 5)), -rng.exponential(size=(3, 5, 4))
  weight_BM = np.array([[1.0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
  found_BK = losses.masked_word_score_gradient(score_BK, gold_BKM, weight_BM, per_example=per_example)
  for b in range(3):  # a query alone: the mean over masked tokens is over all of a batch
    row = gold_BKM[b : b + 1], weight_BM[b : b + 1]
    expected = jax.grad(lambda score, row=row: -losses.masked_word_loss(score, *row, per_example=per_example))(
      score_BK[b : b + 1]
    )
    np.testing.assert_allclose(found_BK[b : b + 1], expected, atol=1e-6)
  np.testing.assert_allclose(found_BK.sum(1), 0, atol=1e-6)
  assert np.abs(found_BK).max() > 0.1


def test_the_score_gradient_by_hand():
  """p(z|x) = 1/2 each, p(y|z,x) = 0.9 and 0.3: p(y|x) = 0.6, so that r = (1.5 - 1) / 2 and (0.5 - 1) / 2."""
  found = losses.score_gradient(np.zeros((1, 2)), np.log([[0.9, 0.3]]))
  np.testing.assert_allclose(found, [[0.25, -0.25]], atol=1e-6)


def test_the_score_gradient_of_an_answer_is_that_of_the_reader_loss():
  rng = np.random.default_rng(5)
  score_BK, logit_BKS = rng.normal(size=(3, 4)), rng.normal(size=(3, 4, 6))
  is_gold_BKS = rng.random((3, 4, 6)) < 0.2
  is_gold_BKS[0, 0, 0], is_gold_BKS[2] = True, False
  expected = jax.grad(
    lambda score: -losses.question_loss(score, np.ones((3, 4), bool), score, logit_BKS, is_gold_BKS)[1].sum()
  )(score_BK)
  found = losses.question_score_gradient(score_BK, logit_BKS, is_gold_BKS)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert np.abs(found[:2]).max() > 0.1 and not found[2].any()
