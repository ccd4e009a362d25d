"""Where a run's metrics are shown besides metrics.jsonl: TensorBoard, and Weights & Biases."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from realm_jax.index.run_dir import RunDir


class MetricsWriter(Protocol):
  """Takes the lines of metrics.jsonl as they are written."""

  def write(self, step: int, line: Mapping[str, float]) -> None:
    """One line, of this step."""
    ...

  def close(self) -> None:
    """Nothing more will come."""
    ...


class TensorBoard:
  """Event files in the run directory's `tensorboard/`.

  Raises:
    ImportError: TensorBoard is not installed; with the command that does it.
  """

  def __init__(self, run_dir: RunDir):
    try:
      from flax.metrics import tensorboard  # noqa: PLC0415 an extra
    except ImportError as error:
      raise ImportError("tensorboard=True needs TensorBoard:  pip install 'realm_jax[tensorboard]'") from error
    self._writer = tensorboard.SummaryWriter(str(run_dir.tensorboard))

  def write(self, step: int, line: Mapping[str, float]) -> None:
    for name, value in line.items():
      self._writer.scalar(name, value, step)

  def close(self) -> None:
    self._writer.close()


class WeightsAndBiases:
  """A run of a W&B project, which a run directory that is resumed goes on with.

  Raises:
    ImportError: W&B is not installed; with the command that does it.
    RuntimeError: W&B starts no run, as where nobody has logged in.
  """

  def __init__(self, project: str, run_dir: RunDir, config: Mapping[str, Any]):
    """config: shown beside the curves."""
    try:
      import wandb  # noqa: PLC0415 an extra
    except ImportError as error:
      raise ImportError("--wandb needs Weights & Biases:  pip install 'realm_jax[wandb]'") from error
    run_dir.path.mkdir(parents=True, exist_ok=True)
    # Steps that a resumed run makes again have the values that W&B has already, and are ignored there.
    try:
      self._run = wandb.init(
          project=project, id=_run_id(run_dir), name=run_dir.path.name, resume="allow", config=dict(config),
          dir=None if run_dir.is_bucket else str(run_dir.path),
      )  # fmt: skip
    except wandb.Error as error:
      raise RuntimeError(f"--wandb={project}: {error}; log in with  wandb login, or set WANDB_MODE=offline") from error

  def write(self, step: int, line: Mapping[str, float]) -> None:
    self._run.log({name: value for name, value in line.items() if name != "step"}, step=step)

  def close(self) -> None:
    self._run.finish()


def _run_id(run_dir: RunDir) -> str:
  """Kept in the run directory: its path alone may be that of another run on another machine."""
  run_dir.files.create(run_dir.wandb_id, uuid.uuid4().hex)
  return (run_dir.files.read(run_dir.wandb_id) or b"").decode()
