"""The arrays of a snapshot, and its searcher, as files."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import xxhash
from etils import epath

from realm_jax.index.digest import file_digests
from realm_jax.index.hosts import by_itself
from realm_jax.index.searcher import ExactSearcher, ScannSearcher, Searcher


class SnapshotError(ValueError):
  """A snapshot that must not be used; the message says what differs, and the remedy."""


class UnusableSnapshot(SnapshotError):
  """One that the indexer can make again: it is damaged, or of other parameters than were exported."""


def write_data(directory: epath.Path, emb_ND: np.ndarray, searcher: Searcher | None) -> dict[str, str]:
  """Writes the arrays, and ScaNN's assets if there is such a searcher; returns the digest of each file."""
  directory.mkdir(parents=True)
  with ocp.StandardCheckpointer(multiprocessing_options=by_itself()) as checkpointer:
    checkpointer.save(directory / "embeddings", {"passage_emb_ND": emb_ND})
  if isinstance(searcher, ScannSearcher):
    _save_scann(searcher, directory / "scann")
  return file_digests(directory)


def read_data(directory: epath.Path, manifest: dict[str, Any]) -> tuple[np.ndarray, Searcher]:
  """The embeddings [N, D] and the searcher that write_data wrote; raises SnapshotError if a bit of it changed."""
  found = file_digests(directory)
  for name, digest in manifest["file_digest"].items():
    if found.get(name) != digest:
      raise SnapshotError(f"{directory / name} {'is missing' if name not in found else 'is damaged'}")
  try:
    with ocp.StandardCheckpointer(multiprocessing_options=by_itself()) as checkpointer:
      emb_ND = np.asarray(checkpointer.restore(directory / "embeddings")["passage_emb_ND"])
  except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
    raise SnapshotError(f"{directory / 'embeddings'} is damaged ({error})") from error
  if digest_of(emb_ND) != manifest["embedding_digest"] or first_not_finite(emb_ND) is not None:
    raise SnapshotError(f"{directory / 'embeddings'} is damaged")
  if manifest["searcher"] == "scann":
    return emb_ND, _load_scann(directory / "scann", len(emb_ND), manifest["searcher_settings"])
  return emb_ND, ExactSearcher(emb_ND)


def digest_of(emb_ND: np.ndarray) -> str:
  """xxh3-128 of the embeddings' bytes."""
  return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(emb_ND).view(np.uint8).data)


def first_not_finite(emb_ND: np.ndarray) -> int | None:
  """The first row that is not finite. In pieces: a whole float32 copy is gigabytes."""
  for begin in range(0, len(emb_ND), 1 << 16):
    is_finite_N = np.isfinite(emb_ND[begin : begin + (1 << 16)].astype(np.float32)).all(1)
    if not is_finite_N.all():
      return begin + int(np.argmin(is_finite_N))
  return None


def _save_scann(searcher: ScannSearcher, directory: epath.Path) -> None:
  """ScaNN writes local files only: they are written beside, and copied."""
  directory.mkdir(parents=True)
  with tempfile.TemporaryDirectory() as scratch:
    searcher.save(scratch)
    for path in pathlib.Path(scratch).iterdir():
      (directory / path.name).write_bytes(path.read_bytes())


def _load_scann(directory: epath.Path, num_passages: int, settings: dict[str, Any]) -> Searcher:
  if "://" not in str(directory):
    return ScannSearcher.load(str(directory), num_passages, settings)
  with tempfile.TemporaryDirectory() as scratch:  # ScaNN reads local files only
    for path in directory.iterdir():
      (pathlib.Path(scratch) / path.name).write_bytes(path.read_bytes())
    return ScannSearcher.load(scratch, num_passages, settings)
