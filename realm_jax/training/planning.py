"""Compiles a config's step for a TPU slice, and tells what it needs there."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from realm_jax.training.abstract_step import (
  AbstractStep,
  CorpusSize,
  OutOfMemory,
  bytes_per_device,
  compile_step,
  lower_step,
)
from realm_jax.training.collectives import Collective, Shape, find_collectives
from realm_jax.training.cost import StepTime, Work, step_time, step_work
from realm_jax.training.topology import Chip, Topology
from realm_jax.training.traffic import memory_traffic

# Of the largest batch: of BERT-base's step in a quarter of the time, with activations that are 2 % off (docs/
# performance.md).
LEVEL_OF_SEARCH = "O0"
_MOST_COMPILATIONS = 6


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one chip, by what they are for."""

  parameters: int
  optimizer: int
  batch: int
  index: int
  activations: float  # and gradients: all that lives only during a step
  program: int

  @property
  def total(self) -> float:
    """Bytes in all."""
    return sum(dataclasses.astuple(self))


class Step(NamedTuple):
  """What one chip does in a step."""

  flops: float  # with those of kernels
  compiled_flops: float  # without them: the compiler's count
  num_bytes: float  # read and written in its memory
  collectives: list[Collective]
  time: StepTime


class Largest(NamedTuple):
  """The largest batch, between numbers of queries that were compiled."""

  fits: int  # the most queries on one device that fit; 0: one is too many
  too_many: int | None  # the fewest that don't; None: the search ended before it found any


class Plan(NamedTuple):
  """A step on a slice, as compiled: whether it fits, and what it computes."""

  config: ConfigDict
  topology: Topology
  corpus: CorpusSize
  batch: int  # queries on one device
  memory: Memory
  available: float  # bytes of memory on one chip
  work: Work  # of all chips together
  step: Step | None  # None: the step doesn't fit
  largest: Largest | None  # None: not looked for
  optimization_level: str | None = None  # None: compiled as a job does

  @property
  def num_rows(self) -> int:
    """Devices, or groups of them along mesh.tensor, that have queries of their own."""
    return self.topology.num_devices // self.config.mesh.tensor


def make_plan(
  config: ConfigDict,
  topology: Topology,
  corpus: CorpusSize,
  devices: Sequence[jax.Device],
  *,
  finds_largest: bool = True,
  optimization_level: str | None = None,
  log: Callable[[str], None] = print,
) -> Plan:
  """Compiles the config's step for a slice, and some more to find the largest batch; minutes for each.

  Args:
    optimization_level: one of abstract_step.OPTIMIZATION_LEVELS, None for what a job compiles. The largest batch is
      looked for at LEVEL_OF_SEARCH.

  Raises:
    ValueError: the devices don't suit the config.
  """
  chip = topology.chip
  hint = "" if optimization_level else ", for minutes (fewer with --optimization_level=O0)"
  log(f"compiling for {topology.name}, {config.batch_size} queries{hint} ...")

  memory, step = _measure(config, corpus, devices, chip, optimization_level)
  work = step_work(config, corpus.vocab_size, corpus.passage_length)
  plan = Plan(config, topology, corpus, 0, memory, chip.hbm, work, step, None, optimization_level)
  plan = plan._replace(batch=config.batch_size // plan.num_rows)
  if not finds_largest:
    return plan
  num_parts = config.num_microbatches  # which a device's queries must be a multiple of

  def measure(candidate: int) -> Memory:
    other = config.copy_and_resolve_references()
    other.batch_size = candidate * num_parts * plan.num_rows
    log(f"compiling for {other.batch_size} queries at {LEVEL_OF_SEARCH}, to find the largest batch ...")
    return _measure(other, corpus, devices, chip, LEVEL_OF_SEARCH)[0]

  largest = find_largest_batch(plan.batch // num_parts, memory, chip.hbm, measure)
  too_many = largest.too_many and num_parts * largest.too_many
  return plan._replace(largest=Largest(num_parts * largest.fits, too_many))


def find_largest_batch(batch: int, memory: Memory, available: float, measure: Callable[[int], Memory]) -> Largest:
  """Looks, where straight lines say that it is, for the number of queries that fit while one more doesn't; of more than
  100 queries, 2 % more.

  The memory of a step is nearly a line, which begins with the gradients, as large as the parameters.

  Args:
    batch, memory: queries at a time on one device, and what they need.
    available: bytes on one chip.
    measure: the memory for another number of queries.
  """
  measured = {batch: memory}
  for _ in range(_MOST_COMPILATIONS):
    largest = _between(measured, available)
    if largest.too_many and largest.too_many - largest.fits <= max(1, largest.fits // 50):
      break
    guess = _guess(measured, available, largest)
    measured[guess] = measure(guess)
  return _between(measured, available)


def _between(measured: Mapping[int, Memory], available: float) -> Largest:
  fits = max((n for n, memory in measured.items() if memory.total <= available), default=0)
  too_many = [n for n, memory in measured.items() if n > fits and memory.total > available]
  return Largest(fits, min(too_many, default=None))


def _guess(measured: Mapping[int, Memory], available: float, largest: Largest) -> int:
  """Where the line through the two numbers next to the limit reaches it, but between the bounds that are known."""
  points = [(n, memory.total) for n, memory in measured.items()]
  if len(points) == 1:
    (memory,) = measured.values()
    points.append((0, memory.total - memory.activations + memory.parameters))
  (n, total), (other, other_total) = sorted(points, key=lambda point: (abs(point[1] - available), -point[0]))[:2]
  slope = (total - other_total) / (n - other)
  guess = int(n + (available - total) / slope) if slope > 0 else 2 * n
  guess = max(guess, largest.fits + 1)
  return min(guess, largest.too_many - 1) if largest.too_many else guess


def _measure(
  config: ConfigDict, corpus: CorpusSize, devices: Sequence[jax.Device], chip: Chip, optimization_level: str | None
):
  """(memory, step) of one chip; no step if it doesn't fit."""
  lowered = lower_step(config, corpus, devices)
  n = chip.devices_per_chip
  parameters, optimizer, batch = (
    n * bytes_per_device(part) for part in (lowered.state.params, lowered.state.opt_state, lowered.batch)
  )
  memory = Memory(parameters, optimizer, batch, _index_bytes(config, corpus), 0.0, 0)
  try:
    compiled = compile_step(lowered, optimization_level)
  except OutOfMemory as error:
    # At least what is missing is missing, whatever the compiler counted.
    return dataclasses.replace(memory, activations=max(n * error.num_bytes, chip.hbm - memory.total + 1)), None
  stats, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
  assert stats is not None and cost is not None and text is not None  # compilers for CPUs, GPUs and TPUs have all
  memory = dataclasses.replace(
    memory, activations=n * stats.temp_size_in_bytes, program=n * stats.generated_code_size_in_bytes
  )
  work = step_work(config, corpus.vocab_size, corpus.passage_length)
  loops = config.num_microbatches  # the compiler counts a loop's body once, and nearly all is in this one
  flops = n * loops * cost["flops"] + work.kernel / len(devices) * n
  num_bytes = n * memory_traffic(text, loops)
  collectives = find_collectives(text, len(devices), parameter_shapes(config, lowered), loops)
  time = step_time(chip, flops, num_bytes, n * sum(c.num_bytes_sent for c in collectives))
  return memory, Step(flops, n * loops * cost["flops"], num_bytes, collectives, time)


def is_searched_on_chip(config: ConfigDict, corpus: CorpusSize) -> bool:
  """Whether the searcher is the exact one, which holds the embeddings on the host's first device."""
  searcher = config.index.searcher
  needs_index = config.stage in ("pretrain", "finetune")
  return needs_index and (
    searcher == "exact" or (searcher == "auto" and corpus.num_passages < config.index.exact_below)
  )


def _index_bytes(config: ConfigDict, corpus: CorpusSize) -> int:
  return 2 * corpus.num_passages * config.model.retrieval_size if is_searched_on_chip(config, corpus) else 0


def parameter_shapes(config: ConfigDict, step: AbstractStep) -> Callable[[Shape], bool]:
  """Tells shapes of the parameters, of a device's part of them, or of what is gathered over one axis of the mesh of
  two; also transposed, or split into heads."""
  hidden, head_size = config.model.hidden_size, config.model.hidden_size // config.model.num_heads
  known: set[Shape] = set()
  for x in jax.tree.leaves(step.state.params):
    spec = (*x.sharding.spec, *[None] * (x.ndim - len(x.sharding.spec)))
    for shape in itertools.product(
      *((n, n // step.mesh.shape[axis]) if axis else (n,) for n, axis in zip(x.shape, spec))
    ):
      known.add(_normal(shape))
      for i, size in enumerate(shape):
        if size in (hidden, hidden // config.mesh.tensor):
          known.add(_normal((*shape[:i], size // head_size, head_size, *shape[i + 1 :])))
  return lambda shape: len(shape) > 0 and _normal(shape) in known


def _normal(shape: Shape) -> Shape:
  return tuple(sorted(size for size in shape if size > 1))
