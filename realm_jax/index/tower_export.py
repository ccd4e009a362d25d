"""The passage tower's parameters on their way from the trainer to the indexer: `retriever/<step>/`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from realm_jax.index.digest import is_finite, tree_digest
from realm_jax.index.hosts import by_itself, checkpointer_of
from realm_jax.index.run_dir import RunDir
from realm_jax.index.seal import first_line, sealed, unsealed
from realm_jax.index.snapshot import refuse_since

_KEPT = 3  # the indexer may still be reading the last but one


class DamagedExport(ValueError):
  """Exported parameters that are not what the trainer wrote."""


class Export(NamedTuple):
  """The passage tower's parameters as of a step."""

  step: int
  digest: str
  params: Any


class TowerWriter:
  """The trainer's side: small exports, often."""

  def __init__(self, run_dir: RunDir, *, log: Callable[[str], None] = print):
    run_dir.retriever.mkdir(parents=True, exist_ok=True)
    self._manager = ocp.CheckpointManager(
      run_dir.retriever,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=_KEPT, create=False, cleanup_tmp_directories=True, multiprocessing_options=by_itself()
      ),
    )
    self._run_dir, self._log = run_dir, log
    self._digests: dict[int, str] = {}  # of this life
    self._set_damaged_aside()

  def newest_step(self) -> int | None:
    """Of the exports; None: there is none."""
    return self._manager.latest_step()

  def digest(self, step: int) -> str | None:
    """The digest of a step's parameters, as long as its export is there."""
    if step not in self._digests and step in self._manager.all_steps():
      try:
        self._digests[step] = self._read_digest(step)
      except Exception:  # noqa: BLE001 whatever a damaged file makes Orbax raise
        return None
    return self._digests.get(step)

  def write(self, step: int, params: Any) -> str:
    """Exports the parameters of a step. A replayed step is exported already, with the same bits.

    Returns:
      Their digest.

    Raises:
      FloatingPointError: a parameter is not finite.
    """
    params = jax.device_get(params)
    if not is_finite(params):
      raise FloatingPointError(
        f"the retriever's parameters of step {step} are not finite: training has diverged; go on from an earlier "
        "checkpoint with a lower optimizer.learning_rate, in another --workdir"
      )
    before = self.digest(step)
    digest = self._digests[step] = tree_digest(params)
    if step in self._manager.all_steps():
      if self._is_whole(step, digest):
        return digest
      self._log(f"the export of step {step} was damaged, or made by other arithmetic: it is written again")
      self._manager.wait_until_finished()
      self._manager.delete(step)
      if before not in (None, digest):
        refuse_since(self._run_dir, step)  # the indexer would take them for what is to come
    elif step < (self._manager.latest_step() or 0):
      return digest  # it was there, and has been deleted as an old one
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        manifest=ocp.args.JsonSave(sealed({"digest": digest}, _place(step))),
      ),
      force=True,  # Orbax would not write a step below the newest
    )
    return digest

  def wait(self) -> None:
    """Returns when all exports are on the disk; raises what went wrong in writing them."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last export, and raises what went wrong with it."""
    self._manager.close()  # waits for the last save, and raises what went wrong in it

  def _set_damaged_aside(self) -> None:
    """What stands under a later number than its own would hide that the steps before are still to be exported."""
    for step in self._manager.all_steps():
      try:
        self._read_digest(step)
      except Exception as error:  # noqa: BLE001 whatever a damaged file makes Orbax raise
        aside = self._run_dir.set_aside(self._run_dir.retriever / str(step))
        self._log(f"the export of step {step} is damaged ({first_line(error)}) and was moved to {aside}")
    self._manager.reload()

  def _read_digest(self, step: int) -> str:
    manifest = self._manager.restore(step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))["manifest"]
    return unsealed(manifest, _place(step))["digest"]

  def _is_whole(self, step: int, digest: str) -> bool:
    self._manager.wait_until_finished()
    try:
      item = self._manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore()))
      return self._read_digest(step) == digest == tree_digest(jax.tree.map(np.asarray, item["params"]))
    except Exception:  # noqa: BLE001 whatever a damaged file makes Orbax raise
      return False


def read_export(run_dir: RunDir, step: int, abstract_params: Any) -> Export:
  """The indexer's side: restores a step of `run_dir.export_steps()`.

  Raises:
    DamagedExport: its bits are not what the trainer wrote.
    FileNotFoundError: the trainer has deleted it meanwhile; newer ones exist.
  """
  where = run_dir.retriever / str(step)
  try:
    with ocp.StandardCheckpointer(multiprocessing_options=by_itself()) as checkpointer:
      params = checkpointer.restore(where / "params", abstract_params)
    with checkpointer_of(ocp.JsonCheckpointHandler) as checkpointer:
      digest = unsealed(checkpointer.restore(where / "manifest"), _place(step))["digest"]
  except Exception as error:  # whatever a damaged file makes Orbax raise
    if step not in run_dir.export_steps():
      raise FileNotFoundError(where) from error
    raise DamagedExport(f"{where} is damaged ({first_line(error)}); the next export replaces it") from error
  found = tree_digest(params)
  if digest != found:
    raise DamagedExport(f"{where} is damaged: its digest is {found}, written was {digest}; the next export replaces it")
  return Export(step, found, params)


def _place(step: int) -> str:
  return f"retriever/{step}"
