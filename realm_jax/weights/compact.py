"""Weights in a quarter of their size, for a model that travels with the package: rows of 8 bits with a scale each."""

from __future__ import annotations

import os
import pathlib

import numpy as np
from safetensors.numpy import save

from realm_jax.weights.recognition import BLOCK_EMB
from realm_jax.weights.safetensors_file import SafetensorsFile
from realm_jax.weights.tensors import Tensors, WeightsError

_SCALE = ".scale"  # behind the name of a matrix: float32 [rows, 1]


def compact(directory: pathlib.Path) -> None:
  """Makes HF's form in a directory compact, in place; HF's own classes can't load it any more.

  Matrices become int8 rows times the row's scale, so that a number is off by at most half of 1/127 of its row's
  largest. Left out are the passages' embeddings, which belong to a corpus, and what HF's classes have and the model has
  not: matrices of zeros, and copies of the word embeddings.
  """
  path = directory / "model.safetensors"
  source = SafetensorsFile(path)
  tensors: dict[str, np.ndarray] = {}
  for name in source.shapes:
    value = source.read(name)
    if name == BLOCK_EMB or name.endswith("cls.predictions.decoder.weight"):
      continue
    if value.ndim != 2:
      tensors[name] = value
      continue
    if not value.any():
      continue
    scale = np.abs(value).max(1, keepdims=True).astype(np.float32) / 127
    tensors[name + _SCALE] = scale
    tensors[name] = np.rint(value / np.where(scale == 0, 1, scale)).astype(np.int8)
  scratch = path.with_name(f".{path.name}.writing")
  scratch.write_bytes(save(tensors))
  os.replace(scratch, path)


class CompactTensors:
  """What `compact` wrote, as float32; see `Tensors`."""

  def __init__(self, source: Tensors):
    self._source, self.where = source, source.where
    self._scale = {name.removesuffix(_SCALE): name for name in source.shapes if name.endswith(_SCALE)}
    self.shapes = {name: shape for name, shape in source.shapes.items() if not name.endswith(_SCALE)}
    for name, scale in self._scale.items():
      rows = (self.shapes.get(name, (-1,))[0], 1)
      if source.shapes[scale] != rows:
        raise WeightsError(f"{scale!r} in {self.where} doesn't fit {name!r}; get the file again")

  def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
    value = self._source.read(name, rows)
    return value * self._source.read(self._scale[name], rows) if name in self._scale else value


def is_compact(source: Tensors) -> bool:
  """Whether matrices are stored as int8 rows, each with its scale."""
  return any(name.endswith(_SCALE) for name in source.shapes)
