"""What every reader of files in this room gives: named tensors, read one at a time."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class WeightsError(ValueError):
  """Weights that must not be used; the message says what, where, and the remedy."""


class Tensors(Protocol):
  """An open file or checkpoint. Nothing but names and shapes is in memory until `read`."""

  where: str
  shapes: dict[str, tuple[int, ...]]

  def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
    """A tensor, or some of its rows, in the type that it is stored in."""
    ...


def as_float32(value: np.ndarray, name: str, where: str) -> np.ndarray:
  """A weight as our parameters have it; raises WeightsError if it is no number that one can go on from."""
  if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
    raise WeightsError(f"{name!r} in {where} has the type {value.dtype}, a weight is a floating-point number")
  with np.errstate(over="ignore"):
    value = np.asarray(value, np.float32)
  if not np.isfinite(value).all():
    first = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
    raise WeightsError(
      f"{name!r} in {where} holds {value[first]} at {list(first)}: its training has diverged or the file is damaged; "
      "take an earlier checkpoint, or get the file again"
    )
  return value
