"""When the passage tower is exported; with index.refresh=inline, the trainer refreshes the index itself at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tqdm
from ml_collections import ConfigDict

from realm_jax.config import make_tower
from realm_jax.data.passages import PassageStore
from realm_jax.index.refresh import Refresher, refresh_settings
from realm_jax.index.run_dir import RunDir
from realm_jax.index.tower_export import Export, TowerWriter
from realm_jax.model.retriever import passage_tower_params


class Exports:
  """Exports at the multiples of index.export_every, and at the end."""

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
    self._writer = TowerWriter(run_dir, log=log)
    self._refresher = None
    if config.index.refresh == "inline":
      self._refresher = Refresher(
        run_dir,
        make_tower(config.model, store.description["vocabulary_size"]),
        store,
        refresh_settings(config.index),
        log=log,
        progress=lambda batches: tqdm.tqdm(batches, desc="embedding", leave=False, mininterval=1.0),
      )

  def newest_step(self) -> int | None:
    return self._writer.newest_step()

  def digest(self, step: int) -> str | None:
    return self._writer.digest(step)

  def write_if_due(self, step: int, params: Any) -> None:
    """Exports before the update after `step` others, where it is time."""
    if step % self._every == 0:
      self._write(step, params)

  def write_last(self, step: int, params: Any) -> None:
    """Exports at the end of training, and returns when all is on the disk."""
    self._write(step, params)
    self._writer.close()

  def wait(self) -> None:
    """Returns when all exports are on the disk; raises what went wrong in writing them."""
    self._writer.wait()

  def _write(self, step: int, params: Any) -> None:
    if self._is_frozen and self.newest_step() is not None:
      return
    tower_params = passage_tower_params(params["retriever"])
    digest = self._writer.write(step, tower_params)
    if self._refresher:
      published = self._refresher.published_step()
      if published is None or published < step:
        self._refresher.refresh(Export(step, digest, tower_params))
