"""torch's files: rewritten as safetensors by a process of its own, which loads tensors and nothing that is code."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from realm_jax.weights.safetensors_file import SafetensorsFile, write_safetensors
from realm_jax.weights.tensors import WeightsError


class TorchFiles(SafetensorsFile):
  """One model in .bin or .pt files; see `Tensors`."""

  def __init__(self, paths: Sequence[pathlib.Path]):
    """Raises WeightsError if torch is not there, or finds more than tensors."""
    for path in paths:
      if not path.is_file():
        raise WeightsError(f"{path} is missing: half a download? Get it again")
    self._scratch = tempfile.TemporaryDirectory(prefix="realm-torch-")  # deleted with this object
    rewritten = pathlib.Path(self._scratch.name) / "model.safetensors"
    python = os.environ.get("REALM_TORCH_PYTHON", sys.executable)
    result = subprocess.run(
      [python, "-m", "realm_jax.weights.torch_file", *map(str, paths), str(rewritten)],
      env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
      capture_output=True,
      text=True,
      check=False,
    )
    if result.returncode:
      reason = (result.stderr.strip().splitlines() or ["it ended without a word"])[-1]
      raise WeightsError(
        f"{paths[0]} can't be read: {reason}. It takes a Python with torch (pip install torch, or name one: "
        "REALM_TORCH_PYTHON=/path/to/python); a model from the hub often has model.safetensors too"
      )
    super().__init__(rewritten)


def main(arguments: Sequence[str]) -> None:
  """Rewrites torch's files as one of safetensors."""
  import torch  # noqa: PLC0415 only in this process, and perhaps in another environment

  *paths, rewritten = arguments
  tensors = {}
  for path in paths:
    for name, value in torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path)).items():
      if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name!r} in {path} is no tensor")
      if name in tensors:
        raise ValueError(f"{name!r} is in more than one file")
      if value.is_floating_point():  # constants like position_ids are of no use
        tensors[name] = value
  shapes = {name: tuple(value.shape) for name, value in tensors.items()}
  write_safetensors(pathlib.Path(rewritten), shapes, lambda name: [tensors[name].detach().float().numpy()])


def _is_zip(path: str) -> bool:
  """torch maps only its newer format."""
  with open(path, "rb") as file:
    return file.read(2) == b"PK"


if __name__ == "__main__":
  main(sys.argv[1:])
