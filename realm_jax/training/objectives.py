"""The stages' objectives: (parameters, batch, dropout key) -> loss and metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from realm_jax.batch import IctBatch, MaskedBatch, QuestionBatch, ReadingBatch
from realm_jax.model import losses
from realm_jax.model.reader import Reader, span_candidates
from realm_jax.model.retriever import Retriever

Objective = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def ict_objective(retriever: Retriever, *, num_microbatches: int = 1) -> Objective:
  """Inverse cloze task: the negatives of a query are the passages of all other queries, and its own hard negatives.

  With microbatches only the embeddings are of the whole batch. The backward pass embeds each microbatch anew, so that
  the activations of one are in memory at a time (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size").
  """

  def objective(params, batch: IctBatch, key: jax.Array):
    def embed(part: IctBatch, key: jax.Array):
      query_key, passage_key = jax.random.split(key)
      return (
        _apply(retriever, params["retriever"], part.query_BQ, key=query_key, method="embed_queries"),
        _apply(retriever, params["retriever"], part.passage_BKP, key=passage_key, method="embed_passages"),
      )

    if num_microbatches == 1:
      query_emb_BD, passage_emb_BKD = embed(batch, key)
    else:
      parts = _parts(batch, num_microbatches), jax.random.split(key, num_microbatches)
      embs = jax.lax.map(lambda part: jax.checkpoint(embed)(*part), parts)
      query_emb_BD, passage_emb_BKD = (emb.swapaxes(0, 1).reshape(-1, *emb.shape[2:]) for emb in embs)
    loss, is_correct_B = losses.ict_loss(query_emb_BD, passage_emb_BKD)
    return loss, {"loss": loss, "ict_accuracy": is_correct_B.mean()}

  return objective


def reading_objective(reader: Reader) -> Objective:
  """The reader's warm start: masked words, given the rest of their passage (BERT's pre-training, without its NSP)."""

  def objective(params, batch: ReadingBatch, key: jax.Array):
    gold_log_prob_BM = _gold_log_prob(reader, params, batch.joint_BJ, batch.mask_position_BM, batch.mask_target_BM, key)
    loss = -losses.weighted_mean(gold_log_prob_BM, batch.mask_weight_BM)
    return loss, {"loss": loss}

  return objective


def masked_word_objective(
  retriever: Retriever, reader: Reader, *, per_example: bool, retriever_loss: str = "joint"
) -> Objective:
  """REALM's pre-training: masked words, marginalised over K passages that are scored with current parameters.

  Args:
    retriever_loss: the marginal likelihood trains retriever and reader ("joint"), or the retriever has a loss of its
      own, one of losses.RETRIEVER_LOSSES.
  """

  def objective(params, batch: MaskedBatch, key: jax.Array):
    query_key, passage_key, reader_key = jax.random.split(key, 3)
    query_emb_BD = _apply(retriever, params["retriever"], batch.query_BQ, key=query_key, method="embed_queries")
    passage_emb_BKD = _apply(
      retriever, params["retriever"], batch.passage_BKP, key=passage_key, method="embed_passages"
    )
    score_BK = jnp.einsum("bd,bkd->bk", query_emb_BD, passage_emb_BKD)
    num_passages = score_BK.shape[1]
    mask_position_BKM, target_BKM = (
      jnp.repeat(x[:, None], num_passages, 1) for x in (batch.mask_position_BM, batch.mask_target_BM)
    )
    gold_log_prob_BKM = _gold_log_prob(reader, params, batch.joint_BKJ, mask_position_BKM, target_BKM, reader_key)
    weight_BM = batch.mask_weight_BM
    parts = {}
    if retriever_loss == "joint":
      loss = losses.masked_word_loss(score_BK, gold_log_prob_BKM, weight_BM, per_example=per_example)
    else:
      parts["retriever_loss"], parts["reader_loss"] = losses.separate_masked_word_loss(
        retriever_loss, score_BK, gold_log_prob_BKM, weight_BM, per_example=per_example
      )
      loss = parts["retriever_loss"] + parts["reader_loss"]
    prior_BK = jax.nn.softmax(score_BK)
    return loss, parts | {
      "loss": loss,
      "retrieval_utility": losses.retrieval_utility(score_BK, gold_log_prob_BKM, weight_BM),
      "null_mass": prior_BK[:, 0].mean(),
    }

  return objective


def question_objective(retriever: Retriever, reader: Reader, *, retriever_loss: str = "joint") -> Objective:
  """Fine-tuning: early retriever loss over the beam, reader loss over the spans of the first K passages.

  Args:
    retriever_loss: the retriever learns from both ("joint"), or from one of losses.RETRIEVER_LOSSES over K passages.
  """

  def objective(params, batch: QuestionBatch, key: jax.Array):
    query_key, reader_key = jax.random.split(key)
    query_emb_BD = _apply(retriever, params["retriever"], batch.query_BQ, key=query_key, method="embed_queries")
    beam_score_BR = jnp.einsum("bd,brd->br", query_emb_BD, batch.beam_emb_BRD)
    span_logit_BKS = _apply(
      reader, params["reader"], batch.joint_BKJ, batch.is_body_BKJ, key=reader_key, method="span_logit"
    )
    start_S, end_S = span_candidates(batch.is_body_BKJ.shape[-1], reader.max_span_width)
    span_is_gold_BKS = ((batch.gold_start_BKA[..., None] == start_S) & (batch.gold_end_BKA[..., None] == end_S)).any(-2)
    score_BK = beam_score_BR[:, : span_logit_BKS.shape[1]]
    if retriever_loss == "joint":
      retriever_loss_B, reader_loss_B = losses.question_loss(
        beam_score_BR, batch.beam_has_answer_BR, span_logit_BKS, span_is_gold_BKS
      )
    else:
      retriever_loss_B, reader_loss_B = losses.separate_question_loss(
        retriever_loss, score_BK, span_logit_BKS, span_is_gold_BKS
      )
    loss = (retriever_loss_B + reader_loss_B).mean()
    # Before fine-tuning is done, the prediction is the best span of all passages.
    joint_BX = (span_logit_BKS + score_BK[..., None]).reshape(len(score_BK), -1)
    best_B1 = joint_BX.argmax(1, keepdims=True)
    is_exact_B = jnp.take_along_axis(span_is_gold_BKS.reshape(joint_BX.shape), best_B1, 1)
    return loss, {
      "loss": loss,
      "retriever_loss": retriever_loss_B.mean(),
      "reader_loss": reader_loss_B.mean(),
      "token_exact_match": is_exact_B.mean(),
      "reader_oracle": span_is_gold_BKS.any((1, 2)).mean(),
    }

  return objective


def in_microbatches(
  objective: Objective, num_microbatches: int, weight_of: Callable[[Any], jax.Array] = lambda batch: jnp.ones(())
) -> Objective:
  """The objective of a whole batch, computed in parts one after the other; its gradient too is added up as they come.

  Args:
    weight_of: a part's weight in the mean over all, for the loss, the gradient and the metrics.
  """
  if num_microbatches == 1:
    return objective

  @jax.custom_vjp
  def loss_of(params, batch, key):
    return gradient_of(params, batch, key)[0]

  def gradient_of(params, batch, key):
    parts, keys = _parts(batch, num_microbatches), jax.random.split(key, num_microbatches)
    weights = jax.vmap(weight_of)(parts)
    weights = weights / jnp.maximum(weights.sum(), 1e-9)

    def add(total, part):
      batch, key, weight = part
      (_, metrics), grads = jax.value_and_grad(objective, has_aux=True)(params, batch, key)
      return jax.tree.map(lambda t, x: t + weight * x, total, (metrics, grads)), None

    first = jax.tree.map(lambda x: x[0], (parts, keys))
    metrics = jax.eval_shape(lambda: objective(params, *first)[1])
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (metrics, params))
    (metrics, grads), _ = jax.lax.scan(add, zero, (parts, keys, weights))
    return (metrics["loss"], metrics), grads

  loss_of.defvjp(gradient_of, lambda grads, cotangent: (jax.tree.map(lambda g: cotangent[0] * g, grads), None, None))
  return loss_of


def _parts(batch: Any, num_parts: int) -> Any:
  """[B, ...] -> [parts, B / parts, ...], each part with every so-manieth row, so that no row changes its device."""
  return jax.tree.map(lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), batch)


def _gold_log_prob(reader: Reader, params, joint, mask_position, target, key: jax.Array) -> jax.Array:
  """log p(y_m | ...) of the words behind the masks, [..., M]."""
  log_prob = _apply(reader, params["reader"], joint, mask_position, key=key, method="masked_word_log_prob")
  return jnp.take_along_axis(log_prob, target[..., None], -1)[..., 0]


def _apply(module: nn.Module, params, *inputs, key: jax.Array, method: str) -> jax.Array:
  """A method of a module, with dropout."""
  output = module.apply({"params": params}, *inputs, deterministic=False, rngs={"dropout": key}, method=method)
  assert isinstance(output, jax.Array)  # not the pair that apply returns with mutable collections
  return output
