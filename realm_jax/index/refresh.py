"""The indexer's work: follow the trainer's parameters, embed, publish, clean up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from realm_jax.batch import Packed
from realm_jax.data.passages import PassageStore
from realm_jax.index import snapshot as snapshots
from realm_jax.index.deletion import delete_old
from realm_jax.index.digest import is_finite
from realm_jax.index.embed import embed_passages
from realm_jax.index.reuse import Known
from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import Published, Slice, SnapshotError
from realm_jax.index.tower_export import DamagedExport, Export, read_export
from realm_jax.model.retriever import Tower

Embed = Callable[[Any, int, int], np.ndarray]  # the tower's parameters, begin, end -> embeddings of these passages


class RefreshSettings(NamedTuple):
  """The fields of config.index that the indexer goes by."""

  searcher: str = "auto"
  exact_below: int = 100_000
  keep: int = 3
  batch_size: int = 256
  num_slices: int = 1
  scann: Mapping[str, Any] | None = None


def refresh_settings(index: Any) -> RefreshSettings:
  """From config.index.

  Raises:
    ValueError: a number below 1.
  """
  if index.searcher not in ("auto", "exact", "scann"):
    raise ValueError(f"index.searcher={index.searcher!r}, expected auto, exact or scann")
  settings = RefreshSettings(
    index.searcher, index.exact_below, index.keep, index.batch_size, index.num_slices, index.scann.to_dict()
  )
  for name in ("keep", "num_slices", "batch_size"):
    if getattr(settings, name) < 1:
      raise ValueError(f"index.{name}={getattr(settings, name)}, expected at least 1")
  # A trainer with index.sync waits for the last but one.
  return settings._replace(keep=max(settings.keep, 2 if index.sync else 1))


def embedder(
  tower: Tower,
  store: PassageStore,
  settings: RefreshSettings,
  progress: Callable[[Iterable[int]], Iterable[int]] = lambda batches: batches,
  *,
  known: Known | None = None,
) -> Embed:
  """Embeds with all devices of this job what is not known; see `embed_passages`."""
  vocabulary = store.vocabulary()

  def embed(params: Any, begin: int, end: int) -> np.ndarray:
    passage_id_N = np.arange(begin, end)
    new_N = passage_id_N if known is None else known.missing(passage_id_N, params)
    new_emb_ND = embed_passages(
      tower, params, store, vocabulary, new_N, batch_size=settings.batch_size, progress=progress
    )
    return new_emb_ND if known is None else known.completed(passage_id_N, new_emb_ND)

  return embed


class Refresher:
  """Turns the passage tower's parameters into published snapshots.

  With several slices each snapshot embeds only the one whose parameters are the oldest, and takes the rest from the
  snapshot before: the mean age of an embedding falls from 1.5 to about 0.5 times what embedding all of them takes.
  """

  def __init__(
    self,
    run_dir: RunDir,
    store: PassageStore,
    settings: RefreshSettings,
    embed: Embed,
    *,
    log: Callable[[str], None] = print,
  ):
    self._run_dir, self._store, self._settings, self._log = run_dir, store, settings, log
    self._embed_part = embed
    self._damaged: frozenset[int] = frozenset()
    self._published: Published | None = None
    self._emb_ND: np.ndarray | None = None
    self._slices: list[Slice] = []
    self._take_over_newest()
    delete_old(run_dir, keep=settings.keep)  # what a life before was killed in deleting: there may be no later one

  def published_step(self) -> int | None:
    """The step whose parameters embedded the newest snapshot that is whole, and that the trainer has not refused."""
    if self._published is None or snapshots.is_refused(self._run_dir, self._published.version):
      self._published = snapshots.newest_published(self._run_dir, self._damaged)
    return self._published.params_step if self._published else None

  def refresh(self, export: Export, *, embed: Embed | None = None) -> int | None:
    """Embeds, publishes, and deletes what is old.

    Args:
      embed: this time, instead of what the refresher was made with.

    Returns:
      The version, None if other indexers were faster.

    Raises:
      SnapshotError: a parameter or an embedding is not finite.
    """
    if not is_finite(export.params):
      raise SnapshotError(f"the parameters of step {export.step} are not finite; nothing was published")
    started = time.monotonic()
    emb_ND, slices, num_embedded = self._embed(export, embed or self._embed_part)
    embedded = time.monotonic()
    self._published = None  # by this one, or a faster one
    version = snapshots.publish(
        self._run_dir, emb_ND, self._store, params_step=export.step, params_digest=export.digest, slices=slices,
        searcher=self._settings.searcher, exact_below=self._settings.exact_below, scann=self._settings.scann,
        damaged=self._damaged,
    )  # fmt: skip
    if version is None:
      self._log(f"the parameters of step {export.step}, or newer ones, were published by another indexer")
      self._emb_ND = None
      self._take_over_newest()
      return None
    if self._settings.num_slices > 1:
      self._emb_ND, self._slices = emb_ND, slices
    delete_old(self._run_dir, keep=self._settings.keep)
    self._log(
      f"snapshot {version}: {num_embedded} passages with the parameters of step {export.step} "
      f"(embedded in {embedded - started:.1f} s, published in {time.monotonic() - embedded:.1f} s)"
    )
    return version

  def _embed(self, export: Export, embed_part: Embed) -> tuple[np.ndarray, list[Slice], int]:
    num_passages = len(self._store)
    if self._emb_ND is None:
      bounds = np.linspace(0, num_passages, min(self._settings.num_slices, num_passages) + 1).astype(int).tolist()
      slices = [Slice(begin, end, export.step) for begin, end in zip(bounds, bounds[1:])]
      return embed_part(export.params, 0, num_passages), slices, num_passages
    oldest = min(range(len(self._slices)), key=lambda i: self._slices[i].params_step)
    begin, end, _ = self._slices[oldest]
    emb_ND = self._emb_ND.copy()
    emb_ND[begin:end] = embed_part(export.params, begin, end)
    slices = [*self._slices[:oldest], Slice(begin, end, export.step), *self._slices[oldest + 1 :]]
    return emb_ND, slices, end - begin

  def _take_over_newest(self) -> None:
    """Finds out which of the newest snapshots are damaged, and goes on from the newest that is whole."""
    for version in reversed(self._run_dir.snapshot_versions()):
      if version in self._damaged or snapshots.is_refused(self._run_dir, version):
        continue
      try:
        snapshot = snapshots.load(self._run_dir, version, self._store)
      except SnapshotError as error:
        self._damaged |= {version}
        self._log(f"snapshot {version} does not count as published: {error}")
        continue
      if self._settings.num_slices > 1 and len(snapshot.slices) == min(self._settings.num_slices, len(self._store)):
        self._emb_ND, self._slices = snapshot.passage_emb_ND, snapshot.slices
      return


def follow(
  refresher: Refresher,
  run_dir: RunDir,
  abstract_params: Any,
  *,
  once: bool,
  timeout: float,
  in_order: bool = False,
  log: Callable[[str], None] = print,
) -> int:
  """Publishes a snapshot of the newest exported parameters, again and again.

  If `in_order`, of each export in turn: a trainer with index.sync waits for every one of them, also for those that were
  written while no indexer ran.

  Ends, if `once`, with what was there to be published at first; when the trainer is DONE and its last parameters are
  published; or when nothing new came for `timeout` seconds (TimeoutError).

  Args:
    abstract_params: see `abstract_tower_params`.

  Returns:
    How many snapshots it published.
  """
  left_out: set[int] = set()
  num_published = 0
  last_step = None  # of what `once` publishes: a trainer may export faster than this embeds
  waits = False
  deadline = time.monotonic() + timeout
  while True:
    is_done = run_dir.is_done()  # read before the parameters: after DONE no newer ones come
    steps = run_dir.export_steps()
    if once and steps:
      last_step = last_step if last_step is not None else steps[-1]
      steps = [s for s in steps if s <= last_step]
    published_step = refresher.published_step()
    unpublished = [s for s in steps if (published_step is None or s > published_step) and s not in left_out]
    if unpublished:
      step = unpublished[0 if in_order else -1]
      try:
        export = read_export(run_dir, step, abstract_params)
      except FileNotFoundError:  # deleted by the trainer, which has newer ones
        continue
      except DamagedExport as error:  # training may go on, and the next export be whole
        log(f"the parameters of step {step} are left out: {error}")
        left_out.add(step)
        continue
      try:
        version = refresher.refresh(export)
      except SnapshotError as error:  # likewise
        log(f"the parameters of step {step} are left out: {error}")
        left_out.add(step)
        continue
      num_published += version is not None
      if once and not in_order:
        return num_published
      waits = False
      deadline = time.monotonic() + timeout
    elif is_done or last_step is not None:
      return num_published
    elif time.monotonic() > deadline:
      raise TimeoutError(
        f"no new parameters in {run_dir.retriever} for {timeout:.0f} s and no {run_dir.done.name}: has the trainer "
        "stopped? Start it again, then this"
      )
    else:
      if not steps and not waits:
        log(f"waiting for parameters in {run_dir.retriever}: realm train writes them")
        waits = True
      time.sleep(run_dir.poll)


def abstract_tower_params(tower: Tower, passage_length: int) -> Any:
  """Shapes and types of the tower's parameters, on the first device."""
  row = jax.ShapeDtypeStruct((1, passage_length), "int32")
  packed = Packed(row, row, jax.ShapeDtypeStruct((1, passage_length), "bool"))
  params = jax.eval_shape(tower.init, jax.random.key(0), packed)["params"]
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params)
