"""The passage tower's parameters on their way from the trainer to the indexer: `retriever/<step>/`."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from realm_jax.index.digest import tree_digest
from realm_jax.index.run_dir import RunDir

_KEPT = 3  # the indexer may still be reading the last but one


class Export(NamedTuple):
  step: int
  digest: str
  params: Any


class TowerWriter:
  """The trainer's side: small exports, often."""

  def __init__(self, run_dir: RunDir):
    self._manager = ocp.CheckpointManager(
      run_dir.retriever, options=ocp.CheckpointManagerOptions(max_to_keep=_KEPT, create=True)
    )

  def write(self, step: int, params: Any) -> None:
    """Exports the parameters of a step. A replayed step is exported already, with the same bits."""
    if step in self._manager.all_steps() or step < (self._manager.latest_step() or 0):
      return
    params = jax.device_get(params)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(params), manifest=ocp.args.JsonSave({"digest": tree_digest(params)})
      ),
    )

  def close(self) -> None:
    self._manager.close()  # waits for the last save, and raises what went wrong in it


class TowerReader:
  """The indexer's side."""

  def __init__(self, run_dir: RunDir):
    self._run_dir = run_dir
    self._manager: ocp.CheckpointManager | None = None

  def steps(self) -> list[int]:
    """The steps whose exports are whole, ascending."""
    if not self._run_dir.retriever.exists():
      return []
    if self._manager is None:
      self._manager = ocp.CheckpointManager(
        self._run_dir.retriever, options=ocp.CheckpointManagerOptions(read_only=True)
      )
    else:
      self._manager.reload()
    return sorted(self._manager.all_steps())

  def read(self, step: int, abstract_params: Any) -> Export:
    """Restores a step.

    Raises:
      ValueError: its bits are not what the trainer wrote.
      FileNotFoundError: the trainer has deleted it meanwhile; newer ones exist.
    """
    assert self._manager is not None, "steps() comes first"
    item = self._manager.restore(
      step,
      args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params), manifest=ocp.args.JsonRestore()),
    )
    digest = tree_digest(item["params"])
    if digest != item["manifest"]["digest"]:
      raise ValueError(
        f"the parameters in {self._run_dir.retriever}/{step} are damaged: their digest is {digest}, "
        f"written was {item['manifest']['digest']}; the next export replaces them"
      )
    return Export(step, digest, item["params"])
