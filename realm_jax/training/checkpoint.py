"""Checkpoints of the whole training state: `checkpoints/<step>/`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import orbax.checkpoint as ocp

from realm_jax.index.digest import is_finite, tree_digest
from realm_jax.index.host_arrays import whole
from realm_jax.index.hosts import gather, is_first
from realm_jax.index.journal import Adoption
from realm_jax.index.params import checkpoint_place
from realm_jax.index.run_dir import RunDir
from realm_jax.index.seal import first_line, sealed, unsealed
from realm_jax.training.step import TrainState


class Restored(NamedTuple):
  """A checkpoint that was read."""

  state: TrainState
  adoption: Adoption | None  # the snapshot in force


class Checkpoints:
  """Saves in the background; what went wrong in a save is raised by the next one, or by `close`."""

  def __init__(self, run_dir: RunDir, *, keep: int, every: int = 1, log: Callable[[str], None] = print):
    self._run_dir, self._every, self._log = run_dir, every, log
    self._manager = ocp.CheckpointManager(
      run_dir.checkpoints,
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True),
    )
    self._first_due: float | None = None

  def expect_first(self, seconds: float) -> None:
    """Makes a save due in so many seconds.

    A job that is killed every few minutes would otherwise never come to its first one, and begin at the same step
    again and again.
    """
    self._first_due = time.monotonic() + seconds

  def is_due(self, step: int) -> bool:
    """Whether the state after `step` updates is to be saved; the same on all hosts."""
    # Hosts' clocks differ, and all must save at the same step.
    is_late = self._first_due is not None and any(gather(time.monotonic() >= self._first_due))
    return is_late or step % self._every == 0

  def save(self, step: int, state: TrainState, adoption: Adoption | None) -> None:
    """Saves the state after `step` updates, with the adoption of the snapshot in force.

    Raises:
      FloatingPointError: a number in the state is not finite.
    """
    self._first_due = None
    if step in self._manager.all_steps():
      return
    host_state = whole(state)
    if not is_finite(host_state):
      raise FloatingPointError(
        f"the parameters of step {step} are not finite: training has diverged. The newest checkpoint is "
        f"{self._manager.latest_step()}; start from it with --config.init={self._run_dir.path} and a lower "
        "optimizer.learning_rate, in another --workdir"
      )
    meta = {
      "digest": tree_digest(host_state),
      "params_digest": tree_digest(host_state.params),
      "adoption": adoption._asdict() if adoption else None,
    }
    if not self._save(step, state._asdict(), meta):  # Orbax says nothing when a newer step exists
      raise ValueError(
        f"checkpoint {step} was not saved: {self._manager.directory} holds a newer one; use another --workdir"
      )

  def save_params(self, step: int, params: Any) -> None:
    """Saves parameters alone: to start from and to evaluate, not to train on."""
    self._save(step, {"params": params}, {"digest": None, "params_digest": tree_digest(params), "adoption": None})

  def newest_step(self) -> int | None:
    """Of the checkpoints; None: there is none."""
    return self._manager.latest_step()

  def restore(self, abstract_state: TrainState) -> Restored:
    """The newest checkpoint that is whole. Damaged ones after it are moved to `damaged/`.

    Raises:
      ValueError: none is; nothing was moved.
    """
    damaged: dict[int, str] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        restored = self._read_again(step, abstract_state)
      except NotResumable:
        raise
      except Exception as error:  # noqa: BLE001 whatever a damaged file makes Orbax raise
        damaged[step] = first_line(error)
      if min(gather(step not in damaged)) == 0:  # on any host
        damaged.setdefault(step, "another host can't read it")
        continue
      if is_first():
        for damaged_step, reason in damaged.items():
          aside = self._run_dir.set_aside(self._run_dir.checkpoints / str(damaged_step))
          self._log(f"checkpoint {damaged_step} is damaged ({reason}) and was moved to {aside}; going on from {step}")
      gather(0)  # all look again when the first one is done
      self._manager.reload()
      return restored
    reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
    raise ValueError(
      f"no checkpoint in {self._manager.directory} can be restored ({reasons}); restore one from a backup, or move the "
      "directory away to begin again"
    )

  def _read_again(self, step: int, abstract_state: TrainState) -> Restored:
    """Reads a step; in a bucket a second time if it fails, for what a bad connection does is no damage."""
    try:
      return self._read(step, abstract_state)
    except NotResumable:
      raise
    except Exception:
      if not self._run_dir.is_bucket:
        raise
    self._run_dir.checkpoint_steps()  # raises where the bucket can't be reached
    return self._read(step, abstract_state)

  def _read(self, step: int, abstract_state: TrainState) -> Restored:
    where = self._manager.directory / str(step)
    meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    meta = unsealed(meta, checkpoint_place(step))
    if meta["digest"] is None:
      raise NotResumable(
        f"checkpoint {where} has no optimizer state: it was converted, not trained, and can't be resumed; start from "
        f"it with --config.init={self._run_dir.path}, in another --workdir"
      )
    item = self._manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state._asdict()))
    )
    state = TrainState(**item["state"])
    if tree_digest(whole(state)) != meta["digest"]:
      raise ValueError("its digest differs")
    return Restored(state, Adoption(**meta["adoption"]) if meta["adoption"] else None)

  def _save(self, step: int, state: dict[str, Any], meta: dict[str, Any]) -> bool:
    meta = sealed(meta, checkpoint_place(step))
    return self._manager.save(
      step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    )

  def wait(self) -> None:
    """Returns when the last save is on the disk; raises what went wrong in it."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save, and raises what went wrong with it."""
    self._manager.close()


class NotResumable(ValueError):
  """A checkpoint without an optimizer's state."""
