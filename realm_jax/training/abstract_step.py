"""The train step and its arguments as shapes, for a compiler that has no data and no devices to run on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from realm_jax.batch import IctBatch, MaskedBatch, Packed, QuestionBatch, ReadingBatch
from realm_jax.training.optimizer import configured_optimizer
from realm_jax.training.sharding import ROWS, placed, state_sharding, step_mesh
from realm_jax.training.stages import frozen_parameters, make_objective
from realm_jax.training.start import abstract_params
from realm_jax.training.step import TrainState, init_state, train_step

# XLA's names for how much a compiler does for a fast program (openxla.org/xla/effort_levels) -> its numbers for them.
# A job compiles with none of them set, which on TPUs is O2.
OPTIMIZATION_LEVELS = {"O0": 9, "O1": 19, "O2": 29, "O3": 39}

_NUM_ANSWERS = 16  # occurrences in a passage: max_answers of index.retrieve.BatchAssembler


class CorpusSize(NamedTuple):
  """What the shapes of a step depend on, besides the config."""

  num_passages: int
  passage_length: int  # tokens
  vocab_size: int


class OutOfMemory(Exception):
  """The compiler found no way to fit the program into a device's memory.

  num_bytes: what the program's temporary arrays take together.
  """

  def __init__(self, message: str, num_bytes: float):
    super().__init__(message)
    self.num_bytes = num_bytes


def abstract_batch(config: ConfigDict, corpus: CorpusSize) -> Any:
  """The batch that the assembler makes for a step of the config's stage, as shapes and types."""

  def array(*shape, dtype=np.int32):
    return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)

  def packed(*shape):
    return Packed(array(*shape), array(*shape), array(*shape, dtype=np.bool_))

  query, joint = config.query_length, config.joint_length
  num_read, num_masks = config.num_passages, config.max_masks
  masks = (array(num_masks), array(num_masks), array(num_masks, dtype=np.float32))
  if config.stage == "ict":
    num_shown = 1 + config.num_hard_negatives
    return IctBatch(packed(query), packed(num_shown, corpus.passage_length), array(dtype=np.bool_))
  if config.stage == "mlm":
    return ReadingBatch(packed(joint), *masks)
  if config.stage == "pretrain":
    return MaskedBatch(packed(query), packed(num_read, corpus.passage_length), packed(num_read, joint), *masks)
  beam_size = min(config.beam_size, corpus.num_passages)
  num_joint = num_read + config.reads_null_passage
  return QuestionBatch(
    packed(query),
    array(beam_size, config.model.retrieval_size, dtype=np.float32),
    array(beam_size, dtype=np.bool_),
    packed(num_joint, joint),
    array(num_joint, joint, dtype=np.bool_),
    array(num_joint, _NUM_ANSWERS),
    array(num_joint, _NUM_ANSWERS),
    packed(num_read, corpus.passage_length) if config.trains_passage_tower else None,
    packed(3) if config.reads_null_passage else None,
  )


class AbstractStep(NamedTuple):
  """One step on a mesh: its arguments with their shardings."""

  mesh: Mesh
  state: TrainState
  batch: Any
  lowered: jax.stages.Lowered


def lower_step(config: ConfigDict, corpus: CorpusSize, devices: Sequence[jax.Device]) -> AbstractStep:
  """Traces the train step that the loop runs; raises ValueError where the devices don't suit the config."""
  mesh = step_mesh(config, devices)
  optimizer = configured_optimizer(config, frozen_parameters(config))
  params = abstract_params(config, corpus.vocab_size)
  state = jax.eval_shape(lambda params: init_state(params, optimizer), params)

  state = placed(state, state_sharding(mesh, state))
  batch = placed(abstract_batch(config, corpus), NamedSharding(mesh, ROWS))
  key = placed(jax.eval_shape(lambda: jax.random.key(0)), NamedSharding(mesh, PartitionSpec()))
  with jax.set_mesh(mesh):
    lowered = train_step.lower(
      state, batch, key, objective=make_objective(config, corpus.vocab_size), optimizer=optimizer
    )
  return AbstractStep(mesh, state, batch, lowered)


def compile_step(step: AbstractStep, optimization_level: str | None = None) -> jax.stages.Compiled:
  """Compiles as a job does, or at one of OPTIMIZATION_LEVELS; raises OutOfMemory if it doesn't fit."""
  options: dict[str, Any] | None = (
    {"optimization_level": OPTIMIZATION_LEVELS[optimization_level]} if optimization_level else None
  )
  try:
    return step.lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    message = str(error)
    match = re.search(r"(?:HLO temporaries \(|Used )([\d.]+)([KMGT]?)", message)
    if "RESOURCE_EXHAUSTED" not in message or match is None:
      raise
    num_bytes = float(match[1]) * 2 ** (10 * " KMGT".index(match[2] or " "))
    raise OutOfMemory(message.splitlines()[0], num_bytes) from error


def bytes_per_device(tree: Any) -> int:
  """Of a tree of shapes with shardings: what one device holds."""
  return sum(
    int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )
