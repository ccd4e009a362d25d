"""Models of the Hugging Face hub, by their id."""

from __future__ import annotations

import pathlib
import re

from realm_jax.weights.tensors import WeightsError

_TEXT = ["config.json", "tokenizer_config.json", "tokenizer.json", "vocab.txt"]
_SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json"]
_TORCH = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]  # only where there is nothing else


def is_hub_id(name: str) -> bool:
  """Whether the name has the form of a hub's id: "model" or "owner/model"."""
  return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name) is not None


def download(hub_id: str) -> pathlib.Path:
  """The directory of a model's files, from the hub or from its cache on this machine."""
  import huggingface_hub  # noqa: PLC0415 only where an id is given

  remedy = f"check the name, or get the files elsewhere (hf download {hub_id} --local-dir DIR) and give DIR"
  try:
    path = pathlib.Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=_TEXT + _SAFETENSORS))
    if not any(path.glob("model*.safetensors")):
      path = pathlib.Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=_TEXT + _TORCH))
  except (OSError, ValueError, RuntimeError) as error:  # what it raises depends on the version, but is one of these
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise WeightsError(
      f"no run or directory {hub_id}, and the hub gave no model of that name ({reason}); {remedy}"
    ) from error
  return path
