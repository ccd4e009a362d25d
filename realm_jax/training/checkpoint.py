"""Checkpoints of the whole training state: `checkpoints/<step>/`."""

from __future__ import annotations

from typing import Any

import orbax.checkpoint as ocp

from realm_jax.index.digest import tree_digest
from realm_jax.index.run_dir import RunDir
from realm_jax.training.step import TrainState


class Checkpoints:
  """Saves in the background; what went wrong in a save is raised by the next one, or by `close`."""

  def __init__(self, run_dir: RunDir, *, keep: int):
    self._manager = ocp.CheckpointManager(
      run_dir.checkpoints, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    )

  def save(self, step: int, state: TrainState, snapshot_version: int | None) -> None:
    """Saves the state after `step` updates, with the version of the snapshot in force."""
    if step in self._manager.all_steps():
      return
    meta = {"digest": tree_digest(state), "snapshot_version": snapshot_version}
    saved = self._manager.save(
      step, args=ocp.args.Composite(state=ocp.args.StandardSave(state._asdict()), meta=ocp.args.JsonSave(meta))
    )
    if not saved:  # Orbax says nothing when a newer step exists
      raise ValueError(
        f"checkpoint {step} was not saved: {self._manager.directory} holds a newer one; use another --workdir"
      )

  def save_params(self, step: int, params: Any) -> None:
    """Saves parameters alone: to start from and to evaluate, not to train on."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave({"params": params}), meta=ocp.args.JsonSave({"digest": None})
      ),
    )

  def newest_step(self) -> int | None:
    return self._manager.latest_step()

  def restore(self, abstract_state: TrainState) -> TrainState:
    """The newest checkpoint; raises ValueError if its bits are not what was saved."""
    step = self._manager.latest_step()
    if self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]["digest"] is None:
      raise ValueError(
        f"checkpoint {self._manager.directory}/{step} has no optimizer state: it was converted, not trained, and can't "
        f"be resumed; start from it with --config.init={self._manager.directory.parent}, in another --workdir"
      )
    item = self._manager.restore(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state._asdict()), meta=ocp.args.JsonRestore()),
    )
    state = TrainState(**item["state"])
    check_digest(state, item["meta"], f"{self._manager.directory}/{step}")
    return state

  def close(self) -> None:
    self._manager.close()


def check_digest(state: TrainState, meta: dict[str, Any], path: str) -> None:
  if tree_digest(state) != meta["digest"]:
    raise ValueError(f"checkpoint {path} is damaged (its digest differs); delete it to go on from the one before")
