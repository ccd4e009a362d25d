"""The run directory in which the processes meet: every path in it is built and parsed here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from etils import epath

from realm_jax.index.files import Files, names_below, prepare_buckets
from realm_jax.index.seal import sealed, unsealed

T = TypeVar("T")

MODELS = ("realm-tiny",)  # that come with this package, as weights, and that may be taken for runs by their names
_A_MODEL = (
  "{0} is a model without passages; make a run of it with  realm build_corpus --sample --output=corpora/sample "
  "--vocab={0} --passage_length=176  (or --input=FILE for --sample),  realm convert --input={0} --to=realm "
  "--corpus=corpora/sample --output=runs/tiny  and  realm refresh_index --workdir=runs/tiny --once,  and give "
  "--workdir=runs/tiny"
)


class RunDir:
  """Paths of one run; see the table of the hand-over in docs/handover.md for who writes what."""

  def __init__(self, path, *, files: Files | None = None):
    self.is_bucket = "://" in str(path)
    if self.is_bucket:
      prepare_buckets()
    # Orbax wants absolute paths; a bucket is absolute already.
    self.path = epath.Path(path) if self.is_bucket else epath.Path(path).expanduser().resolve()
    self.files = files or Files()
    # Seconds between two looks for something new. In a bucket a look is some requests, each of which costs money.
    self.poll = 2.0 if self.is_bucket else 0.2
    self.config = self.path / "config.json"
    self.checkpoints = self.path / "checkpoints"
    self.retriever = self.path / "retriever"
    self.index = self.path / "index"
    self.adoptions = self.path / "adoptions"
    self.claim = self.adoptions / "CLAIM"
    self.damaged = self.path / "damaged"
    self.metrics = self.path / "metrics.jsonl"
    self.tensorboard = self.path / "tensorboard"
    self.wandb_id = self.path / "wandb_id"
    self.profile = self.path / "profile"
    self.evaluation = self.path / "evaluation"
    self.best = self.path / "best.json"
    self.done = self.path / "DONE"

  def snapshot(self, version: int) -> epath.Path:
    """The directory of a version."""
    return self.index / f"{version:08d}"

  def snapshot_commit(self, version: int) -> epath.Path:
    """Written last: a version without it is not there."""
    return self.snapshot(version) / "COMMIT"

  def snapshot_deleting(self, version: int) -> epath.Path:
    """Stands beside COMMIT from when a version is about to be deleted: nobody may begin to use it."""
    return self.snapshot(version) / "DELETING"

  def snapshot_refused(self, version: int) -> epath.Path:
    """Stands beside COMMIT from when the trainer can't use a version: it no longer counts as published."""
    return self.snapshot(version) / "REFUSED"

  def snapshot_numbers(self) -> list[int]:
    """Versions of which anything is there, committed or not, ascending."""
    return self._numbers(self.index)

  def snapshot_versions(self) -> list[int]:
    """Committed versions, ascending."""
    return [v for v in self.snapshot_numbers() if self.files.read(self.snapshot_commit(v)) is not None]

  def adoption(self, step: int) -> epath.Path:
    """The journal's entry: from this step on, which version was searched."""
    return self.adoptions / f"{step:08d}"

  def adoption_steps(self) -> list[int]:
    """Steps with an entry in the journal, ascending."""
    return self._numbers(self.adoptions)

  def checkpoint_steps(self) -> list[int]:
    """Steps whose checkpoints are whole, ascending."""
    return self._committed_by_orbax(self.checkpoints)

  def best_step(self) -> int:
    """The step of the checkpoint that realm evaluate --every_checkpoint found to be the best."""
    text = self.files.read(self.best)
    if text is None:
      raise FileNotFoundError(
        f"no {self.best}; choose the best checkpoint with  realm evaluate --every_checkpoint --workdir={self.path} "
        "--questions=DEV"
      )
    try:
      return int(json.loads(text)["step"])
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f"{self.best} is damaged ({error!r}); run realm evaluate --every_checkpoint again") from error

  def export_steps(self) -> list[int]:
    """Steps whose exported parameters are whole, ascending."""
    return self._committed_by_orbax(self.retriever)

  def set_aside(self, path: epath.Path) -> epath.Path:
    """Moves something damaged out of the way, into `damaged/`, and returns where it is."""
    names = self.files.names(self.damaged)
    number = next(n for n in range(len(names) + 1) if f"{path.parent.name}-{path.name}-{n}" not in names)
    aside = self.damaged / f"{path.parent.name}-{path.name}-{number}"
    if not self.is_bucket:
      self.damaged.mkdir(parents=True, exist_ok=True)
      return path.rename(aside)
    for name in names_below(path):  # nothing can be renamed there
      (path / name).copy(aside / name)
    self.files.remove_tree(path)
    return aside

  def is_done(self) -> bool:
    """Whether the trainer has made its last step."""
    return self.files.read(self.done) is not None

  def write_config(self, config: dict[str, Any]) -> None:
    """Writes config.json whole or not at all."""
    self.path.mkdir(parents=True, exist_ok=True)
    self.files.replace(self.config, json.dumps(sealed(config, "config.json"), indent=2, sort_keys=True) + "\n")

  def read_config(self, *, timeout: float = 0.0) -> dict[str, Any]:
    """The config that the trainer stored; waits up to `timeout` seconds for it.

    Raises:
      FileNotFoundError: there is none, and none is waited for.
      TimeoutError: it did not come.
      ValueError: it is not what was written.
    """
    remedy = "start realm train with this --workdir, or check the path"
    if timeout > 0:
      what = f"config.json in {self.path}: {remedy}"
      text = wait_for(lambda: self.files.read(self.config), timeout, what, poll=self.poll)
    elif not (text := self.files.read(self.config) or b""):
      why = _A_MODEL.format(self.path.name) if self.path.name in MODELS else f"no config.json is there; {remedy}"
      raise FileNotFoundError(f"no run in {self.path}: {why}")
    try:
      return unsealed(json.loads(text), "config.json")
    except ValueError as error:
      raise ValueError(
        f"{self.config} is damaged ({error}); delete it, and start realm train with the run's config and flags, which "
        "writes it again"
      ) from error

  def _committed_by_orbax(self, directory: epath.Path) -> list[int]:
    steps = self._numbers(directory)
    if not self.is_bucket:
      return steps
    # Nothing can be moved into its place there: Orbax writes this object last.
    return [s for s in steps if self.files.read(directory / str(s) / "commit_success.txt") is not None]

  def _numbers(self, directory: epath.Path) -> list[int]:
    """Names in a directory that are numbers, ascending; scratch names of writers are not."""
    return sorted(int(name) for name in self.files.names(directory) if name.isdigit())


def wait_for(condition: Callable[[], T | None], timeout: float, what: str, *, poll: float = 0.2) -> T:
  """Returns what condition() gives as soon as that is true; raises TimeoutError with what was waited for."""
  deadline = time.monotonic() + timeout
  while not (value := condition()):
    if time.monotonic() >= deadline:
      raise TimeoutError(f"waited {timeout:.0f} s for {what}")
    time.sleep(poll)
  return value
