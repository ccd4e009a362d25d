"""When the passage tower is exported; with index.refresh=inline, the trainer refreshes the index itself at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tqdm
from ml_collections import ConfigDict

from realm_jax.config import make_tower
from realm_jax.data.passages import PassageStore
from realm_jax.index.host_arrays import whole
from realm_jax.index.hosts import embed_together, is_first
from realm_jax.index.refresh import Embed, Refresher, embedder, refresh_settings
from realm_jax.index.run_dir import RunDir
from realm_jax.index.tower_export import Export, TowerWriter
from realm_jax.model.retriever import passage_tower_params


class Exports:
  """Exports at the multiples of index.export_every, and at the end. The first host writes."""

  def __init__(
    self,
    config: ConfigDict,
    run_dir: RunDir,
    store: PassageStore,
    *,
    is_frozen: bool = False,
    log: Callable[[str], None] = print,
  ):
    """is_frozen: the passage tower is not trained, and exported once."""
    self._every, self._is_frozen = config.index.export_every, is_frozen
    self._is_exported = bool(run_dir.export_steps())
    self._writer = TowerWriter(run_dir, log=log) if is_first() else None
    self._embed: Embed | None = None
    self._refresher = None
    if config.index.refresh == "inline":
      settings = refresh_settings(config.index)
      tower = make_tower(config.model, store.description["vocabulary_size"])
      self._embed = embedder(tower, store, settings, _show)
      if is_first():
        self._refresher = Refresher(run_dir, store, settings, self._embed, log=log)

  def newest_step(self) -> int | None:
    """As `TowerWriter.newest_step`; None on a host that writes none."""
    return self._writer.newest_step() if self._writer else None

  def digest(self, step: int) -> str | None:
    """As `TowerWriter.digest`; None on a host that writes none."""
    return self._writer.digest(step) if self._writer else None

  def write_if_due(self, step: int, params: Any) -> None:
    """Exports before the update after `step` others, where it is time."""
    if step % self._every == 0:
      self._write(step, params)

  def write_last(self, step: int, params: Any) -> None:
    """Exports at the end of training, and returns when all is on the disk."""
    self._write(step, params)
    if self._writer:
      self._writer.close()

  def wait(self) -> None:
    """Returns when all exports are on the disk; raises what went wrong in writing them."""
    if self._writer:
      self._writer.wait()

  def _write(self, step: int, params: Any) -> None:
    if self._is_frozen and self._is_exported:
      return
    self._is_exported = True
    tower_params = whole(passage_tower_params(params["retriever"]))
    if self._embed:
      embed_together(
        lambda embed: self._publish(step, tower_params, embed), self._embed, tower_params, ends_on_sigterm=False
      )
    elif self._writer:
      self._writer.write(step, tower_params)

  def _publish(self, step: int, tower_params: Any, embed: Embed) -> None:
    """On the first host."""
    assert self._writer is not None and self._refresher is not None
    digest = self._writer.write(step, tower_params)
    published = self._refresher.published_step()
    if published is None or published < step:
      self._refresher.refresh(Export(step, digest, tower_params), embed=embed)


def _show(batches: Iterable[int]) -> Iterable[int]:
  return tqdm.tqdm(batches, desc="embedding", leave=False, mininterval=1.0, disable=not is_first())
