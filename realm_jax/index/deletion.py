"""Deletes snapshots that nobody needs any more, and what crashed writers left."""

from __future__ import annotations

from realm_jax.index.journal import versions_in_use
from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import SnapshotError, is_refused, read_manifest


def delete_old(run_dir: RunDir, *, keep: int) -> list[int]:
  """Deletes versions that are refused or not among the newest `keep`, and that no trainer loads or would adopt again.

  A version is marked before it is looked whether the trainer needs it, and the trainer claims a version before it looks
  for the mark: one of them sees the other. The mark stays, so that a version which was spared is never begun with anew,
  and goes as soon as it is not needed.

  Returns:
    The versions that are gone.
  """
  versions = run_dir.snapshot_versions()
  kept = [v for v in versions if not is_refused(run_dir, v)][-keep:]
  # A refused one that is the newest stays: its number must not be given to another.
  old = [v for v in versions if v not in kept and v < max(kept, default=0)]
  used = versions_in_use(run_dir) if old else set()
  if used is None:
    return []
  for version in old:
    if version not in used:
      run_dir.files.create(run_dir.snapshot_deleting(version), "")
  used = versions_in_use(run_dir) if set(old) - used else used
  if used is None:
    return []
  marked = [v for v in old if v not in used and run_dir.files.read(run_dir.snapshot_deleting(v)) is not None]
  for version in marked:
    run_dir.files.remove(run_dir.snapshot_commit(version))  # first: half a snapshot must not look whole
    run_dir.files.remove_tree(run_dir.snapshot(version))
  _delete_rubbish(run_dir, max(versions, default=0))
  return marked


def _delete_rubbish(run_dir: RunDir, newest: int) -> None:
  """Data of writers that did not come to their commit, or lost it to another one. Versions above are being written."""
  for version in run_dir.snapshot_numbers():
    if version <= newest:
      try:
        writer = read_manifest(run_dir, version)["writer"]
      except SnapshotError:
        if run_dir.files.read(run_dir.snapshot_commit(version)) is None:
          run_dir.files.remove_tree(run_dir.snapshot(version))
        continue
      for name in run_dir.files.names(run_dir.snapshot(version)):
        if name not in ("COMMIT", "DELETING", "REFUSED", writer):
          run_dir.files.remove_tree(run_dir.snapshot(version) / name)
