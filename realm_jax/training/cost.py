"""The arithmetic of a step, counted from the config, and the time that a chip takes for what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from realm_jax.model.reader import span_candidates
from realm_jax.training.topology import Chip, peak_flops


class Work(NamedTuple):
  """Floating-point operations in the matrix products of one step, over all devices.

  needed: those of the forward and the backward pass, the count behind "model FLOPs utilisation".
  repeated: those that are done once more, for config.model.remat.
  attention: what of both are products of queries, keys and values with each other.
  kernel: what the attention kernel does in their place, unseen by the compiler; 0 without one.
  """

  needed: float
  repeated: float
  attention: float
  kernel: float

  @property
  def compiled(self) -> float:
    """What the compiler sees."""
    return self.needed + self.repeated - (self.attention if self.kernel else 0)


def step_work(config: ConfigDict, vocab_size: int, passage_length: int) -> Work:
  """Counts a step of the config's stage; element-wise operations, 1 to 2 % more at BERT's sizes, are left out."""
  model, num_queries = config.model, config.batch_size
  size, num_layers = model.hidden_size, model.num_layers
  tower = 2 * size * size + 2 * size * model.retrieval_size  # pooler and projection
  masked_words = config.max_masks * (2 * size * size + 2 * size * vocab_size)
  queries = (num_queries, config.query_length, tower)
  if config.stage == "ict":
    num_negatives = num_queries * config.num_hard_negatives
    encodings = [
      queries,
      (num_queries, passage_length, tower + 2 * num_queries * model.retrieval_size),  # each is scored for all
      (num_negatives, passage_length, tower + 2 * model.retrieval_size),
    ]
  elif config.stage == "mlm":
    encodings = [(num_queries, config.joint_length, masked_words)]
  else:
    num_joint = num_queries * config.num_passages
    passages = (num_joint, passage_length, tower + 2 * model.retrieval_size)
    if config.stage == "pretrain":
      encodings = [queries, passages, (num_joint, config.joint_length, masked_words)]
    else:
      num_spans = len(span_candidates(config.joint_length, model.max_span_width)[0])
      span_size = model.span_hidden_size
      spans = 4 * config.joint_length * size * span_size + 2 * num_spans * span_size
      beam = 2 * config.beam_size * model.retrieval_size
      num_null = num_queries * config.reads_null_passage
      encodings = [(num_queries, config.query_length, tower + beam), (num_joint + num_null, config.joint_length, spans)]
      encodings += [passages] if config.trains_passage_tower else []
      encodings += [(num_null, 3, tower + 2 * model.retrieval_size)]  # [CLS] [SEP] [SEP]

  layers = sum(n * length * num_layers * (8 * size**2 + 4 * size * model.mlp_size) for n, length, _ in encodings)
  attention = sum(n * num_layers * 4 * length**2 * size for n, length, _ in encodings)
  heads = sum(n * head for n, _, head in encodings)
  forward_passes = 1 if model.remat == "none" else 2
  # The backward pass has two products for each one of the forward pass.
  needed = 3 * (layers + attention + heads)
  repeated = {"none": 0.0, "dots": attention, "layer": layers + attention}[model.remat]
  kernel = 0.0
  if attention_in_training(config) == "splash":
    # On lengths in whole blocks of 128. Its backward pass makes the weights anew, once for the queries' gradient (3
    # products), once for the keys' and values' (4).
    padded = sum(n * num_layers * 4 * (-(-length // 128) * 128) ** 2 * size for n, length, _ in encodings)
    kernel = padded * (forward_passes + 7 / 2)
  return Work(needed, repeated, (2 + forward_passes) * attention, kernel)


def attention_in_training(config: ConfigDict) -> str:
  """config.model.attention, or the naive form where that is needed for its dropout."""
  model = config.model
  rate = model.dropout_rate if model.attention_dropout_rate < 0 else model.attention_dropout_rate
  return model.attention if rate == 0 else "naive"


class StepTime(NamedTuple):
  """Seconds for each of what a chip does at the same time, at the peaks of its data sheet."""

  arithmetic: float
  memory: float
  interconnect: float

  @property
  def bound(self) -> str:
    """What takes longest."""
    return max(self._fields, key=lambda field: getattr(self, field))

  @property
  def seconds(self) -> float:
    """An estimate: all is hidden behind what takes longest."""
    return max(self)


def step_time(chip: Chip, flops: float, num_bytes: float, num_bytes_sent: float) -> StepTime:
  """From what one chip computes, reads and writes in its memory, and sends to other chips, in a step."""
  return StepTime(flops / chip.flops, num_bytes / chip.hbm_bandwidth, num_bytes_sent / chip.ici_bandwidth)


def peak_seconds(
  config: ConfigDict, vocab_size: int, passage_length: int, devices: Sequence[jax.Device]
) -> float | None:
  """What the needed work of a step takes at the devices' peak: divided by the time it takes, it is the MFU.

  None where the peak is not known, as on a CPU.
  """
  peak = peak_flops(devices[0].device_kind)
  return step_work(config, vocab_size, passage_length).needed / (peak * len(devices)) if peak else None
