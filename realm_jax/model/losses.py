"""Losses and what is measured with them: pure functions of scores and log-probabilities."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import log_softmax
from jax.scipy.special import logsumexp

# Google's: finite, so that a question without a correct candidate gives a large loss times 0, not NaN.
_NOT_CORRECT = -10_000.0


def per_token_marginal_log_likelihood(score_BK: jax.Array, gold_log_prob_BKM: jax.Array) -> jax.Array:
  """log sum_k p(z_k|x) p(y_m|z_k,x), [B, M]: Google's released loss."""
  log_prior_BK = log_softmax(score_BK)
  return logsumexp(log_prior_BK[:, :, None] + gold_log_prob_BKM, axis=1)


def per_example_marginal_log_likelihood(
  score_BK: jax.Array, gold_log_prob_BKM: jax.Array, weight_BM: jax.Array
) -> jax.Array:
  """log sum_k p(z_k|x) prod_m p(y_m|z_k,x), [B]: equation 1 of Guu et al. 2020."""
  log_prior_BK = log_softmax(score_BK)
  return logsumexp(log_prior_BK + jnp.einsum("bkm,bm->bk", gold_log_prob_BKM, weight_BM), axis=1)


def masked_word_loss(
  score_BK: jax.Array, gold_log_prob_BKM: jax.Array, weight_BM: jax.Array, *, per_example: bool
) -> jax.Array:
  """Negative marginal log-likelihood: mean over masked tokens, or over examples."""
  if per_example:
    return -per_example_marginal_log_likelihood(score_BK, gold_log_prob_BKM, weight_BM).mean()
  return -weighted_mean(per_token_marginal_log_likelihood(score_BK, gold_log_prob_BKM), weight_BM)


def retrieval_utility(score_BK: jax.Array, gold_log_prob_BKM: jax.Array, weight_BM: jax.Array) -> jax.Array:
  """Mean over masked tokens of log p(y|x) - log p(y|null, x), in nats; slot 0 is the null passage.

  One query, the null passage and another with p = 1/2 each, one masked word: 0.1 likely without, 0.7 with the passage.
  Then p(y|x) is 0.4, and log(0.4 / 0.1) is

  >>> p = jnp.array([[[0.1], [0.7]]])
  >>> print(f"{retrieval_utility(jnp.zeros((1, 2)), jnp.log(p), jnp.ones((1, 1))):.3f}")
  1.386
  """
  log_marginal_BM = per_token_marginal_log_likelihood(score_BK, gold_log_prob_BKM)
  return weighted_mean(log_marginal_BM - gold_log_prob_BKM[:, 0], weight_BM)


def score_gradient(score_BK: jax.Array, log_likelihood_BK: jax.Array) -> jax.Array:
  """r(z) = [p(y|z,x) / p(y|x) - 1] p(z|x), [B, K]: d log p(y|x) / d score (appendix A of Guu et al. 2020).

  Written as the passage's posterior less its prior. Above 0 a step of training raises the score; the sum over K is 0.

  >>> [f"{r:.3f}" for r in score_gradient(jnp.zeros((1, 2)), jnp.log(jnp.array([[0.1, 0.7]])))[0]]
  ['-0.375', '0.375']
  """
  return jax.nn.softmax(score_BK + log_likelihood_BK) - jax.nn.softmax(score_BK)


def masked_word_score_gradient(
  score_BK: jax.Array, gold_log_prob_BKM: jax.Array, weight_BM: jax.Array, *, per_example: bool
) -> jax.Array:
  """`score_gradient` of each query's masked words, [B, K]: their mean, or that of all of them together."""
  if per_example:
    return score_gradient(score_BK, jnp.einsum("bkm,bm->bk", gold_log_prob_BKM, weight_BM))
  gradient_BKM = jax.vmap(score_gradient, in_axes=(None, 2), out_axes=2)(score_BK, gold_log_prob_BKM)
  return jnp.einsum("bkm,bm->bk", gradient_BKM, weight_BM) / jnp.maximum(weight_BM.sum(1, keepdims=True), 1e-9)


def question_score_gradient(score_BK: jax.Array, span_logit_BKS: jax.Array, span_is_gold_BKS: jax.Array) -> jax.Array:
  """`score_gradient` of each question's answer, [B, K]; 0 where no passage that was read has it.

  As the spans are normalised jointly (see `question_loss`), p(z|x) is the share of all of a passage's spans.
  """
  mass_BK = score_BK + logsumexp(span_logit_BKS, axis=-1)
  gradient_BK = score_gradient(mass_BK, correct_log_prob(span_logit_BKS, span_is_gold_BKS))
  return jnp.where(span_is_gold_BKS.any((1, 2))[:, None], gradient_BK, 0.0)


def ict_loss(query_emb_BD: jax.Array, passage_emb_BKD: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Softmax cross-entropy over inner products; returns (loss, is_correct [B]).

  A query's candidates are the first passages of all queries, of which its own is right, and its own hard negatives: not
  those of the others, for which nobody has looked whether they are right for it too.
  """
  in_batch_BB = jnp.einsum("bd,cd->bc", query_emb_BD, passage_emb_BKD[:, 0])
  negative_BK = jnp.einsum("bd,bkd->bk", query_emb_BD, passage_emb_BKD[:, 1:])
  score_BC = jnp.concatenate([in_batch_BB, negative_BK], 1)
  is_correct_B = score_BC.argmax(1) == jnp.arange(len(score_BC))
  return -jnp.diagonal(log_softmax(score_BC)).mean(), is_correct_B


def marginal_log_loss(logit: jax.Array, is_correct: jax.Array) -> jax.Array:
  """-log of the probability of all correct candidates, [B]; 0 where none is correct. Both [B, candidates]."""
  return jnp.where(is_correct.any(-1), -correct_log_prob(logit, is_correct), 0.0)


def correct_log_prob(logit: jax.Array, is_correct: jax.Array) -> jax.Array:
  """log of the probability of all correct candidates, [...]; near -10,000 where none is. Both [..., candidates].

  Of one passage's spans it is log p(a|z,q): the spans are normalised within each passage, not over all K, and all gold
  spans are added up.
  """
  return logsumexp(jnp.where(is_correct, logit, logit + _NOT_CORRECT), axis=-1) - logsumexp(logit, axis=-1)


def question_loss(
    beam_score_BR: jax.Array, beam_has_answer_BR: jax.Array, score_BK: jax.Array, span_logit_BKS: jax.Array,
    span_is_gold_BKS: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
  """Early retriever loss and reader loss, each [B]; spans are normalised jointly over the K passages (section 2.4)."""
  reader_loss_B = _span_loss(score_BK, span_logit_BKS, span_is_gold_BKS)
  return marginal_log_loss(beam_score_BR, beam_has_answer_BR), reader_loss_B


def _span_loss(score_BK: jax.Array, span_logit_BKS: jax.Array, span_is_gold_BKS: jax.Array) -> jax.Array:
  joint_logit_BKS = span_logit_BKS + score_BK[..., None]
  num_queries = len(score_BK)
  return marginal_log_loss(joint_logit_BKS.reshape(num_queries, -1), span_is_gold_BKS.reshape(num_queries, -1))


def stop_gradient_marginal_loss(score_BK: jax.Array, log_likelihood_BK: jax.Array) -> jax.Array:
  """-log sum_k p(z_k|q) SG[p(a|z_k,q)], [B]: the second term of EMDR2 (section 2.3 of Sachan et al. 2021).

  Args:
    log_likelihood_BK: log p(a|z_k,q), which gets no gradient here, nor in the two losses below.
  """
  return -logsumexp(log_softmax(score_BK) + jax.lax.stop_gradient(log_likelihood_BK), axis=1)


def perplexity_distillation_loss(score_BK: jax.Array, log_likelihood_BK: jax.Array) -> jax.Array:
  """KL(t || p(z|q)) in nats, [B], with t_k ~ p(a|z_k,q): PDist in section 2.2 of Izacard et al. 2022 (Atlas)."""
  return _divergence(log_likelihood_BK, score_BK)


def leave_one_out_loss(score_BK: jax.Array, log_likelihood_BK: jax.Array) -> jax.Array:
  """KL(t || p(z|q)) in nats, [B], with t_k ~ 1 / p(a|all but z_k,q): LOOP in section 2.2 of Izacard et al. 2022.

  Atlas' reader reads all other passages at once. Here p(a|all but z_k,q) is the marginal over them, their prior
  normalised anew.

  Raises:
    ValueError: K is 1.
  """
  num_passages = score_BK.shape[1]
  if num_passages < 2:
    raise ValueError("leave-one-out needs 2 passages or more; raise num_passages")

  def log_sum_of_others(x_BK: jax.Array) -> jax.Array:
    return logsumexp(jnp.where(jnp.eye(num_passages, dtype=bool), -jnp.inf, x_BK[:, None]), axis=2)

  rest_BK = log_sum_of_others(score_BK + log_likelihood_BK) - log_sum_of_others(score_BK)
  return _divergence(-rest_BK, score_BK)


def _divergence(target_logit_BK: jax.Array, score_BK: jax.Array) -> jax.Array:
  """KL of the softmax of the scores from that of the targets, which get no gradient."""
  log_target_BK = log_softmax(jax.lax.stop_gradient(target_logit_BK))
  return (jnp.exp(log_target_BK) * (log_target_BK - log_softmax(score_BK))).sum(1)


# What config.retriever_loss names, but for "joint".
RETRIEVER_LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  "emdr2": stop_gradient_marginal_loss,
  "perplexity_distillation": perplexity_distillation_loss,
  "leave_one_out": leave_one_out_loss,
}


def separate_question_loss(
  name: str, score_BK: jax.Array, span_logit_BKS: jax.Array, span_is_gold_BKS: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The retriever loss of that name and the reader loss, each [B]; 0 where no passage that was read has the answer.

  The retriever is told p(a|z_k,q) by `correct_log_prob`. The reader loss is that of `question_loss`; it moves no score.
  """
  log_likelihood_BK = correct_log_prob(span_logit_BKS, span_is_gold_BKS)
  retriever_loss_B = RETRIEVER_LOSSES[name](score_BK, log_likelihood_BK)
  reader_loss_B = _span_loss(jax.lax.stop_gradient(score_BK), span_logit_BKS, span_is_gold_BKS)
  return jnp.where(span_is_gold_BKS.any((1, 2)), retriever_loss_B, 0.0), reader_loss_B


def separate_masked_word_loss(
  name: str, score_BK: jax.Array, gold_log_prob_BKM: jax.Array, weight_BM: jax.Array, *, per_example: bool
) -> tuple[jax.Array, jax.Array]:
  """The retriever loss of that name, and the `masked_word_loss` that moves no score; means as there.

  An answer is each masked word, or per example all of them. The sum of both has with "emdr2" the joint loss' gradient.
  """
  retriever_loss = RETRIEVER_LOSSES[name]
  if per_example:
    loss = retriever_loss(score_BK, jnp.einsum("bkm,bm->bk", gold_log_prob_BKM, weight_BM)).mean()
  else:
    loss_BM = jax.vmap(retriever_loss, in_axes=(None, 2), out_axes=1)(score_BK, gold_log_prob_BKM)
    loss = weighted_mean(loss_BM, weight_BM)
  fixed_BK = jax.lax.stop_gradient(score_BK)
  return loss, masked_word_loss(fixed_BK, gold_log_prob_BKM, weight_BM, per_example=per_example)


def weighted_mean(value: jax.Array, weight: jax.Array) -> jax.Array:
  """Mean of the values with weight 1; 0 where there are none (Google's div_no_nan)."""
  return (value * weight).sum() / jnp.maximum(weight.sum(), 1e-9)
