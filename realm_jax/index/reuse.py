"""Takes embeddings from another run's index, of the passages that did not change."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import xxhash

from realm_jax.data.passages import PassageStore
from realm_jax.index import snapshot as snapshots
from realm_jax.index.digest import tree_digest
from realm_jax.index.run_dir import RunDir

_AT_ONCE = 4096  # passages


class Known(NamedTuple):
  """Embeddings that were made before.

  where: the run that has them.
  row_N: int64 [N], where each passage of the corpus stands in emb_XD; -1: nowhere.
  emb_XD: bfloat16, of X passages of another corpus.
  params_digest: of the tower that made them.
  """

  where: str
  row_N: np.ndarray
  emb_XD: np.ndarray
  params_digest: str

  @property
  def num_known(self) -> int:
    """Passages of the corpus."""
    return int((self.row_N >= 0).sum())

  def missing(self, passage_id_N: np.ndarray, params: Any) -> np.ndarray:
    """Those of the passages that are to be embedded; raises ValueError for another tower than made the rest."""
    if tree_digest(params) != self.params_digest:
      raise ValueError(
        f"the index of {self.where} was made with other parameters than are to embed now; leave out --reuse"
      )
    return passage_id_N[self.row_N[passage_id_N] < 0]

  def completed(self, passage_id_N: np.ndarray, missing_emb_ND: np.ndarray) -> np.ndarray:
    """The embeddings of all of the passages: those that were missing, in their order, and the rest."""
    row_N = self.row_N[passage_id_N]
    emb_ND = self.emb_XD[row_N]
    emb_ND[row_N < 0] = missing_emb_ND
    return emb_ND


def known_embeddings(run_dir: RunDir, other: PassageStore, store: PassageStore) -> Known:
  """What the newest snapshot of a run, whose corpus is `other`, knows of the passages of a store.

  Raises:
    SnapshotError: the run has no index, or a damaged one.
    ValueError: its passages were made in another way, or not all with the same parameters.
  """
  published = snapshots.newest_published(run_dir)
  if published is None:
    raise snapshots.SnapshotError(f"{run_dir.path} has no index to take embeddings from; leave out --reuse")
  snapshot = snapshots.load(run_dir, published.version, other)
  if len({part.params_step for part in snapshot.slices}) > 1:
    raise ValueError(f"the index of {run_dir.path} is of several steps (index.num_slices); leave out --reuse")
  where, digest = str(run_dir.path), snapshot.manifest["params_digest"]
  return Known(where, same_passages(store, other), snapshot.passage_emb_ND, digest)


def same_passages(store: PassageStore, other: PassageStore) -> np.ndarray:
  """For each passage of a store, the row of one with the same title and text in another -> int64 [N], -1: it has none.

  What counts is the tokens, which are all that is embedded; ids and places may be others.

  Raises:
    ValueError: the vocabularies or the passages' lengths differ, so that tokens can't be compared.
  """
  for name in ("vocabulary_digest", "passage_length"):
    if store.description[name] != other.description[name]:
      raise ValueError(
        f"{store.path} and {other.path} differ in {name}: {store.description[name]} and {other.description[name]}; "
        f"build the corpus with --vocab={other.path / 'vocab.txt'} --passage_length={other.passage_length}"
      )
  other_key_X = _keys(other)
  order_X = np.argsort(other_key_X)
  place_N = np.searchsorted(other_key_X, _keys(store), sorter=order_X)
  row_N = order_X[np.minimum(place_N, len(other) - 1)]
  for first in range(0, len(store), _AT_ONCE):  # by their tokens: keys may agree by chance
    passage_id = np.arange(first, min(first + _AT_ONCE, len(store)))
    row = row_N[passage_id]
    is_same = (store.title_length_N[passage_id] == other.title_length_N[row]) & (
      store.body_length_N[passage_id] == other.body_length_N[row]
    )
    is_same &= (store.padded_tokens(passage_id) == other.padded_tokens(row)).all(axis=1)
    row_N[passage_id[~is_same]] = -1
  return row_N


def _keys(store: PassageStore) -> np.ndarray:
  """uint64 [N], the same for the same tokens."""
  keys = [
    xxhash.xxh3_64_intdigest(tokens)
    for first in range(0, len(store), _AT_ONCE)
    for tokens in store.padded_tokens(np.arange(first, min(first + _AT_ONCE, len(store))))
  ]
  return np.array(keys, np.uint64)
