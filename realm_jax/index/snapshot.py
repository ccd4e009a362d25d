"""Snapshots: one index, embeddings and searcher, published whole in `index/<version>/`."""

from __future__ import annotations

import contextlib
import errno
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from realm_jax.data.packing import PACKING
from realm_jax.data.passages import PassageStore
from realm_jax.index.run_dir import RunDir
from realm_jax.index.seal import sealed, unsealed
from realm_jax.index.searcher import ScannSearcher, Searcher, scann_settings
from realm_jax.index.snapshot_data import (
  SnapshotError,
  UnusableSnapshot,
  digest_of,
  first_not_finite,
  read_data,
  write_data,
)
from realm_jax.index.snapshot_process import SnapshotProcess

FORMAT = "realm-snapshot-2"


class Slice(NamedTuple):
  """Passages begin to end - 1 were embedded with the parameters of one step."""

  begin: int
  end: int
  params_step: int


class Published(NamedTuple):
  """A version, and the step of the parameters that embedded it."""

  version: int
  params_step: int


class Snapshot(NamedTuple):
  """A published index in memory."""

  version: int
  manifest: dict[str, Any]
  passage_emb_ND: np.ndarray  # bfloat16
  searcher: Searcher

  @property
  def params_step(self) -> int:
    """The step of the parameters that embedded the passages; of the newest slice, where they were several."""
    return self.manifest["params_step"]

  @property
  def slices(self) -> list[Slice]:
    """Which passages were embedded by the parameters of which step."""
    return [Slice(*part) for part in self.manifest["slices"]]

  def age(self, step: int) -> float:
    """Steps since the parameters that embedded a passage, on average over the passages."""
    return step - sum((s.end - s.begin) * s.params_step for s in self.slices) / len(self.passage_emb_ND)


def publish(
  run_dir: RunDir,
  passage_emb_ND: np.ndarray,
  store: PassageStore,
  *,
  params_step: int,
  params_digest: str,
  slices: Sequence[Slice] | None = None,
  searcher: str = "auto",
  exact_below: int = 100_000,
  scann: Mapping[str, Any] | None = None,
  damaged: frozenset[int] = frozenset(),
) -> int | None:
  """Writes a snapshot and commits it under the next free version.

  Every writer writes below a name of its own; a version belongs to the one whose COMMIT, the manifest, is created
  first. The other takes the next version, unless the first one's parameters are as new as its own.

  Args:
    slices: which passages were embedded with which step's parameters; None: all with those of params_step.
    searcher: "exact", "scann", or "auto": exact below `exact_below` passages.
    scann: see `scann_settings`.
    damaged: versions that don't count as published.

  Returns:
    The version; None if one of these parameters, or of newer ones, was published by another writer.

  Raises:
    SnapshotError: an embedding is not finite.
  """
  emb_ND = np.asarray(passage_emb_ND).astype(ml_dtypes.bfloat16)
  if (first := first_not_finite(emb_ND)) is not None:
    raise SnapshotError(
      f"embeddings are not finite, the first of passage {store.id(first)!r}; nothing was published: the parameters of "
      f"step {params_step} have diverged"
    )
  kind = searcher if searcher != "auto" else "exact" if len(emb_ND) < exact_below else "scann"
  settings = scann_settings(len(emb_ND), scann) if kind == "scann" else {}
  built: Searcher | None = ScannSearcher.build(emb_ND.astype(np.float32), settings) if kind == "scann" else None
  manifest = {
    "format": FORMAT,
    "params_step": params_step,
    "params_digest": params_digest,
    "corpus_digest": store.content_digest,
    "vocabulary_digest": store.description["vocabulary_digest"],
    "packing": PACKING,
    "passage_length": store.passage_length,
    "num_passages": emb_ND.shape[0],
    "retrieval_size": emb_ND.shape[1],
    "dtype": str(emb_ND.dtype),
    "slices": slices or [Slice(0, len(emb_ND), params_step)],
    "embedding_digest": digest_of(emb_ND),
    "searcher": kind,
    "searcher_settings": settings,
  }
  while True:
    # Listed once: whoever publishes from here on takes this number, or a later one, and is noticed at the commit.
    versions = run_dir.snapshot_versions()
    newest = newest_published(run_dir, damaged, versions=versions)
    if newest is not None and newest.params_step >= params_step:
      return None
    version = max(versions, default=0) + 1
    writer = uuid.uuid4().hex
    data = run_dir.snapshot(version) / writer
    try:
      content = manifest | {"writer": writer, "file_digest": write_data(data, emb_ND, built)}
    except OSError:
      with contextlib.suppress(OSError):
        run_dir.files.remove_tree(data)  # it may be what fills the disk
      if max(run_dir.snapshot_versions(), default=0) < version:
        raise
      continue  # another writer was faster, and has cleaned up
    if run_dir.files.create(run_dir.snapshot_commit(version), json.dumps(sealed(content, _place(version)), indent=1)):
      return version
    run_dir.files.remove_tree(data)


def refuse(run_dir: RunDir, version: int, reason: str) -> None:
  """The trainer's: from now on this version does not count as published, so that the indexer makes another one.

  A run that adopted it may still adopt it again.
  """
  run_dir.files.create(run_dir.snapshot_refused(version), reason)


def refuse_since(run_dir: RunDir, step: int) -> None:
  """Refuses what was made of the parameters of this step and of later ones, which the trainer now makes anew."""
  for version in run_dir.snapshot_versions():
    with contextlib.suppress(SnapshotError):
      if read_manifest(run_dir, version)["params_step"] >= step:
        refuse(run_dir, version, f"the parameters of step {step} were made again, by other arithmetic")


def is_refused(run_dir: RunDir, version: int) -> bool:
  """Whether the trainer has refused a version."""
  return run_dir.files.read(run_dir.snapshot_refused(version)) is not None


def newest_published(
  run_dir: RunDir, damaged: frozenset[int] = frozenset(), *, versions: Sequence[int] | None = None
) -> Published | None:
  """The newest snapshot, damaged and refused versions left out."""
  for version in reversed(run_dir.snapshot_versions() if versions is None else versions):
    if version in damaged or is_refused(run_dir, version):
      continue
    with contextlib.suppress(SnapshotError):
      return Published(version, read_manifest(run_dir, version)["params_step"])
  return None


def read_manifest(run_dir: RunDir, version: int) -> dict[str, Any]:
  """A committed snapshot's manifest, as it was written; raises SnapshotError if it was not."""
  path = run_dir.snapshot_commit(version)
  remedy = _remedy(run_dir, version)
  text = run_dir.files.read(path)
  if text is None:
    raise SnapshotError(f"snapshot {version} is not in {run_dir.index} (no {path}); run {_refresh(run_dir)}")
  try:
    manifest = unsealed(json.loads(text), _place(version))
  except ValueError as error:
    raise SnapshotError(f"{path} is damaged ({error}); {remedy}") from error
  if manifest.get("format") != FORMAT:
    raise SnapshotError(f"{path} has format {manifest.get('format')!r}, expected {FORMAT!r}; {remedy}")
  return manifest


def _place(version: int) -> str:
  return f"index/{version}"


def _refresh(run_dir: RunDir) -> str:
  return f"realm refresh_index --once --workdir={run_dir.path}"


def _remedy(run_dir: RunDir, version: int) -> str:
  return f"delete {run_dir.snapshot(version)} and run {_refresh(run_dir)}"


def _check_fits(run_dir: RunDir, version: int, manifest: dict[str, Any], store: PassageStore, **expected: Any) -> None:
  """Raises SnapshotError where a manifest does not belong to the corpus, or has not the `expected` values."""
  expected = {
    "corpus_digest": store.content_digest,
    "vocabulary_digest": store.description["vocabulary_digest"],
    "packing": PACKING,
    "passage_length": store.passage_length,
    "num_passages": len(store),
    "dtype": "bfloat16",
  } | {name: value for name, value in expected.items() if value is not None}
  for name, value in expected.items():
    if manifest.get(name) != value:
      raise SnapshotError(
        f"snapshot {version} of {run_dir.path} has {name} {manifest.get(name)!r}, the corpus {store.path} and the "
        f"model have {value!r}; run {_refresh(run_dir)} with this corpus"
      )


def load(
  run_dir: RunDir, version: int, store: PassageStore, *, retrieval_size: int | None = None,
  params_digest: str | None = None, embedding_digest: str | None = None,
  beside_a_loop: bool = False, is_awaited: bool = False,
) -> Snapshot:  # fmt: skip
  """Reads a committed snapshot, checking that it belongs to the corpus and that no bit of it changed.

  Digests and sizes that are given must be what the manifest names.

  Args:
    beside_a_loop: a large one is loaded, and searched, by a process of its own, which takes no time from the loop.
    is_awaited: the loop stands still until it is there.

  Raises:
    SnapshotError: names what differs, with the remedy; UnusableSnapshot where it is not what was published.
  """
  manifest = read_manifest(run_dir, version)
  _check_fits(
      run_dir, version, manifest, store,
      retrieval_size=retrieval_size, params_digest=params_digest, embedding_digest=embedding_digest,
  )  # fmt: skip
  data = run_dir.snapshot(version) / manifest["writer"]
  try:
    if beside_a_loop and manifest["searcher"] == "scann":
      # Steps on a CPU take all its cores; beside an accelerator's, a low priority is enough.
      manner = "at_once" if is_awaited else "rests" if jax.default_backend() == "cpu" else "steps_back"
      process = SnapshotProcess(str(data), manifest, manner=manner)
      return Snapshot(version, manifest, process.passage_emb_ND, process)
    emb_ND, searcher = read_data(data, manifest)
  except (SnapshotError, OSError) as error:
    # What a disk can't read stays so; a bucket may only be out of reach.
    if isinstance(error, OSError) and (run_dir.is_bucket or error.errno != errno.EIO):
      raise
    raise UnusableSnapshot(f"{error}; {_remedy(run_dir, version)}") from error
  return Snapshot(version, manifest, emb_ND, searcher)
