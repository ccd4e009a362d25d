"""Snapshots: one index, embeddings and searcher, published whole in `index/<version>/`."""

from __future__ import annotations

import json
import pathlib
import tempfile
import uuid
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import xxhash
from etils import epath

from realm_jax.data.passages import PassageStore
from realm_jax.index.digest import file_digests
from realm_jax.index.run_dir import RunDir, commit
from realm_jax.index.searcher import ExactSearcher, ScannSearcher, Searcher, scann_settings

FORMAT = "realm-snapshot-1"


class SnapshotError(ValueError):
  """A snapshot that must not be used; the message says what differs, and the remedy."""


class Snapshot(NamedTuple):
  """A published index in memory."""

  version: int
  manifest: dict[str, Any]
  passage_emb_ND: np.ndarray  # bfloat16
  searcher: Searcher

  @property
  def params_step(self) -> int:
    """The step of the parameters that embedded the passages."""
    return self.manifest["params_step"]


def publish(
  run_dir: RunDir,
  passage_emb_ND: np.ndarray,
  store: PassageStore,
  *,
  params_step: int,
  params_digest: str,
  searcher: str = "auto",
  exact_below: int = 100_000,
) -> int:
  """Writes a snapshot and commits it under the next free version.

  Every writer writes below a name of its own; the version belongs to the one whose COMMIT, the manifest, is created
  first. Another writer's data loses nothing but its own work.

  Args:
    searcher: "exact", "scann", or "auto": exact below `exact_below` passages.

  Returns:
    The version.

  Raises:
    SnapshotError: an embedding is not finite.
  """
  emb_ND = np.asarray(passage_emb_ND).astype(ml_dtypes.bfloat16)
  is_finite_N = np.isfinite(emb_ND.astype(np.float32)).all(1)
  if not is_finite_N.all():
    first = int(np.argmin(is_finite_N))
    raise SnapshotError(
      f"{(~is_finite_N).sum()} of {len(emb_ND)} embeddings are not finite, the first of passage {store.id(first)!r}; "
      f"nothing was published: the parameters of step {params_step} have diverged"
    )
  kind = searcher if searcher != "auto" else "exact" if len(emb_ND) < exact_below else "scann"
  settings = scann_settings(len(emb_ND)) if kind == "scann" else {}
  writer = uuid.uuid4().hex
  version = max(run_dir.snapshot_versions(), default=0) + 1
  data = run_dir.snapshot(version) / writer
  data.mkdir(parents=True)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(data / "embeddings", {"passage_emb_ND": emb_ND})
  if kind == "scann":
    _save_scann(ScannSearcher.build(emb_ND.astype(np.float32), settings), data / "scann")
  manifest = {
    "format": FORMAT,
    "writer": writer,
    "params_step": params_step,
    "params_digest": params_digest,
    "corpus_digest": store.content_digest,
    "vocabulary_digest": store.description["vocabulary_digest"],
    "passage_length": store.passage_length,
    "num_passages": emb_ND.shape[0],
    "retrieval_size": emb_ND.shape[1],
    "dtype": str(emb_ND.dtype),
    "searcher": kind,
    "searcher_settings": settings,
    "file_digest": file_digests(data),
  }
  manifest["manifest_digest"] = _manifest_digest(manifest)
  while not commit(run_dir.snapshot_commit(version), json.dumps(manifest, indent=1)):
    version = _move_to_next_version(run_dir, version, writer)
  return version


def read_manifest(run_dir: RunDir, version: int) -> dict[str, Any]:
  """A committed snapshot's manifest, as it was written; raises SnapshotError if it was not."""
  path = run_dir.snapshot_commit(version)
  remedy = f"delete snapshot {version} and run realm refresh_index --once"
  try:
    manifest = json.loads(path.read_bytes())
  except FileNotFoundError as error:
    raise SnapshotError(
      f"snapshot {version} is not in {run_dir.index} (no {path}); run realm refresh_index --once"
    ) from error
  except ValueError as error:
    raise SnapshotError(f"{path} is damaged ({error}); {remedy}") from error
  if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
    found = manifest.get("format") if isinstance(manifest, dict) else manifest
    raise SnapshotError(f"{path} has format {found!r}, expected {FORMAT!r}; {remedy}")
  if manifest.get("manifest_digest") != _manifest_digest(manifest):
    raise SnapshotError(f"{path} is damaged (its manifest_digest differs); {remedy}")
  return manifest


def load(run_dir: RunDir, version: int, store: PassageStore, *, retrieval_size: int | None = None) -> Snapshot:
  """Reads a committed snapshot, checking that it belongs to the corpus and that no bit of it changed.

  Raises:
    SnapshotError: names what differs, with the remedy.
  """
  manifest = read_manifest(run_dir, version)
  expected = {
    "corpus_digest": store.content_digest,
    "vocabulary_digest": store.description["vocabulary_digest"],
    "passage_length": store.passage_length,
    "num_passages": len(store),
  }
  if retrieval_size is not None:
    expected["retrieval_size"] = retrieval_size
  for name, value in expected.items():
    if manifest.get(name) != value:
      raise SnapshotError(
        f"snapshot {version} of {run_dir.path} has {name} {manifest.get(name)!r}, "
        f"the corpus {store.path} and the model "
        f"have {value!r}; run realm refresh_index --once with this corpus"
      )
  data = run_dir.snapshot(version) / manifest["writer"]
  found = file_digests(data)
  for name, digest in manifest["file_digest"].items():
    if found.get(name) != digest:
      state = "is missing" if name not in found else "is damaged"
      raise SnapshotError(f"{data / name} {state}; delete snapshot {version} and run realm refresh_index --once")
  with ocp.StandardCheckpointer() as checkpointer:
    emb_ND = np.asarray(checkpointer.restore(data / "embeddings")["passage_emb_ND"])
  if manifest["searcher"] == "scann":
    searcher: Searcher = _load_scann(data / "scann", len(store), manifest["searcher_settings"])
  else:
    searcher = ExactSearcher(emb_ND)
  return Snapshot(version, manifest, emb_ND, searcher)


def delete_old(run_dir: RunDir, *, keep: int) -> list[int]:
  """Deletes versions that nobody needs: not among the newest `keep`, not adopted since the oldest kept checkpoint."""
  versions = run_dir.snapshot_versions()
  needed = set(versions[-keep:]) | versions_to_replay(run_dir)
  deleted = [v for v in versions if v not in needed]
  for version in deleted:
    run_dir.snapshot_commit(version).unlink()  # first: half a snapshot must not look whole
    run_dir.snapshot(version).rmtree()
  return deleted


def versions_to_replay(run_dir: RunDir) -> set[int]:
  """Versions that a trainer which resumes from any kept checkpoint would adopt again."""
  adopted = {step: json.loads(run_dir.adoption(step).read_text())["version"] for step in run_dir.adoption_steps()}
  oldest_checkpoint = min(run_dir.checkpoint_steps(), default=0)
  in_force = max((step for step in adopted if step <= oldest_checkpoint), default=0)
  return {version for step, version in adopted.items() if step >= in_force}


def _manifest_digest(manifest: dict[str, Any]) -> str:
  rest = {name: value for name, value in manifest.items() if name != "manifest_digest"}
  return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True).encode())


def _move_to_next_version(run_dir: RunDir, version: int, writer: str) -> int:
  """The version was taken by another writer while this one wrote; its data goes under the next one."""
  newer = max(run_dir.snapshot_versions(), default=version) + 1
  target = run_dir.snapshot(newer)
  target.mkdir(parents=True, exist_ok=True)
  (run_dir.snapshot(version) / writer).replace(target / writer)
  return newer


def _save_scann(searcher: ScannSearcher, directory: epath.Path) -> None:
  """ScaNN writes local files only: they are written beside, and copied."""
  directory.mkdir(parents=True)
  with tempfile.TemporaryDirectory() as scratch:
    searcher.save(scratch)
    for path in pathlib.Path(scratch).iterdir():
      (directory / path.name).write_bytes(path.read_bytes())


def _load_scann(directory: epath.Path, num_passages: int, settings: dict[str, Any]) -> ScannSearcher:
  with tempfile.TemporaryDirectory() as scratch:
    for path in directory.iterdir():
      (pathlib.Path(scratch) / path.name).write_bytes(path.read_bytes())
    return ScannSearcher.load(scratch, num_passages, settings)
