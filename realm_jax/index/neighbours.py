"""Finds and keeps, for every passage of a corpus, those that BM25 takes for similar: the hard negatives of ICT."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable

import numpy as np
from etils import epath

from realm_jax.data.files import write_whole
from realm_jax.data.passages import PassageStore
from realm_jax.index.bm25 import Bm25
from realm_jax.index.digest import file_digests
from realm_jax.index.files import prepare_buckets
from realm_jax.index.seal import first_line, sealed, unsealed

FORMAT = "realm-neighbours-1"
_MANIFEST = "neighbours.json"  # written last: without it the directory is not whole
_PART = 4096  # passages in a file: what is lost when the search is stopped
_BATCH = 256  # passages searched for at once


def mine_neighbours(
  store: PassageStore,
  path,
  num_neighbours: int,
  progress: Callable[[Iterable[int]], Iterable[int]] = lambda begins: begins,
) -> int:
  """Writes each passage's best neighbours into a directory; goes on with one that was begun.

  Passages are compared by title and body. A neighbour is never the passage itself, nor one that holds one of its
  sentences word for word: for a query that is this sentence, it would be as right as the passage. Where too few share
  a word with it, a passage has fewer neighbours.

  Args:
    progress: shows how far the search has come, given the first passages of the files.

  Returns:
    Neighbours that were found.

  Raises:
    ValueError: the directory holds neighbours of another corpus, or another number of them.
  """
  directory = _directory(path)
  settings = {
    "format": FORMAT, "corpus_digest": store.content_digest, "num_passages": len(store),
    "num_neighbours": num_neighbours, "searcher": Bm25.DESCRIPTION,
  }  # fmt: skip
  begun = directory / "begun.json"
  if begun.exists() and json.loads(begun.read_text()) != settings:
    raise ValueError(f"{directory} holds neighbours of another corpus or of other settings; choose another --output")
  write_whole(begun, json.dumps(settings, indent=2).encode())
  bm25, num_found = None, 0
  for begin in progress(range(0, len(store), _PART)):
    part, end = directory / f"{begin:09d}.npz", min(begin + _PART, len(store))
    neighbour_id_NR = _read_part(part, (end - begin, num_neighbours))
    if neighbour_id_NR is None:
      bm25 = bm25 or Bm25(store)
      batches = [_search(store, bm25, b, min(b + _BATCH, end), num_neighbours) for b in range(begin, end, _BATCH)]
      neighbour_id_NR = np.concatenate(batches)
      content = io.BytesIO()
      np.savez_compressed(content, neighbour_id=neighbour_id_NR)
      write_whole(part, content.getvalue())
    num_found += int((neighbour_id_NR >= 0).sum())
  digests = {name: digest for name, digest in file_digests(directory).items() if name.endswith(".npz")}
  manifest = sealed(settings | {"file_digest": digests}, _MANIFEST)
  write_whole(directory / _MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
  return num_found


def read_neighbours(path, store: PassageStore) -> np.ndarray:
  """int32 [N, R], the rows of the neighbours of each passage, best first, then -1.

  Raises:
    FileNotFoundError: none there, or not whole.
    ValueError: they belong to another corpus, or are not what was written.
  """
  directory = _directory(path)
  manifest_path, remedy = directory / _MANIFEST, "make it with  realm mine_negatives"
  if not manifest_path.exists():
    raise FileNotFoundError(f"no hard negatives at {path} (it has no {_MANIFEST}); {remedy}")
  try:
    manifest = unsealed(json.loads(manifest_path.read_text()), _MANIFEST)
  except ValueError as error:
    raise ValueError(f"{manifest_path} is damaged ({first_line(error)}); {remedy}") from error
  if manifest["format"] != FORMAT or manifest["corpus_digest"] != store.content_digest:
    raise ValueError(f"{path} holds the hard negatives of another corpus than {store.path}; {remedy}")
  found = file_digests(directory)
  for name, digest in manifest["file_digest"].items():
    if found.get(name) != digest:
      raise ValueError(f"{directory / name} is not what was written (its digest differs); {remedy}")
  shape = (-1, manifest["num_neighbours"])
  return np.concatenate([_from_npz(directory / name).reshape(shape) for name in sorted(manifest["file_digest"])])


def _search(store: PassageStore, bm25: Bm25, begin: int, end: int, num_neighbours: int) -> np.ndarray:
  """The neighbours of some passages, [.., R]."""
  texts = [f"{store.title(i)} {store.body(i)}" for i in range(begin, end)]
  # Twice as many as are asked for: some are left out.
  score_BK, passage_id_BK = bm25.retrieve(texts, min(2 * num_neighbours + 1, len(store)))
  spelt = dict(zip(found := np.unique(passage_id_BK), _spelt_bodies(store, found)))
  neighbour_id = np.full((end - begin, num_neighbours), -1, np.int32)
  for row, (i, body) in enumerate(zip(range(begin, end), _spelt_bodies(store, np.arange(begin, end)))):
    sentences = _sentences(store, i, body)
    similar = passage_id_BK[row][score_BK[row] > 0].tolist()
    chosen = [j for j in similar if j != i and not any(s in spelt[j] for s in sentences)][:num_neighbours]
    neighbour_id[row, : len(chosen)] = chosen
  return neighbour_id


def _spelt_bodies(store: PassageStore, passage_id: np.ndarray) -> list[str]:
  """Bodies with a character for each token, so that Python's search in texts finds runs of tokens."""
  body = store.body_tokens(passage_id)
  rows = zip(body.token_id_RL, body.start_R, body.num_tokens_R)
  return ["".join(map(chr, row[start : start + length].tolist())) for row, start, length in rows]


def _sentences(store: PassageStore, i: int, body: str) -> list[str]:
  begin, end = store.sentence_offset[i : i + 2].astype(np.int64)
  starts = store.sentence_start[begin:end].tolist()
  return [body[first:last] for first, last in zip(starts, [*starts[1:], len(body)])]


def _read_part(path: epath.Path, shape: tuple[int, int]) -> np.ndarray | None:
  """A file of a search that was stopped; a damaged one is as good as none."""
  if path.exists():
    with contextlib.suppress(zipfile.BadZipFile, ValueError, KeyError, EOFError, zlib.error):
      neighbour_id = _from_npz(path)
      return neighbour_id if neighbour_id.shape == shape else None
  return None


def _from_npz(path: epath.Path) -> np.ndarray:
  with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
    return file["neighbour_id"]


def _directory(path) -> epath.Path:
  if "://" in str(path):
    prepare_buckets()
  return epath.Path(path)
