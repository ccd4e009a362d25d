"""What a run says of itself: metrics.jsonl, a progress bar, and other writers."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import jax
import tqdm

from realm_jax.index.hosts import is_first
from realm_jax.index.run_dir import RunDir
from realm_jax.training.metrics_writers import MetricsWriter


class MetricsLog:
  """Averages metrics over the steps between two lines of metrics.jsonl.

  The values stay on the device until a line is due, so that logging makes no step wait.
  """

  def __init__(
      self, run_dir: RunDir, *, first_step: int, num_steps: int, every: int, stage: str,
      writers: Sequence[MetricsWriter] = (), peak_seconds: float | None = None,
  ):  # fmt: skip
    """every: steps between two lines; writers get them too.

    peak_seconds: what a step takes at the devices' peak (see `cost.peak_seconds`), for "mfu".
    """
    self._writers, self._peak_seconds = writers, peak_seconds
    self._run_dir, self._every, self._first_step, self._num_steps = run_dir, every, first_step, num_steps
    self._unwritten = ""
    self._pending: list[dict[str, Any]] = []
    self._since = time.monotonic()
    self._bar = tqdm.tqdm(
      total=num_steps, initial=first_step, desc=stage, unit="step", mininterval=1.0, disable=not is_first(),
      postfix="compiling" if first_step < num_steps else None,
    )  # fmt: skip
    if is_first():
      _drop_lines_after(run_dir, first_step)

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of an update, the `step`-th: arrays on the device or numbers; num_tokens becomes a rate."""
    if not is_first():  # all have the same
      return
    if step == self._first_step + 1:
      self._bar.set_postfix_str("", refresh=False)
    self._pending.append(metrics)
    self._bar.update()
    if step % self._every == 0 or step == self._num_steps:
      self._write_line(step)

  def flush(self) -> None:
    """Writes the lines that a bucket has not yet: nothing can be appended there; they come with a checkpoint."""
    if self._unwritten:
      written = self._run_dir.files.read(self._run_dir.metrics) or b""
      self._run_dir.files.replace(self._run_dir.metrics, written.decode() + self._unwritten)
      self._unwritten = ""

  def close(self) -> None:
    """Writes what is left, and ends bar and writers."""
    self.flush()
    self._bar.close()
    for writer in self._writers:
      writer.close()

  def _write_line(self, step: int) -> None:
    pending = jax.device_get(self._pending)
    seconds = time.monotonic() - self._since
    line: dict[str, float] = {"step": step}
    line |= {name: float(sum(m[name] for m in pending) / len(pending)) for name in pending[0]}
    steps_per_second = len(pending) / seconds
    tokens_per_second = line.pop("num_tokens") * steps_per_second
    line |= {"tokens_per_second": round(tokens_per_second), "steps_per_second": round(steps_per_second, 4)}
    if self._peak_seconds is not None:
      line["mfu"] = round(self._peak_seconds * steps_per_second, 4)
    if self._run_dir.is_bucket:
      self._unwritten += json.dumps(line) + "\n"
    else:
      with self._run_dir.metrics.open("a") as file:
        file.write(json.dumps(line) + "\n")
    for writer in self._writers:
      writer.write(step, line)
    shown = ("loss", "retrieval_utility", "index_age", "mfu")
    postfix = {name: f"{line[name]:.3g}" for name in shown if name in line}
    self._bar.set_postfix(postfix | {"tokens/s": tqdm.tqdm.format_sizeof(line["tokens_per_second"])})
    self._pending, self._since = [], time.monotonic()


def _drop_lines_after(run_dir: RunDir, step: int) -> None:
  """A run that resumes makes the steps after its checkpoint again: their lines go, so that none stands twice."""
  text = run_dir.files.read(run_dir.metrics)
  if text:
    lines = text.splitlines(keepends=True)
    steps = [_step(line) for line in lines]
    if None in steps[:-1]:  # the last one may have been half written when the life before ended
      tqdm.tqdm.write(f"{run_dir.metrics}: {steps[:-1].count(None)} damaged lines are left out")
    kept = [line for line, s in zip(lines, steps) if s is not None and s <= step]
    if len(kept) < len(lines):
      run_dir.files.replace(run_dir.metrics, b"".join(kept).decode())


def _step(line: bytes) -> int | None:
  """None if the line is not whole."""
  try:
    return int(json.loads(line)["step"]) if line.endswith(b"\n") else None
  except (ValueError, TypeError, KeyError):
    return None
