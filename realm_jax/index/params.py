"""Reads the parameters out of a run's checkpoints, without the optimizer's state."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from realm_jax.index.run_dir import RunDir


def restore_params(run_dir: RunDir, step: int | None = None) -> tuple[int, Any]:
  """The parameters of a run's newest checkpoint, or of `step`, as NumPy arrays; the optimizer's state is not read.

  Raises:
    FileNotFoundError: no checkpoint there.
  """
  steps = run_dir.checkpoint_steps()
  if not steps or (step is not None and step not in steps):
    raise FileNotFoundError(
      f"no checkpoint{'' if step is None else f' {step}'} in {run_dir.checkpoints} (there are: {steps}); "
      "train the run first, or check --workdir"
    )
  step = steps[-1] if step is None else step
  with ocp.PyTreeCheckpointer() as checkpointer:
    path = run_dir.checkpoints / str(step) / "state"
    tree = checkpointer.metadata(path).item_metadata.tree["params"]
    item = {"params": jax.tree.map(lambda _: 0, tree)}
    params = checkpointer.restore(
      path,
      args=ocp.args.PyTreeRestore(
        item=item,
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item),
        partial_restore=True,
      ),
    )["params"]
  return step, params
