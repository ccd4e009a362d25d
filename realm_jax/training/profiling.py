"""A trace of a few steps: what the host and the devices did when."""

from __future__ import annotations

import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from realm_jax.index.run_dir import RunDir


class Profile:
  """Traces some steps into the run directory's `profile/`, each host its own.

  Leaving it as a context manager ends the trace, for the run may end before the last of them.
  """

  def __init__(self, steps: str | None, run_dir: RunDir, *, log: Callable[[str], None]):
    """steps: "10:13" traces the three steps after the 10th; None: nothing is traced.

    Raises:
      ValueError: other words than those.
    """
    self._run_dir, self._log, self._scratch = run_dir, log, ""
    self._first, self._last = parse_steps(steps) if steps else (-1, -1)

  def __enter__(self) -> Profile:
    return self

  def __exit__(self, exc_type: type[BaseException] | None, *exc: object) -> None:
    if self._scratch:
      self._write()
    elif self._first < self._last and exc_type is None:
      self._log(f"nothing was traced: this call made none of the steps between {self._first} and {self._last}")

  def begin(self, step: int) -> None:
    """Called before the step after `step` others, which a resumed run may find to lie beyond the first."""
    if self._first <= step < self._last and not self._scratch:
      # JAX writes local files; those of a bucket are copied there.
      self._scratch = tempfile.mkdtemp() if self._run_dir.is_bucket else str(self._run_dir.profile)
      jax.profiler.start_trace(self._scratch, create_perfetto_trace=True)

  def end(self, step: int, outputs: Any) -> None:
    """Called after the `step`-th step, with what it computes."""
    if self._scratch and step == self._last:
      jax.block_until_ready(outputs)
      self._write()

  def _write(self) -> None:
    jax.profiler.stop_trace()
    if self._run_dir.is_bucket:
      _copy(pathlib.Path(self._scratch), self._run_dir.profile)
    self._scratch, self._first = "", self._last
    self._log(
      f"profile of the steps to {self._last}: {self._run_dir.profile}; open its perfetto_trace.json.gz at "
      f"https://ui.perfetto.dev, or all of it with  pip install xprof; xprof --logdir={self._run_dir.profile}"
    )


def parse_steps(text: str) -> tuple[int, int]:
  """ "10:13" -> 10, 13.

  Raises:
    ValueError: it is nothing like that.
  """
  match = re.fullmatch(r"(\d+):(\d+)", text)
  first, last = map(int, match.groups()) if match else (0, 0)
  if first >= last:
    raise ValueError(f"--profile={text}, expected FIRST:LAST, as 10:13 for the three steps after the 10th")
  return first, last


def _copy(source: pathlib.Path, target: epath.Path) -> None:
  for path in source.rglob("*"):
    if path.is_file():
      (target / path.relative_to(source).as_posix()).write_bytes(path.read_bytes())
