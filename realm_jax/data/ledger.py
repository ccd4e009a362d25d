"""Follows the finished shards of a build in order: counts, faults, and ids that must not come twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from etils import epath

from realm_jax.data.articles import Rejections
from realm_jax.data.shards import read_summary
from realm_jax.data.sources import Source, common_noun, strict_error


class Ledger:
  """Counts of the shards that were added; takes 8 bytes an article."""

  def __init__(self, sources: Sequence[Source], shards_dir: epath.Path, *, strict: bool):
    self._sources, self._shards_dir, self._strict = sources, shards_dir, strict
    noun = common_noun(sources)
    self.bad, self.left_out = Rejections(noun), Rejections(noun)
    self.names: list[str] = []
    self.num_articles = self.num_passages = 0
    self._seen = _HashSet()

  def add(self, name: str) -> None:
    """Adds the next shard.

    Raises:
      ValueError: an article's id came before; strict and a bad record.
    """
    source_number = int(name.split("-")[0])
    summary = read_summary(self._shards_dir / name)
    if self._strict and summary.bad:
      number, reason = min((numbers[0], reason) for reason, (_, numbers) in summary.bad.items())
      raise strict_error(self._sources[source_number], number, reason)
    for reason, (count, numbers) in summary.bad.items():
      self.bad.add(reason, *(self._place(source_number, number) for number in numbers), count=count)
    for reason, count in summary.left_out.items():
      self.left_out.count[reason] += count
    self.names.append(name)
    self.num_articles += len(summary.ids)
    self.num_passages += summary.num_passages
    came_before = self._seen.add(np.array([xxhash.xxh3_64_intdigest(id_.encode()) for id_ in summary.ids], np.uint64))
    for n in np.nonzero(came_before)[0]:
      self._refuse_twice(summary.ids[n])

  def describe(self) -> str:
    """What was skipped, in words."""
    left_out = "; ".join(f"{count} left out as {reason}" for reason, count in self.left_out.count.most_common())
    described = "; ".join(part for part in (self.bad.describe(), left_out) if part)
    return described or "nothing was read"

  def _place(self, source_number: int, number: int) -> int | str:
    return number if len(self._sources) == 1 else f"{self._sources[source_number].path}:{number}"

  def _refuse_twice(self, id_: str) -> None:
    """Looks for the id itself, as two ids may have the same hash."""
    places: list[tuple[int, int]] = []
    for name in self.names:
      summary = read_summary(self._shards_dir / name)
      places += [(int(name.split("-")[0]), number) for i, number in zip(summary.ids, summary.numbers) if i == id_]
    if len(places) < 2:
      return
    (first_source, first), (source, second) = places[:2]
    noun = common_noun(self._sources)
    if first_source == source:
      where = f"{self._sources[source].path}: {noun}s {first} and {second}"
    else:
      where = f"{self._sources[first_source].path}, {noun} {first}, and {self._sources[source].path}, {noun} {second},"
    raise ValueError(f"{where} have the same id {id_!r}; ids must be unique")


class _HashSet:
  """64-bit numbers in sorted arrays, each at least twice as long as the next, so that adding many is cheap."""

  def __init__(self):
    self._levels: list[np.ndarray] = []

  def add(self, hash_: np.ndarray) -> np.ndarray:
    """Returns which of them were in the set, or came before in hash_."""
    came_before = np.ones(len(hash_), bool)
    came_before[np.unique(hash_, return_index=True)[1]] = False
    for level in self._levels:
      came_before |= level[np.minimum(np.searchsorted(level, hash_), len(level) - 1)] == hash_
    merged = np.sort(hash_)
    while self._levels and len(self._levels[-1]) < 2 * len(merged):
      merged = np.sort(np.concatenate([self._levels.pop(), merged]))
    if len(merged):
      self._levels.append(merged)
    return came_before
