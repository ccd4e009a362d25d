"""The stages' objectives: (parameters, batch, dropout key) -> loss and metrics."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from realm_jax.batch import IctBatch, MaskedBatch, QuestionBatch, ReadingBatch
from realm_jax.model import losses
from realm_jax.model.reader import Reader, span_is_gold
from realm_jax.model.retriever import Retriever
from realm_jax.training.microbatches import Objective, map_microbatches


def ict_objective(retriever: Retriever, *, num_microbatches: int = 1) -> Objective:
  """Inverse cloze task: the negatives of a query are the passages of all other queries, and its own hard negatives.

  With microbatches only the embeddings are of the whole batch. The backward pass embeds each microbatch anew, so that
  the activations of one are in memory at a time (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size").
  """

  def objective(params, batch: IctBatch, key: jax.Array):
    def embed(params, part: IctBatch, key: jax.Array):
      query_key, passage_key = jax.random.split(key)
      return (
        _apply(retriever, params, part.query_BQ, key=query_key, method="embed_queries"),
        _apply(retriever, params, part.passage_BKP, key=passage_key, method="embed_passages"),
      )

    if num_microbatches == 1:
      query_emb_BD, passage_emb_BKD = embed(params["retriever"], batch, key)
    else:
      query_emb_BD, passage_emb_BKD = map_microbatches(embed, params["retriever"], batch, key, num_microbatches)
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

  A batch with `passage_BKP` has these K scored with current parameters, so that the passage tower learns; the rest of
  the beam keeps the index' embeddings, which get no gradient. One with `null_BP` has the null passage read in slot 0.

  Args:
    retriever_loss: the retriever learns from both ("joint"), or from one of losses.RETRIEVER_LOSSES over K passages.
  """

  def objective(params, batch: QuestionBatch, key: jax.Array):
    query_key, reader_key = jax.random.split(key)
    query_emb_BD = _apply(retriever, params["retriever"], batch.query_BQ, key=query_key, method="embed_queries")
    # Folded in, for a third part of the split would change the dropout of all runs whose tower is frozen.
    passage_key = jax.random.fold_in(key, 2)
    beam_score_BR, score_BK = _question_scores(retriever, params["retriever"], batch, query_emb_BD, passage_key)
    span_logit_BKS = _apply(
      reader, params["reader"], batch.joint_BKJ, batch.is_body_BKJ, key=reader_key, method="span_logit"
    )
    length = batch.is_body_BKJ.shape[-1]
    span_is_gold_BKS = span_is_gold(batch.gold_start_BKA, batch.gold_end_BKA, length, reader.max_span_width)
    if retriever_loss == "joint":
      retriever_loss_B, reader_loss_B = losses.question_loss(
        beam_score_BR, batch.beam_has_answer_BR, score_BK, span_logit_BKS, span_is_gold_BKS
      )
    else:
      retriever_loss_B, reader_loss_B = losses.separate_question_loss(
        retriever_loss, score_BK, span_logit_BKS, span_is_gold_BKS
      )
    loss = (retriever_loss_B + reader_loss_B).mean()
    # Before fine-tuning is done, the prediction is the best span of all passages.
    joint_BX = (span_logit_BKS + score_BK[..., None]).reshape(len(score_BK), -1)
    best_B1 = joint_BX.argmax(1, keepdims=True)
    parts, is_answer_BKS = {}, span_is_gold_BKS
    if batch.null_BP is not None:  # its span is no answer
      is_answer_BKS = span_is_gold_BKS.at[:, 0].set(False)
      parts["null_probability"] = jax.nn.softmax(joint_BX)[:, : span_is_gold_BKS.shape[-1]].sum(1).mean()
    is_exact_B = jnp.take_along_axis(is_answer_BKS.reshape(joint_BX.shape), best_B1, 1)
    return loss, parts | {
      "loss": loss,
      "retriever_loss": retriever_loss_B.mean(),
      "reader_loss": reader_loss_B.mean(),
      "token_exact_match": is_exact_B.mean(),
      "reader_oracle": is_answer_BKS.any((1, 2)).mean(),
    }

  return objective


def _question_scores(
  retriever: Retriever, params, batch: QuestionBatch, query_emb_BD: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Scores of the beam, [B, R], and of the passages that are read, [B, K]: the beam's first, after the null passage."""
  beam_emb_BRD, passage_BKP, null_BP = batch.beam_emb_BRD, batch.passage_BKP, batch.null_BP
  passage_key, null_key = jax.random.split(key)
  if passage_BKP is not None:
    fresh_emb_BKD = _apply(retriever, params, passage_BKP, key=passage_key, method="embed_passages")
    beam_emb_BRD = jnp.concatenate([fresh_emb_BKD, beam_emb_BRD[:, fresh_emb_BKD.shape[1] :]], 1)
  beam_score_BR = jnp.einsum("bd,brd->br", query_emb_BD, beam_emb_BRD)
  num_read = batch.joint_BKJ.token_id.shape[1]
  if null_BP is None:
    return beam_score_BR, beam_score_BR[:, :num_read]
  null_emb_BD: Any
  if passage_BKP is not None:
    null_emb_BD = _apply(retriever, params, null_BP, key=null_key, method="embed_passages")
  else:  # without dropout, as the index has the other ones
    null_emb_BD = jax.lax.stop_gradient(retriever.apply({"params": params}, null_BP, method="embed_passages"))
  null_score_B = jnp.einsum("bd,bd->b", query_emb_BD, null_emb_BD)
  return beam_score_BR, jnp.insert(beam_score_BR[:, : num_read - 1], 0, null_score_B, axis=1)


def _gold_log_prob(reader: Reader, params, joint, mask_position, target, key: jax.Array) -> jax.Array:
  """log p(y_m | ...) of the words behind the masks, [..., M]."""
  log_prob = _apply(reader, params["reader"], joint, mask_position, key=key, method="masked_word_log_prob")
  return jnp.take_along_axis(log_prob, target[..., None], -1)[..., 0]


def _apply(module: nn.Module, params, *inputs, key: jax.Array, method: str) -> jax.Array:
  """A method of a module, with dropout."""
  output = module.apply({"params": params}, *inputs, deterministic=False, rngs={"dropout": key}, method=method)
  assert isinstance(output, jax.Array)  # not the pair that apply returns with mutable collections
  return output
