"""Reads the parameters out of a run's checkpoints, without the optimizer's state."""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from realm_jax.index.digest import tree_digest
from realm_jax.index.hosts import checkpointer_of
from realm_jax.index.run_dir import RunDir
from realm_jax.index.seal import first_line, unsealed


def checkpoint_place(step: int) -> str:
  """What a checkpoint's meta is sealed for."""
  return f"checkpoints/{step}"


def restore_params(run_dir: RunDir, step: int | None = None) -> tuple[int, Any]:
  """The parameters of a run's newest checkpoint, or of `step`, as NumPy arrays; the optimizer's state is not read.

  Where the newest one is damaged, the one before is taken, and a line on stderr says so.

  Raises:
    FileNotFoundError: no checkpoint there.
    ValueError: all are damaged, or `step` is.
  """
  steps = run_dir.checkpoint_steps()
  if not steps or (step is not None and step not in steps):
    raise FileNotFoundError(
      f"no checkpoint{'' if step is None else f' {step}'} in {run_dir.checkpoints} (there are: {steps}); "
      "train the run first, or check --workdir"
    )
  reasons = []
  for candidate in reversed(steps) if step is None else [step]:
    try:
      return candidate, _read(run_dir.checkpoints / str(candidate))
    except Exception as error:  # noqa: BLE001 whatever a damaged file makes Orbax raise
      reasons.append(f"checkpoint {candidate} is damaged ({first_line(error)})")
      print(f"{run_dir.path}: {reasons[-1]}", file=sys.stderr)
  raise ValueError(
    f"no checkpoint in {run_dir.checkpoints} can be read: {'; '.join(reasons)}; restore it from a backup"
  )


def _read(checkpoint: epath.Path) -> Any:
  with checkpointer_of(ocp.PyTreeCheckpointHandler) as checkpointer:
    # The checkpointer itself would look for more, and warn that it is not there.
    tree = checkpointer.handler.metadata(checkpoint / "state").tree["params"]
    item = {"params": jax.tree.map(lambda _: 0, tree)}
    params = checkpointer.restore(
      checkpoint / "state",
      args=ocp.args.PyTreeRestore(
        item=item,
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item),
        partial_restore=True,
      ),
    )["params"]
  with checkpointer_of(ocp.JsonCheckpointHandler) as checkpointer:
    meta = unsealed(checkpointer.restore(checkpoint / "meta"), checkpoint_place(int(checkpoint.name)))
  if tree_digest(params) != meta["params_digest"]:
    raise ValueError("its digest differs")
  return params
