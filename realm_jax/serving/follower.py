"""Watches a run directory for a newer checkpoint or index than the ones in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from realm_jax.index.run_dir import RunDir
from realm_jax.serving.open_qa import OpenQA


class RunFollower:
  """Finds out what is newer, and loads it. Only what has changed since the last look is tried."""

  def __init__(self, workdir, checkpoint: str | None, log: Callable[[str], None], *, num_passages: int | None = None):
    """checkpoint, num_passages: as `OpenQA.load` takes them; a step stays, and only its index is followed."""
    self._run_dir, self._checkpoint, self._log = RunDir(workdir), checkpoint, log
    self._num_passages = num_passages
    self._seen = self._state()
    self._reason = ""

  def look(self, now: OpenQA) -> OpenQA | None:
    """What is newer than `now`, loaded; None if nothing is, or if it can't be used: then a line says why, once."""
    try:
      state = self._state()
      if state == self._seen:
        return None
      path, num_passages = self._run_dir.path, self._num_passages
      newer = OpenQA.load(path, self._checkpoint, num_passages=num_passages, beside_others=True)
      self._seen, self._reason = state, ""
    except OSError as error:  # of a bucket, or of a snapshot that is deleted meanwhile: tried again
      self._say(f"the run can't be looked at, and is tried again: {error}")
      return None
    # Whatever a damaged file makes a library raise. The server goes on with what it has; a whole one will follow.
    except Exception as error:  # noqa: BLE001
      self._seen = state
      self._say(f"what is new is left out: {error}")
      return None
    if (newer.step, newer.snapshot.version) == (now.step, now.snapshot.version):
      return None
    self._log(f"checkpoint {newer.step} with index {newer.snapshot.version} is taken into use")
    return newer

  def _state(self) -> Any:
    run_dir = self._run_dir
    best = run_dir.files.read(run_dir.best) if self._checkpoint == "best" else None
    steps = run_dir.checkpoint_steps() if self._checkpoint is None else []
    return steps[-1:], run_dir.snapshot_versions()[-1:], best

  def _say(self, line: str) -> None:
    if line != self._reason:
      self._log(line)
    self._reason = line
