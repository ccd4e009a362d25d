"""A plan as text: tables of what a chip holds and does, and advice where it is too much."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ml_collections import ConfigDict

from realm_jax.training.collectives import Collective
from realm_jax.training.cost import attention_in_training
from realm_jax.training.planning import LEVEL_OF_SEARCH, Plan, Step, is_searched_on_chip


def describe(plan: Plan) -> str:
  """All that `realm plan` prints."""
  config, mesh = plan.config, plan.config.mesh
  lines = [
    f"{config.stage} on {plan.topology.name}: {plan.topology.num_chips} chips, {config.batch_size} queries a step",
    f"mesh: data {plan.num_rows // mesh.fsdp} x fsdp {mesh.fsdp} x tensor {mesh.tensor}; a device has {plan.batch} "
    f"queries, in microbatches of {plan.batch // config.num_microbatches}",
    _attention_line(config),
    "Compiled, not run: the times are estimates, at the peaks of the data sheet.",
    *_level_lines(plan),
    "",
    *_memory_lines(plan),
  ]
  if plan.step is None:
    return "\n".join([*lines, "", "It does not fit. What makes it smaller:", *[f"  {x}" for x in advice(plan)]])
  lines += ["", *_time_lines(plan, plan.step), "", *_collective_lines(plan.step.collectives)]
  if plan.largest is not None:
    fits, too_many = plan.largest
    limit = f"{too_many} don't" if too_many else "more were not tried"
    in_all = f"{fits * plan.num_rows:,} in all"
    lines += ["", f"largest batch: {fits} queries a device fit, {in_all}; {limit} (compiled at {LEVEL_OF_SEARCH})"]
  return "\n".join(lines)


def advice(plan: Plan) -> list[str]:
  """Flags that make this step smaller and aren't set yet, those that cost least first."""
  config, model, mesh, result = plan.config, plan.config.model, plan.config.mesh, []
  if model.dtype == "float32":
    result.append("--config.model.dtype=bfloat16: activations of half the size, products several times as fast")
  if attention_in_training(config) != "splash":
    result.append(
      "--config.model.attention=splash --config.model.attention_dropout_rate=0: no attention weights in memory"
    )
  more_parts = [n for n in range(config.num_microbatches + 1, plan.batch + 1) if plan.batch % n == 0]
  if more_parts:
    result.append(
      f"--config.num_microbatches={more_parts[0]}: activations of {plan.batch // more_parts[0]} queries at a time, for "
      "the same gradient but for dropout"
    )
  fsdp = math.gcd(plan.num_rows, model.hidden_size)
  if fsdp > mesh.fsdp and plan.memory.parameters + plan.memory.optimizer > 0.1 * plan.available:
    result.append(
      f"--config.mesh.fsdp={fsdp}: each device keeps a part of the parameters and of the optimizer's state, and "
      "gathers them where they are used"
    )
  if model.remat != "layer":
    result.append("--config.model.remat=layer: keeps the layers' inputs only, for up to a third more arithmetic")
  if plan.largest and plan.largest.fits:
    batch_size = plan.largest.fits * plan.num_rows
    result.append(
      f"--config.batch_size={batch_size}: {plan.largest.fits} queries a device fit as it is (compiled at "
      f"{LEVEL_OF_SEARCH})"
    )
  result.append("--topology=...: a slice of more chips, or of chips with more memory")
  return result


def _attention_line(config: ConfigDict) -> str:
  attention, wanted = attention_in_training(config), config.model.attention
  why = "" if attention == wanted else f", as {wanted} knows no dropout of attention weights"
  return f"attention: {attention}{why}"


def _level_lines(plan: Plan) -> list[str]:
  level = plan.optimization_level
  return [f"Compiled at {level}: a job compiles at O2, whose memory traffic can be a quarter less."] if level else []


def _memory_lines(plan: Plan) -> list[str]:
  config, corpus, memory = plan.config, plan.corpus, plan.memory
  index = ""
  if is_searched_on_chip(config, corpus):
    index = "on the first chip of each host (the exact searcher)"
  elif config.stage in ("pretrain", "finetune"):
    host = 4 * corpus.num_passages * config.model.retrieval_size
    index = (
      f"{corpus.num_passages:,} passages searched on the hosts (ScaNN): at least {_gigabytes(host)} of each's memory"
    )
  notes = {"index": index, "activations": "and gradients: what lives only during a step"}
  lines = ["memory of a chip"]
  for kind, num_bytes in dataclasses.asdict(memory).items():
    lines.append(f"  {kind:<13}{_gigabytes(num_bytes):>10}  {notes.get(kind, '')}".rstrip())
  verdict = "fits" if plan.step else "DOES NOT FIT"
  lines.append(f"  {'total':<13}{_gigabytes(memory.total):>10}  of {_gigabytes(plan.available)}: {verdict}")
  return lines


def _time_lines(plan: Plan, step: Step) -> list[str]:
  chip, time, work = plan.topology.chip, step.time, plan.work
  sent = sum(c.num_bytes_sent for c in step.collectives) * chip.devices_per_chip
  needed = work.needed / plan.topology.num_chips
  kernels = f", {work.kernel / plan.topology.num_chips / 1e12:.1f} of it in attention kernels" if work.kernel else ""
  hours = time.seconds * plan.config.num_steps / 3600
  counted = step.compiled_flops * plan.topology.num_chips / work.compiled - 1
  traffic = f"{_gigabytes(step.num_bytes)} read and written"
  rows = [
    ("arithmetic", time.arithmetic, f"{step.flops / 1e12:.1f} TFLOP{kernels}; {chip.flops / 1e12:.0f} TFLOP/s"),
    ("memory", time.memory, f"{traffic}; {chip.hbm_bandwidth / 1e9:.0f} GB/s"),
    ("interconnect", time.interconnect, f"{_gigabytes(sent)} sent; {chip.ici_bandwidth / 1e9:.0f} GB/s"),
  ]
  return [
    "a step, on each chip",
    *[f"  {name:<13}{_seconds(seconds):>10}  {what}" for name, seconds, what in rows],
    f"  {'estimate':<13}{_seconds(time.seconds):>10}  bound by {time.bound}; {hours:,.1f} hours for "
    f"{plan.config.num_steps:,} steps",
    f"  of the arithmetic {needed / 1e12:.1f} TFLOP are needed: an MFU of {needed / chip.flops / time.seconds:.0%}",
    f"  (the compiler counts {abs(counted):.1%} {'more' if counted >= 0 else 'less'} than the matrix products of the "
    "config)",
  ]


def _collective_lines(collectives: Sequence[Collective]) -> list[str]:
  """One line a kind of operation, its parameters or their gradients apart from the rest."""
  groups: dict[tuple[str, str], list[int]] = {}
  for c in collectives:
    of_parameters = "gradients" if c.kind in ("all-reduce", "reduce-scatter") else "parameters"
    for what, num_bytes in ((of_parameters, c.num_parameter_bytes), ("other", c.num_bytes - c.num_parameter_bytes)):
      if num_bytes:
        groups.setdefault((c.kind, what), []).append(num_bytes)
  lines = [f"collectives: {len(collectives)} operations"]
  for (kind, what), sizes in sorted(groups.items()):
    lines.append(
      f"  {kind:<18} {what:<11}{_gigabytes(sum(sizes)):>10} in {len(sizes)}, the largest {_size(max(sizes))}"
    )
  return lines


def _gigabytes(num_bytes: float) -> str:
  return f"{num_bytes / 1e9:.2f} GB"


def _size(num_bytes: float) -> str:
  return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes:.0f} bytes"


def _seconds(seconds: float) -> str:
  return f"{1e3 * seconds:.1f} ms"
