"""What differs between the stages: their queries, how a batch is made of them, and their objective."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from realm_jax.batch import MaskedBatch, QueryBatch, ReadingBatch
from realm_jax.config import make_reader, make_retriever
from realm_jax.data.mixing import masked_sentences
from realm_jax.data.negatives import HardNegativeSource
from realm_jax.data.passages import PassageStore
from realm_jax.data.queries import QuerySource, QuestionSource, ReadSource, SentenceSource
from realm_jax.data.questions import Question, read_questions
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.index.hosts import is_first
from realm_jax.index.neighbours import read_neighbours
from realm_jax.index.retrieve import BatchAssembler, search
from realm_jax.index.snapshot import Snapshot
from realm_jax.model.losses import RETRIEVER_LOSSES
from realm_jax.training.microbatches import Objective, in_microbatches
from realm_jax.training.objectives import (
  ict_objective,
  masked_word_objective,
  question_objective,
  reading_objective,
)

MakeBatch = Callable[[QueryBatch, Any, Snapshot | None], Any]  # queries, parameters, index -> the step's batch
_SEARCHING = ("pretrain", "finetune")


class Stage(NamedTuple):
  """The parts that the loop is given."""

  source: QuerySource
  objective: Objective
  needs_index: bool
  frozen: tuple[str, ...]  # parameters that are not trained
  make_batch: MakeBatch


def frozen_parameters(config: ConfigDict) -> tuple[str, ...]:
  """Subtrees of the parameters that the config's stage doesn't train: in fine-tuning the tower that made the index.

  Raises:
    ValueError: trains_passage_tower, or its absence, does not fit the stage or the model.
  """
  if config.stage != "finetune":
    if config.trains_passage_tower:
      raise ValueError(f"trains_passage_tower is for finetune; leave it at False for {config.stage}")
    return ()
  if config.trains_passage_tower:
    return ()
  if config.model.towers_are_shared:
    raise ValueError(
      "fine-tuning trains the query tower, and with model.towers_are_shared=True so the passage tower, whose index is "
      "not refreshed; set --config.model.towers_are_shared=False, or --config.trains_passage_tower=True"
    )
  return ("passage_tower",)


def make_objective(config: ConfigDict, vocab_size: int) -> Objective:
  """The objective of the config's stage.

  Raises:
    ValueError: an unknown retriever_loss, or a field for a stage that has no use for it.
  """
  name = config.retriever_loss
  for field in ("reads_null_passage", "reads_annotated_passages"):
    if config[field] and config.stage != "finetune":
      raise ValueError(f"{field} is for finetune; leave it at False for {config.stage}")
  if name not in ("joint", *RETRIEVER_LOSSES):
    raise ValueError(f"unknown retriever_loss {name!r}; there are joint, {', '.join(RETRIEVER_LOSSES)}")
  if name != "joint" and config.stage not in _SEARCHING:
    raise ValueError(f"retriever_loss={name} is for pretrain and finetune; leave it at joint for {config.stage}")
  retriever, reader = make_retriever(config.model, vocab_size), make_reader(config.model, vocab_size)
  if config.stage == "ict":
    return ict_objective(retriever, num_microbatches=config.num_microbatches)
  if config.stage == "finetune":
    return in_microbatches(question_objective(retriever, reader, retriever_loss=name), config.num_microbatches)
  if config.stage == "mlm":
    return in_microbatches(reading_objective(reader), config.num_microbatches, _num_masked)
  objective = masked_word_objective(retriever, reader, per_example=config.marginalize_per_example, retriever_loss=name)
  if config.marginalize_per_example:
    return in_microbatches(objective, config.num_microbatches)
  return in_microbatches(objective, config.num_microbatches, _num_masked)


def _num_masked(batch: MaskedBatch | ReadingBatch) -> jax.Array:
  return batch.mask_weight_BM.sum()


def make_stage(
  config: ConfigDict,
  store: PassageStore,
  vocabulary: Vocabulary,
  *,
  put: Callable[[Any], Any] = jax.device_put,
  fetch: Callable[[jax.Array], np.ndarray] = jax.device_get,
) -> Stage:
  """The parts of the config's stage.

  Args:
    put, fetch: bring the queries to the devices that hold the parameters, and their embeddings back.

  Raises:
    ValueError: the config and the corpus don't fit together.
  """
  objective, frozen = make_objective(config, len(vocabulary)), frozen_parameters(config)
  _check_fields(config, store)
  assembler = BatchAssembler(store, vocabulary, joint_length=config.joint_length)
  if config.stage != "ict" and is_first() and (cut := assembler.what_is_cut(config.query_length)):
    print(cut, file=sys.stderr)
  find = functools.partial(search, make_retriever(config.model, len(vocabulary)), put=put, fetch=fetch)
  draw = {"seed": config.seed, "query_length": config.query_length, "max_masks": config.max_masks}
  source: QuerySource
  if config.stage == "ict":
    source = _sentences(config, store, SentenceSource(store, removal_rate=config.removal_rate, **draw))
    make_batch = _of_queries(assembler.ict_batch)
  elif config.stage == "mlm":
    # The rest of a passage is at hand for the sentences of the corpus itself only, so that there is no mixture.
    sentences = masked_sentences(store, masking=config.masking, recurring_rate=config.recurring_rate, **draw)
    rates = {"null_rate": config.null_rate, "distractor_rate": config.distractor_rate}
    source = ReadSource(sentences, len(store), seed=config.seed, **rates)
    make_batch = _of_queries(assembler.reading_batch)
  elif config.stage == "pretrain":
    source = masked_sentences(store, masking=config.masking, mixture=config.mixture, **draw)
    make_batch = _masked_batches(config, assembler, find)
  else:
    questions, regex, skipped = read_questions(config.questions)
    if skipped:
      print(f"{config.questions}: skipped {skipped}", file=sys.stderr)
    source = QuestionSource(questions, vocabulary, **draw)
    make_batch = _question_batches(config, store, assembler, find, questions, regex)
  return Stage(source, objective, config.stage in _SEARCHING, frozen, make_batch)


def _check_fields(config: ConfigDict, store: PassageStore) -> None:
  """Whether the fields have a use in the stage, and fit the corpus and each other."""
  longest = max(store.passage_length, config.query_length, config.joint_length if config.stage != "ict" else 0)
  if longest > config.model.max_length:
    raise ValueError(f"inputs of {longest} tokens don't fit model.max_length={config.model.max_length}; raise it")
  if config.mixture and config.stage != "pretrain":
    raise ValueError(f"a mixture is for the stage pretrain; leave config.mixture empty for {config.stage}")
  if config.num_hard_negatives and config.stage != "ict":
    raise ValueError(f"hard negatives are for the stage ict; leave num_hard_negatives at 0 for {config.stage}")
  if config.stage in _SEARCHING and not 1 <= config.num_passages <= len(store):
    raise ValueError(
      f"num_passages={config.num_passages}, but the corpus has {len(store)} passages; set it to 1 to {len(store)}"
    )
  if config.stage != "finetune":
    return
  if not config.questions:
    raise ValueError("fine-tuning needs questions: set --config.questions to a file, or to nq_open:train")
  if config.beam_size < config.num_passages:
    raise ValueError(
      f"beam_size={config.beam_size} is less than num_passages={config.num_passages}, which are read of the beam; set "
      f"--config.beam_size to {config.num_passages} or more"
    )


def _of_queries(make: Callable[[QueryBatch], Any]) -> MakeBatch:
  """For the stages that search nothing."""
  return lambda queries, params, index: make(queries)


def _masked_batches(config: ConfigDict, assembler: BatchAssembler, find: Callable) -> MakeBatch:
  def make_batch(queries, params, index):
    # As many as K passages are asked for: one may be the query's own.
    retrieved_id_BR = find(params["retriever"], queries, index, config.num_passages)[1]
    return assembler.masked_batch(queries, retrieved_id_BR, config.num_passages)

  return make_batch


def _question_batches(
    config: ConfigDict, store: PassageStore, assembler: BatchAssembler, find: Callable, questions: Sequence[Question],
    regex: bool,
) -> MakeBatch:  # fmt: skip
  beam_size = min(config.beam_size, len(store))
  annotated = _annotated(store, questions, config) if config.reads_annotated_passages else None

  def make_batch(queries, params, index):
    retrieved_id_BR = find(params["retriever"], queries, index, beam_size)[1]
    answers_B = [questions[i].answers for i in queries.question_id_B]
    return assembler.question_batch(
        queries, answers_B, retrieved_id_BR, index, config.num_passages, regex=regex,
        trains_passage_tower=config.trains_passage_tower, reads_null_passage=config.reads_null_passage,
        annotated_B=[annotated[i] for i in queries.question_id_B] if annotated else None,
    )  # fmt: skip

  return make_batch


def _sentences(config: ConfigDict, store: PassageStore, source: QuerySource) -> QuerySource:
  """ICT's queries, with hard negatives if the config asks for them."""
  if config.num_hard_negatives == 0:
    return source
  if not config.hard_negatives:
    raise ValueError(
      f"num_hard_negatives={config.num_hard_negatives} needs passages to draw them from: make them with "
      f"realm mine_negatives --corpus={config.corpus} --output=DIR, and set --config.hard_negatives=DIR"
    )
  neighbour_id_NR = read_neighbours(config.hard_negatives, store)
  return HardNegativeSource(source, neighbour_id_NR, config.num_hard_negatives, seed=config.seed)


def _annotated(store: PassageStore, questions: Sequence[Question], config: ConfigDict) -> list[list[int]]:
  """The rows of the passages that each question names; says how many questions name one that is there."""
  rows = store.rows_named(name for question in questions for name in question.annotated)
  annotated = [[i for name in question.annotated for i in rows.get(name, ())] for question in questions]
  num_named = sum(map(bool, annotated))
  if num_named == 0:
    raise ValueError(
      f'no question of {config.questions} has an "annotated" article or passage that is in {config.corpus}; set '
      "--config.reads_annotated_passages=False"
    )
  print(f"{config.questions}: {num_named} of {len(questions)} questions have annotated passages", file=sys.stderr)
  return annotated
