"""The run directory in which the processes meet: every path in it is built and parsed here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import tensorstore as ts
from etils import epath

T = TypeVar("T")


class RunDir:
  """Paths of one run; see the table of the hand-over in docs/handover.md for who writes what."""

  def __init__(self, path):
    # Orbax wants absolute paths; a bucket is absolute already.
    self.path = epath.Path(path) if "://" in str(path) else epath.Path(path).expanduser().resolve()
    self.config = self.path / "config.json"
    self.checkpoints = self.path / "checkpoints"
    self.retriever = self.path / "retriever"
    self.index = self.path / "index"
    self.adoptions = self.path / "adoptions"
    self.metrics = self.path / "metrics.jsonl"
    self.tensorboard = self.path / "tensorboard"
    self.evaluation = self.path / "evaluation"
    self.done = self.path / "DONE"

  def snapshot(self, version: int) -> epath.Path:
    return self.index / f"{version:08d}"

  def snapshot_commit(self, version: int) -> epath.Path:
    return self.snapshot(version) / "COMMIT"

  def snapshot_versions(self) -> list[int]:
    """Committed versions, ascending."""
    return [v for v in _numbers(self.index) if self.snapshot_commit(v).exists()]

  def adoption(self, step: int) -> epath.Path:
    return self.adoptions / f"{step:08d}"

  def adoption_steps(self) -> list[int]:
    return _numbers(self.adoptions)

  def checkpoint_steps(self) -> list[int]:
    return _numbers(self.checkpoints)

  def write_config(self, config: dict[str, Any]) -> None:
    """Writes config.json whole or not at all."""
    self.path.mkdir(parents=True, exist_ok=True)
    write_atomically(self.config, json.dumps(config, indent=2, sort_keys=True) + "\n")

  def read_config(self, *, timeout: float = 0.0) -> dict[str, Any]:
    """The config that the trainer stored; waits up to `timeout` seconds for it."""
    what = f"config.json in {self.path}: start realm train with this --workdir, or check the path"
    wait_for(self.config.exists, timeout, what)
    return json.loads(self.config.read_text())


def wait_for(condition: Callable[[], T | None], timeout: float, what: str, *, poll: float = 0.2) -> T:
  """Returns what condition() gives as soon as that is true; raises TimeoutError with what was waited for."""
  deadline = time.monotonic() + timeout
  while not (value := condition()):
    if time.monotonic() >= deadline:
      raise TimeoutError(f"waited {timeout:.0f} s for {what}")
    time.sleep(poll)
  return value


def commit(path: epath.Path, content: str) -> bool:
  """Creates the file with its whole content if it does not exist; False if it does. Atomic, in a bucket too."""
  parent = path.parent.as_posix().removesuffix("/") + "/"
  # A local path is no URL: it may hold a percent sign.
  store = ts.KvStore.open(parent if "://" in parent else {"driver": "file", "path": parent}).result()
  absent = store.read(path.name).result().stamp.generation
  if store.read(path.name).result().state != "missing":
    return False
  return store.write(path.name, content.encode(), if_equal=absent).result().generation != b""


def write_atomically(path: epath.Path, content: str) -> None:
  """Replaces the file in one move; readers see the old content or the new."""
  scratch = path.parent / f".{path.name}.writing"
  scratch.write_text(content)
  scratch.replace(path)


def _numbers(directory: epath.Path) -> list[int]:
  """Names in a directory that are numbers, ascending; scratch names of writers are not."""
  if not directory.exists():
    return []
  return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())
