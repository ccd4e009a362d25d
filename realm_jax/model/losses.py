"""Losses and what is measured with them: pure functions of scores and log-probabilities."""

from __future__ import annotations

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
  """Mean over masked tokens of log p(y|x) - log p(y|null, x), in nats; slot 0 is the null passage."""
  log_marginal_BM = per_token_marginal_log_likelihood(score_BK, gold_log_prob_BKM)
  return weighted_mean(log_marginal_BM - gold_log_prob_BKM[:, 0], weight_BM)


def ict_loss(query_emb_BD: jax.Array, passage_emb_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
  """In-batch softmax cross-entropy over inner products, row b positive for query b; returns (loss, is_correct [B])."""
  score_BB = jnp.einsum("bd,cd->bc", query_emb_BD, passage_emb_BD)
  is_correct_B = score_BB.argmax(1) == jnp.arange(len(score_BB))
  return -jnp.diagonal(log_softmax(score_BB)).mean(), is_correct_B


def marginal_log_loss(logit: jax.Array, is_correct: jax.Array) -> jax.Array:
  """-log of the probability of all correct candidates, [B]; 0 where none is correct. Both [B, candidates]."""
  loss_B = logsumexp(logit, axis=-1) - logsumexp(jnp.where(is_correct, logit, logit + _NOT_CORRECT), axis=-1)
  return jnp.where(is_correct.any(-1), loss_B, 0.0)


def question_loss(
  beam_score_BR: jax.Array, beam_has_answer_BR: jax.Array, span_logit_BKS: jax.Array, span_is_gold_BKS: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Early retriever loss and reader loss, each [B]; spans are normalised jointly over the K passages (section 2.4)."""
  joint_logit_BKS = span_logit_BKS + beam_score_BR[:, : span_logit_BKS.shape[1], None]
  num_queries = len(beam_score_BR)
  reader_loss_B = marginal_log_loss(joint_logit_BKS.reshape(num_queries, -1), span_is_gold_BKS.reshape(num_queries, -1))
  return marginal_log_loss(beam_score_BR, beam_has_answer_BR), reader_loss_B


def weighted_mean(value: jax.Array, weight: jax.Array) -> jax.Array:
  """Mean of the values with weight 1; 0 where there are none (Google's div_no_nan)."""
  return (value * weight).sum() / jnp.maximum(weight.sum(), 1e-9)
