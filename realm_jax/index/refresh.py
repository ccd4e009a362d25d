"""The indexer's work: follow the trainer's parameters, embed, publish, clean up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax

from realm_jax.batch import Packed
from realm_jax.data.passages import PassageStore
from realm_jax.index import snapshot as snapshots
from realm_jax.index.embed import embed_passages
from realm_jax.index.run_dir import RunDir
from realm_jax.index.tower_export import TowerReader
from realm_jax.model.retriever import Tower


def follow(
  run_dir: RunDir,
  tower: Tower,
  store: PassageStore,
  *,
  searcher: str,
  exact_below: int,
  once: bool,
  timeout: float,
  in_order: bool = False,
  keep: int = 3,
  batch_size: int = 256,
  log: Callable[[str], None] = print,
  progress: Callable[[Iterable[int]], Iterable[int]] = lambda batches: batches,
) -> int:
  """Publishes a snapshot of the newest exported parameters, again and again.

  If `in_order`, of each export in turn: a trainer with index.sync waits for every one of them, also for those that were
  written while no indexer ran.

  Ends after one round if `once`; when the trainer is DONE and its last parameters are published; or when nothing new
  came for `timeout` seconds (TimeoutError).

  Returns:
    How many snapshots it published.
  """
  vocabulary = store.vocabulary()
  abstract_params = abstract_tower_params(tower, store.passage_length)
  reader = TowerReader(run_dir)
  num_published = 0
  published_step = newest_params_step(run_dir)
  deadline = time.monotonic() + timeout
  while True:
    is_done = run_dir.done.exists()  # read before the parameters: after DONE no newer ones come
    steps = reader.steps()
    unpublished = [s for s in steps if published_step is None or s > published_step]
    if unpublished:
      step = unpublished[0 if in_order else -1]
      try:
        export = reader.read(step, abstract_params)
      except FileNotFoundError:  # deleted by the trainer, which has newer ones
        continue
      started = time.monotonic()
      emb_ND = embed_passages(tower, export.params, store, vocabulary, batch_size=batch_size, progress=progress)
      embedded = time.monotonic()
      version = snapshots.publish(
          run_dir, emb_ND, store, params_step=step, params_digest=export.digest,
          searcher=searcher, exact_below=exact_below,
      )  # fmt: skip
      published_step = step
      num_published += 1
      snapshots.delete_old(run_dir, keep=keep)
      log(
        f"snapshot {version}: {len(store)} passages with the parameters of step {step} "
        f"(embedded in {embedded - started:.1f} s, published in {time.monotonic() - embedded:.1f} s)"
      )
      deadline = time.monotonic() + timeout
    elif is_done or (once and steps):
      return num_published
    elif time.monotonic() > deadline:
      raise TimeoutError(
        f"no new parameters in {run_dir.retriever} for {timeout:.0f} s and no {run_dir.done.name}: has the trainer "
        "stopped? Start it again, then this"
      )
    else:
      time.sleep(0.2)


def newest_params_step(run_dir: RunDir) -> int | None:
  """The step whose parameters embedded the newest snapshot."""
  versions = run_dir.snapshot_versions()
  return snapshots.read_manifest(run_dir, versions[-1])["params_step"] if versions else None


def abstract_tower_params(tower: Tower, passage_length: int) -> Any:
  """Shapes and types of the tower's parameters, on the first device."""
  row = jax.ShapeDtypeStruct((1, passage_length), "int32")
  packed = Packed(row, row, jax.ShapeDtypeStruct((1, passage_length), "bool"))
  params = jax.eval_shape(tower.init, jax.random.key(0), packed)["params"]
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params)
