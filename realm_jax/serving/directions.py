"""Which passages the gradient of the marginal likelihood would move, for one query whose answer is known."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.batch import NO_PASSAGE, NULL_PASSAGE, MaskedBatch, QueryBatch, QuestionBatch
from realm_jax.data.queries import mask_answer
from realm_jax.index.retrieve import choose_passages
from realm_jax.model import losses
from realm_jax.model.reader import Reader, span_is_gold
from realm_jax.model.retriever import Retriever
from realm_jax.serving.open_qa import OpenQA


def make_query(open_qa: OpenQA, question: str, answer: str | None) -> QueryBatch:
  """A question as it stands, or a sentence with [MASK] where the answer is to stand.

  Raises:
    ValueError: see `mask_answer`.
  """
  if answer is None or "[MASK]" not in question:
    return next(open_qa.query_batches([question]))
  config = open_qa.config
  return mask_answer(question, answer, open_qa.vocabulary, query_length=config.query_length, max_masks=config.max_masks)


def score_gradients(open_qa: OpenQA, question: str, answer: str) -> dict[int, float]:
  """{row of a passage that is read: r(z)}, with NULL_PASSAGE where it is read; see `losses.score_gradient`.

  The passages are those that the next step of training would read for it: in pre-training without the one that the
  sentence itself stands in. All is 0 where no passage that is read has the answer to a question.

  Raises:
    ValueError: a run of a stage without marginal likelihood; a question to a run that fills in masks, or the reverse.
  """
  stage, num_passages = open_qa.config.stage, open_qa.config.num_passages
  if stage not in ("pretrain", "finetune"):
    raise ValueError(f"an answer says nothing to a run of the stage {stage!r}; give one that pre-trains or fine-tunes")
  if ("[MASK]" in question) != (stage == "pretrain"):
    remedy = "write [MASK] where the answer stands in a sentence" if stage == "pretrain" else "ask without [MASK]"
    raise ValueError(f"this run is of the stage {stage!r}: {remedy}")
  queries = make_query(open_qa, question, answer)
  score_BR, row_BR = open_qa.search(queries, num_passages)
  if stage == "finetune":
    reads_null = open_qa.config.reads_null_passage
    questions = open_qa.assembler.question_batch(
      queries, [[answer]], row_BR, open_qa.snapshot, num_passages, reads_null_passage=reads_null
    )
    if reads_null:
      row_BR = np.insert(row_BR, 0, NULL_PASSAGE, axis=1)
      score_BR = np.insert(score_BR, 0, open_qa.null_score(queries), axis=1)
    gradient_BK = _of_question(open_qa.reader, open_qa.params["reader"], jax.device_put(questions), score_BR)
    return dict(zip(row_BR[0].tolist(), np.asarray(gradient_BK)[0].tolist()))
  sentence = question.replace("[MASK]", answer)
  own = next((i for i in row_BR[0].tolist() if sentence in open_qa.store.body(i)), NO_PASSAGE)
  queries = queries._replace(passage_id_B=np.array([own], np.int32))
  row_BK = choose_passages(row_BR, queries.passage_id_B, num_passages)
  batch = open_qa.assembler.masked_batch(queries, row_BR, num_passages)
  per_example = open_qa.config.marginalize_per_example
  gradient_BK = _of_masks(open_qa.retriever, open_qa.reader, per_example, open_qa.params, jax.device_put(batch))
  return dict(zip(row_BK[0].tolist(), np.asarray(gradient_BK)[0].tolist()))


@functools.partial(jax.jit, static_argnums=0)
def _of_question(reader: Reader, params, batch: QuestionBatch, score_BK):
  span_logit_BKS: Any = reader.apply({"params": params}, batch.joint_BKJ, batch.is_body_BKJ, method="span_logit")
  length = batch.is_body_BKJ.shape[-1]
  is_gold_BKS = span_is_gold(batch.gold_start_BKA, batch.gold_end_BKA, length, reader.max_span_width)
  return losses.question_score_gradient(score_BK, span_logit_BKS, is_gold_BKS)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _of_masks(retriever: Retriever, reader: Reader, per_example: bool, params, batch: MaskedBatch):
  """With the passages embedded anew, as in training."""
  towers = {"params": params["retriever"]}
  query_emb_BD: Any = retriever.apply(towers, batch.query_BQ, method="embed_queries")
  passage_emb_BKD: Any = retriever.apply(towers, batch.passage_BKP, method="embed_passages")
  score_BK = jnp.einsum("bd,bkd->bk", query_emb_BD, passage_emb_BKD)
  position_BKM, target_BKM = (
    jnp.repeat(x[:, None], score_BK.shape[1], 1) for x in (batch.mask_position_BM, batch.mask_target_BM)
  )
  log_prob_BKMV: Any = reader.apply(
    {"params": params["reader"]}, batch.joint_BKJ, position_BKM, method="masked_word_log_prob"
  )
  gold_BKM = jnp.take_along_axis(log_prob_BKMV, target_BKM[..., None], -1)[..., 0]
  return losses.masked_word_score_gradient(score_BK, gold_BKM, batch.mask_weight_BM, per_example=per_example)
