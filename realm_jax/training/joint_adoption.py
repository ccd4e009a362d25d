"""One index in force on all hosts of a job: the first host's follower decides, the others load what it says."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Protocol

import jax

from realm_jax.index.hosts import decided_by_first, gather, is_first
from realm_jax.index.journal import Adoption
from realm_jax.index.snapshot import Snapshot
from realm_jax.training.adoption import SnapshotFollower


class Follower(Protocol):
  """What the loop asks of the index."""

  @property
  def adoption(self) -> Adoption | None:
    """What the next checkpoint notes."""
    ...

  def adopt(self, step: int) -> Snapshot:
    """The snapshot to search at this step."""
    ...

  def age(self, step: int) -> float:
    """Steps since the parameters that embedded a passage, on average."""
    ...

  def close(self) -> None:
    """Ends what looks for newer ones."""
    ...


def make_follower(
  make: Callable[[Callable[[int], bool]], SnapshotFollower],
  load: Callable[[int, bool], Snapshot],
  log: Callable[[str], None] = print,
) -> Follower:
  """The follower of a job on one host, or on several.

  Args:
    make: the first host's own follower; it is given `is_loaded`.
    load: a version's snapshot; and whether the loop stands still until it is there.
  """
  if jax.process_count() == 1:
    return make(lambda version: True)
  return JointFollower(make, load, log)


class JointFollower:
  """Swaps at the same step on all hosts, when all have loaded what the first one has."""

  def __init__(
    self,
    make: Callable[[Callable[[int], bool]], SnapshotFollower],
    load: Callable[[int, bool], Snapshot],
    log: Callable[[str], None] = print,
  ):
    self._load, self._log, self._all_hold = load, log, 0
    self._trouble = ""  # why a snapshot could not be loaded last time
    self._leader: SnapshotFollower | None = None
    self._executor = concurrent.futures.ThreadPoolExecutor(1)
    self._loading: tuple[int, concurrent.futures.Future[Snapshot]] | None = None

    def first_version() -> int:
      self._leader = make(lambda version: version == self._all_hold)
      return self._leader.version

    version = decided_by_first(first_version)
    self.snapshot = self._leader.snapshot if self._leader else load(version, True)

  @property
  def adoption(self) -> Adoption | None:
    """The first host's, which writes the checkpoints' notes."""
    return self._leader.adoption if self._leader else None

  def adopt(self, step: int) -> Snapshot:
    """As SnapshotFollower.adopt, on all hosts at once; two numbers a host travel."""
    ready = gather(self._ready_version())
    self._all_hold = ready[0] if len(set(ready)) == 1 else 0
    leader = self._leader
    version = decided_by_first(lambda: leader.adopt(step).version if leader else 0)
    if leader:
      self.snapshot = leader.snapshot
    elif version != self.snapshot.version:
      self.snapshot = self._take(version)
    else:
      self._begin_to_load(ready[0])
    return self.snapshot

  def age(self, step: int) -> float:
    return self.snapshot.age(step)

  def close(self) -> None:
    if self._leader:
      self._leader.close()
    self._executor.shutdown(cancel_futures=True)

  def _ready_version(self) -> int:
    if is_first():
      return self._leader.ready_version if self._leader else 0
    if self._loading and self._loading[1].done() and self._loading[1].exception() is None:
      return self._loading[0]
    return 0

  def _begin_to_load(self, version: int) -> None:
    """Beside the loop, what the first host is ready to adopt; once more if that went wrong."""
    if self._loading and self._loading[1].done() and (error := self._loading[1].exception()):
      if str(error) != self._trouble:
        self._log(f"host {jax.process_index()} can't load snapshot {self._loading[0]}, and tries again: {error}")
      self._trouble, self._loading = str(error), None
    if version > self.snapshot.version and (self._loading is None or self._loading[0] != version):
      self._loading = version, self._executor.submit(self._load, version, False)

  def _take(self, version: int) -> Snapshot:
    loading, self._loading = self._loading, None
    if loading and loading[0] == version and loading[1].exception() is None:
      return loading[1].result()
    return self._load(version, True)
