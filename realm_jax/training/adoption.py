"""The trainer's side of the index: which snapshot is in force at which step, journalled."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

from realm_jax.data.passages import PassageStore
from realm_jax.index import snapshot as snapshots
from realm_jax.index.run_dir import RunDir, commit, wait_for
from realm_jax.index.snapshot import Snapshot, SnapshotError


class SnapshotFollower:
  """Holds the snapshot in force; `adopt` swaps it between steps.

  Newer snapshots are loaded by a thread beside the loop. Each adoption is journalled before it takes effect, so that a
  run which resumes adopts the same versions at the same steps until the journal ends.
  """

  def __init__(
    self,
    run_dir: RunDir,
    store: PassageStore,
    *,
    first_step: int,
    sync_every: int | None,
    timeout: float,
    log: Callable[[str], None] = print,
  ):
    """sync_every: adopt at its multiples only, and wait for the snapshot of the multiple before; None: when ready."""
    self._run_dir, self._store = run_dir, store
    self._sync_every, self._timeout, self._log = sync_every, timeout, log
    journal = {s: json.loads(run_dir.adoption(s).read_text()) for s in run_dir.adoption_steps()}
    self._replay = {s: entry for s, entry in journal.items() if s > first_step}
    self._ready: Snapshot | None = None
    self._stopped = threading.Event()
    self._thread: threading.Thread | None = None
    in_force = max((s for s in journal if s <= first_step), default=None)
    if in_force is not None:
      self.snapshot = self._load_journalled(journal[in_force])
    else:
      self.snapshot = self._wait_for_first(first_step)
    if not self._replay:
      self._start()

  @property
  def version(self) -> int:
    return self.snapshot.version

  def age(self, step: int) -> int:
    """Steps since the parameters that embedded the passages."""
    return step - self.snapshot.params_step

  def adopt(self, step: int) -> Snapshot:
    """The snapshot for the update after `step` others."""
    if self._replay:
      entry = self._replay.pop(step, None)
      if entry is not None:
        self.snapshot = self._load_journalled(entry)
      if not self._replay:
        self._start()
    elif self._sync_every is not None:
      if step and step % self._sync_every == 0 and self.snapshot.params_step < step - self._sync_every:
        self._swap(step, self._wait_for_params(step - self._sync_every))
    elif self._ready is not None:
      ready, self._ready = self._ready, None
      self._swap(step, ready)
    return self.snapshot

  def close(self) -> None:
    self._stopped.set()
    if self._thread is not None:
      self._thread.join()

  def _swap(self, step: int, snapshot: Snapshot) -> None:
    entry = {"step": step, "version": snapshot.version, "params_digest": snapshot.manifest["params_digest"]}
    if not commit(self._run_dir.adoption(step), json.dumps(entry)):
      raise RuntimeError(
        f"{self._run_dir.adoption(step)} exists: another trainer works in {self._run_dir.path}; stop one of them"
      )
    self.snapshot = snapshot
    self._log(f"step {step}: snapshot {snapshot.version} adopted, {self.age(step)} steps old")

  def _wait_for_first(self, step: int) -> Snapshot:
    self._log(f"waiting for the first snapshot: run  realm refresh_index --workdir={self._run_dir.path}  beside this")
    versions = wait_for(
      self._run_dir.snapshot_versions,
      self._timeout,
      f"a snapshot in {self._run_dir.index}: is realm refresh_index --workdir={self._run_dir.path} running?",
    )
    version = versions[0 if self._sync_every is not None else -1]
    self._swap(step, snapshots.load(self._run_dir, version, self._store))
    return self.snapshot

  def _wait_for_params(self, params_step: int) -> Snapshot:
    def version() -> int | None:
      for v in reversed(self._run_dir.snapshot_versions()):
        if snapshots.read_manifest(self._run_dir, v)["params_step"] == params_step:
          return v
      return None

    found = wait_for(
      version,
      self._timeout,
      f"the snapshot of step {params_step} in {self._run_dir.index} (index.sync): "
      f"is realm refresh_index --workdir={self._run_dir.path} running?",
    )
    return snapshots.load(self._run_dir, found, self._store)

  def _load_journalled(self, entry: dict) -> Snapshot:
    snapshot = snapshots.load(self._run_dir, entry["version"], self._store)
    if snapshot.manifest["params_digest"] != entry["params_digest"]:
      raise SnapshotError(
        f"snapshot {entry['version']} in {self._run_dir.index} is not the one that was adopted at step {entry['step']}"
      )
    return snapshot

  def _start(self) -> None:
    if self._sync_every is None:
      self._thread = threading.Thread(target=self._load_newer, daemon=True)
      self._thread.start()

  def _load_newer(self) -> None:
    loaded = self.version
    while not self._stopped.wait(0.5):
      versions = self._run_dir.snapshot_versions()
      if versions and versions[-1] > loaded and self._ready is None:
        loaded = versions[-1]
        try:
          self._ready = snapshots.load(self._run_dir, loaded, self._store)
        except (SnapshotError, OSError) as error:
          # Training goes on with the snapshot that it has; a whole one will follow.
          self._log(f"snapshot {loaded} is left out: {error}")
          time.sleep(0.5)
