"""The trainer's side of the index: which snapshot is in force at which step, journalled."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from realm_jax.data.passages import PassageStore
from realm_jax.index import journal
from realm_jax.index import snapshot as snapshots
from realm_jax.index.journal import Adoption
from realm_jax.index.run_dir import RunDir, wait_for
from realm_jax.index.snapshot import Snapshot, SnapshotError, UnusableSnapshot


class AdoptionSettings(NamedTuple):
  """When a snapshot is adopted, and what its age may be.

  export_every: steps between exports of the parameters.
  lag: None: adopt a snapshot when it is ready. A number: adopt at the multiples of export_every only, the snapshot of
    the parameters of `lag` steps before, and wait for it.
  timeout: seconds to wait for a snapshot.
  warn_age, max_age: steps. Above the first a warning is logged; at the second the trainer waits. 0: never.
  is_inline: the trainer publishes the snapshots itself.
  """

  export_every: int
  lag: int | None = None
  timeout: float = 3600.0
  warn_age: int = 0
  max_age: int = 0
  is_inline: bool = False


def adoption_settings(index: ConfigDict, *, is_frozen: bool) -> AdoptionSettings:
  """From config.index. A tower that is not trained is embedded once, and its index does not age.

  Raises:
    ValueError: an age limit that no snapshot can keep, or an unknown way to refresh.
  """
  if index.refresh not in ("process", "inline"):
    raise ValueError(f"index.refresh={index.refresh!r}, expected process or inline")
  if 0 < index.max_age <= index.export_every:
    raise ValueError(
      f"index.max_age={index.max_age}, but parameters are exported every {index.export_every} steps; set it to more, "
      "best to several times index.export_every"
    )
  is_inline = index.refresh == "inline"
  timeout = 0.0 if is_inline else index.timeout  # what the trainer publishes itself is there
  if is_frozen:
    return AdoptionSettings(index.export_every, timeout=timeout, is_inline=is_inline)
  return AdoptionSettings(
    export_every=index.export_every,
    lag=0 if is_inline else index.export_every if index.sync else None,
    timeout=timeout,
    warn_age=index.warn_age or 10 * index.export_every,
    max_age=index.max_age,
    is_inline=is_inline,
  )


class SnapshotFollower:
  """Holds the snapshot in force; `adopt` swaps it between steps.

  Newer snapshots are loaded by a thread beside the loop. Each adoption is journalled before it takes effect, so that a
  run which resumes adopts the same versions at the same steps until the journal ends.
  """

  def __init__(
    self,
    run_dir: RunDir,
    store: PassageStore,
    settings: AdoptionSettings,
    *,
    first_step: int,
    retrieval_size: int | None = None,
    newest_export: int | None = None,
    export_digest: Callable[[int], str | None] = lambda step: None,
    in_force: Adoption | None = None,
    is_loaded: Callable[[int], bool] = lambda version: True,
    log: Callable[[str], None] = print,
  ):
    """Finds, or waits for, the snapshot that is in force at first_step.

    Args:
      newest_export: the newest step whose parameters were exported, perhaps in an earlier life of the run.
      export_digest: step -> digest of the parameters exported there, if it is known.
      in_force: what the checkpoint says was adopted last.
      is_loaded: whether the other hosts hold a version that is ready here, so that none has to wait for it.
    """
    self._run_dir, self._store, self._settings, self._log = run_dir, store, settings, log
    self._retrieval_size, self._export_digest, self._is_loaded = retrieval_size, export_digest, is_loaded
    self._step = first_step
    entries = self._read_journal(in_force)
    self._replay = {s: entry for s, entry in entries.items() if s > first_step}
    # Up to here an earlier life has gone on without adopting anything else: so does this one, and makes the same bits.
    # What was exported and published from that life is then true of this one.
    self._free_from = max([newest_export or 0, *(s + 1 for s in entries)])
    self._ready: Snapshot | None = None
    self._retired: Snapshot | None = None  # given up by the loop; freeing it takes longer than a step can wait
    self._left_out: set[int] = set()
    self._trouble = ""  # why a snapshot could not be read last time
    self._warned_age = float(settings.warn_age)
    self._stopped = threading.Event()
    self._thread: threading.Thread | None = None
    last = max((s for s in entries if s <= first_step), default=None)
    if last is not None:
      self.adoption = entries[last]
      self.snapshot = self._load_journalled(entries[last])
    else:
      self._swap(self._wait_for_first())
    if settings.lag is None:
      self._thread = threading.Thread(target=self._look_again_and_again, daemon=True)
      self._thread.start()

  @property
  def version(self) -> int:
    """The version that is searched now."""
    return self.snapshot.version

  @property
  def ready_version(self) -> int:
    """The version that `adopt` may take next; 0 if there is none."""
    ready = self._ready
    return ready.version if ready is not None else 0

  def age(self, step: int) -> float:
    """Steps since the parameters that embedded the passages, on average."""
    return self.snapshot.age(step)

  def adopt(self, step: int) -> Snapshot:
    """The snapshot for the update after `step` others.

    Raises:
      TimeoutError: a snapshot that is due, or young enough, did not come.
    """
    self._step = step
    every, lag = self._settings.export_every, self._settings.lag
    if step in self._replay:
      self.adoption = self._replay.pop(step)
      self.snapshot = self._load_journalled(self.adoption)
    elif lag is not None:
      if step % every == 0 and self.snapshot.params_step < step - lag:
        self._swap(self._wait_for_params(step - lag))
    elif step >= self._free_from:
      is_too_old = 0 < self._settings.max_age <= self.age(step)
      if self._ready is None and is_too_old:
        self._wait_for_younger(step)
      if self._ready is not None and (is_too_old or self._is_loaded(self._ready.version)):
        ready, self._ready, self._retired = self._ready, None, self.snapshot
        self._swap(ready)
    self._warn_of_age(step)
    return self.snapshot

  def close(self) -> None:
    """Ends the thread that looks."""
    self._stopped.set()
    if self._thread is not None:
      self._thread.join()

  def look(self) -> None:
    """Loads the newest snapshot that can be adopted, if there is one; `adopt` takes it."""
    # At most two are in memory: the one in force, and the one that is ready or that a replay loads.
    if self._ready is not None:
      return
    self._retired = None
    if self._replay or self._step < self._free_from:
      return
    for version in reversed(self._run_dir.snapshot_versions()):
      if version <= self.version:
        return
      if snapshot := self._load_candidate(version, least_step=self.snapshot.params_step, is_awaited=False):
        self._ready = snapshot
        return

  def _load_candidate(
    self, version: int, *, least_step: int = 0, most_step: int | None = None, is_awaited: bool = True
  ) -> Snapshot | None:
    """Claims a version, then loads it; None if it is not to be adopted, now or ever.

    Args:
      least_step, most_step: of the parameters that embedded it; the second is the present step, if None.
    """
    if version in self._left_out:
      return None
    try:
      manifest = snapshots.read_manifest(self._run_dir, version)
      if manifest["params_step"] > (self._step if most_step is None else most_step):
        return None  # of a life that had come further: its step will come
      if manifest["params_step"] < least_step:
        self._left_out.add(version)  # by an indexer that was late
        return None
      digest = self._export_digest(manifest["params_step"])
      if digest not in (None, manifest["params_digest"]):
        raise UnusableSnapshot("it is of other parameters than were exported at its step")
      journal.claim(self._run_dir, version)
      # After the claim: an indexer that has not seen it yet has marked the version before.
      if not self._is_offered(version):
        return None
      return self._load(version, is_awaited=is_awaited)
    except SnapshotError as error:
      # Training goes on with the snapshot that it has; a whole one will follow.
      self._left_out.add(version)
      self._log(f"snapshot {version} is left out: {error}")
      if isinstance(error, UnusableSnapshot):
        snapshots.refuse(self._run_dir, version, str(error))
    except OSError as error:
      if str(error) != self._trouble:
        self._log(f"snapshot {version} can't be read, and is tried again: {error}")
      self._trouble = str(error)
    return None

  def _is_offered(self, version: int) -> bool:
    """Whether a version is committed, not refused, and not about to be deleted."""
    files = self._run_dir.files
    return (
      files.read(self._run_dir.snapshot_deleting(version)) is None
      and not snapshots.is_refused(self._run_dir, version)
      and files.read(self._run_dir.snapshot_commit(version)) is not None
    )

  def _load(self, version: int, *, is_awaited: bool, **expected: Any) -> Snapshot:
    return snapshots.load(
        self._run_dir, version, self._store, retrieval_size=self._retrieval_size, beside_a_loop=True,
        is_awaited=is_awaited, **expected,
    )  # fmt: skip

  def _swap(self, snapshot: Snapshot) -> None:
    adoption = _adoption_of(snapshot, self._step)
    if not journal.record(self._run_dir, adoption):
      raise RuntimeError(
        f"{self._run_dir.adoption(self._step)} exists: another trainer works in {self._run_dir.path}; stop one of them"
      )
    self.adoption, self.snapshot = adoption, snapshot
    self._free_from = max(self._free_from, self._step + 1)  # one a step
    self._warned_age = float(self._settings.warn_age)
    self._log(f"step {self._step}: snapshot {self.version} adopted, {self.age(self._step):.0f} steps old")

  def _wait_for_first(self) -> Snapshot:
    def first() -> Snapshot | None:
      versions = self._run_dir.snapshot_versions()
      if self._settings.lag is None:
        versions.reverse()
      # For want of others, of a life that had come further: the indexer makes no older ones.
      return self._load_first(versions) or self._load_first(versions, most_step=sys.maxsize)

    if snapshot := first():
      return snapshot
    if not self._settings.is_inline:
      self._log(f"waiting for the first snapshot: run  realm refresh_index --workdir={self._run_dir.path}  beside this")
    return self._wait_for(first, f"a snapshot in {self._run_dir.index}")

  def _wait_for_params(self, params_step: int) -> Snapshot:
    def of_step() -> Snapshot | None:
      if not any(step >= params_step for step in self._offered().values()):
        return None
      # Snapshots come in order: if there is only a later one, the export was damaged, and this one will not come. Seen
      # before what is looked for now: a listing takes time.
      offered = self._offered()
      if wanted := [v for v, step in offered.items() if step == params_step]:
        return self._load_first(wanted)
      if snapshot := self._load_first(v for v, step in offered.items() if step > params_step):
        self._log(
          f"step {self._step}: there is no snapshot of step {params_step}; that of step {snapshot.params_step} takes "
          "its place, and the bits are no longer those of a run to which nothing happened"
        )
      return snapshot

    return self._wait_for(of_step, f"the snapshot of step {params_step} in {self._run_dir.index}")

  def _wait_for(self, condition: Callable[[], Snapshot | None], what: str) -> Snapshot:
    if self._settings.is_inline:
      what += ", which this trainer publishes itself (index.refresh=inline): the lines above say why not"
    else:
      what += f": is realm refresh_index --workdir={self._run_dir.path} running?"
    return wait_for(condition, self._settings.timeout, what, poll=self._run_dir.poll)

  def _load_first(self, versions: Iterable[int], most_step: int | None = None) -> Snapshot | None:
    """The first that can be loaded."""
    return next(filter(None, (self._load_candidate(v, most_step=most_step) for v in versions)), None)

  def _offered(self) -> dict[int, int]:
    """The versions that may be adopted, ascending, and the step of each one's parameters."""
    steps = {}
    for version in self._run_dir.snapshot_versions():
      if version not in self._left_out and self._is_offered(version):
        with contextlib.suppress(SnapshotError):
          steps[version] = snapshots.read_manifest(self._run_dir, version)["params_step"]
    return steps

  def _load_journalled(self, entry: Adoption) -> Snapshot:
    """The snapshot that an earlier life adopted, marked for deletion or not."""
    try:
      return self._load(
          entry.version, is_awaited=True, params_digest=entry.params_digest, embedding_digest=entry.embedding_digest
      )  # fmt: skip
    except SnapshotError as error:
      self._log(
        f"step {entry.step}: snapshot {entry.version}, adopted here before, is lost: {error}. The run goes on with "
        "another one; its bits are no longer those of the life before"
      )
      if isinstance(error, UnusableSnapshot):
        snapshots.refuse(self._run_dir, entry.version, str(error))
    self._left_out.add(entry.version)
    versions = self._run_dir.snapshot_versions()
    older = [v for v in reversed(versions) if v < entry.version]
    newer = [v for v in versions if v > entry.version]
    snapshot = self._load_first([*older, *newer]) or self._wait_for_first()
    self.adoption = _adoption_of(snapshot, entry.step)
    journal.correct(self._run_dir, self.adoption)
    return snapshot

  def _read_journal(self, in_force: Adoption | None) -> dict[int, Adoption]:
    """The journal; what it lacks of the adoption in force is taken from the checkpoint."""
    entries, damaged = journal.read_journal(self._run_dir)
    if in_force is not None and in_force.step not in entries:
      journal.correct(self._run_dir, in_force)
      entries[in_force.step] = in_force
    for step in damaged:
      if step not in entries:
        self._log(
          f"{self._run_dir.adoption(step)} is damaged ({damaged[step]}) and left out: from step {step} on the bits are "
          "no longer those of the life before"
        )
        self._run_dir.files.remove(self._run_dir.adoption(step))
    return entries

  def _wait_for_younger(self, step: int) -> None:
    self._log(
      f"step {step}: the index is {self.age(step):.0f} steps old, index.max_age={self._settings.max_age}: waiting for "
      f"a younger one; is realm refresh_index --workdir={self._run_dir.path} running?"
    )
    wait_for(
      lambda: self._ready,
      self._settings.timeout,
      f"a snapshot younger than index.max_age={self._settings.max_age} steps in {self._run_dir.index}: start "
      f"realm refresh_index --workdir={self._run_dir.path}, then this again, or raise index.max_age",
    )

  def _warn_of_age(self, step: int) -> None:
    if self._settings.warn_age and self.age(step) > self._warned_age:
      self._log(
        f"step {step}: the index is {self.age(step):.0f} steps old; is realm refresh_index "
        f"--workdir={self._run_dir.path} running, and fast enough for index.export_every={self._settings.export_every}?"
      )
      self._warned_age *= 2  # again when it has doubled

  def _look_again_and_again(self) -> None:
    reason = ""
    while not self._stopped.wait(max(0.5, self._run_dir.poll)):
      try:
        self.look()
        reason = ""
      # Whatever a bucket's library raises when it gives up. Without this thread the index would grow old for ever.
      except Exception as error:  # noqa: BLE001
        if str(error) != reason:
          self._log(f"{self._run_dir.index} can't be looked at, and is tried again: {error}")
        reason = str(error)


def _adoption_of(snapshot: Snapshot, step: int) -> Adoption:
  return Adoption(step, snapshot.version, snapshot.manifest["params_digest"], snapshot.manifest["embedding_digest"])
