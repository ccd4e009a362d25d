"""Safetensors files: a header that is checked before anything is believed, and tensors that are streamed.

The format is 8 bytes with the header's length, the header (JSON: name -> type, shape, begin and end), and the data.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from realm_jax.weights.tensors import WeightsError

# bf16 is no type of NumPy's own; it and those that no weight has are named for the error's sake.
_ITEM_SIZE = {
  "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1,
  "BOOL": 1,
}  # fmt: skip
_NUMPY = {
  "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8",
  "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
# 4 MiB describe 40,000 tensors, and no BERT has 1,000. JSON grows about tenfold in memory, so a header that fills the
# whole of a large file must not be parsed.
_LONGEST_HEADER = 1 << 22
_MAX_DIMENSIONS = 8


class _Entry(NamedTuple):
  dtype: str
  shape: tuple[int, ...]
  begin: int  # bytes of the file
  end: int


class SafetensorsFile:
  """One file; see `Tensors`. Read, not memory-mapped, so that memory holds one tensor at a time."""

  def __init__(self, path):
    """Raises WeightsError if the file is not exactly what its header says."""
    self.where = str(path)
    try:
      with open(path, "rb") as file:
        self._entries = _read_entries(file, self.where)
    except OSError as error:
      raise WeightsError(f"{self.where} can't be read ({error.strerror}); check the path") from error
    self.shapes = {name: entry.shape for name, entry in self._entries.items()}

  def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
    entry = self._entries[name]
    first, last, _ = rows.indices(entry.shape[0]) if entry.shape else (0, 1, 1)
    shape = (max(0, last - first), *entry.shape[1:]) if entry.shape else ()
    row_bytes = _ITEM_SIZE[entry.dtype] * math.prod(entry.shape[1:])
    value = np.empty(shape, _dtype(entry.dtype))
    with open(self.where, "rb") as file:
      file.seek(entry.begin + first * row_bytes)
      if file.readinto(value.reshape(-1).view(np.uint8).data) != value.nbytes:
        raise WeightsError(f"{self.where} was cut short while it was read: {name!r} is not whole; get it again")
    return value


class ShardedSafetensors:
  """Several files and their index (model.safetensors.index.json) as one; see `Tensors`."""

  def __init__(self, index_path: pathlib.Path):
    """Raises WeightsError if a file is missing, or index and files contradict each other."""
    self.where = str(index_path)
    shard_of = read_json(index_path).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
      raise WeightsError(f"{self.where} has no weight_map from tensors to files; get it again")
    self._file: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(shard_of.values())):
      path = index_path.parent / shard
      if pathlib.PurePath(shard).name != shard:
        raise WeightsError(f"{self.where} names the file {shard!r} outside its directory; get it from its source again")
      if not path.is_file():
        raise WeightsError(f"{path} is missing, {index_path.name} names it: half a download? Get it again")
      file = SafetensorsFile(path)
      for name in file.shapes:
        if shard_of.get(name) != shard:
          raise WeightsError(
            f"{path} holds {name!r}, which {index_path.name} has in {shard_of.get(name)!r}; "
            "the files are of different models: get all of them again"
          )
        self._file[name] = file
    missing = sorted(set(shard_of) - set(self._file))
    if missing:
      raise WeightsError(
        f"{missing[0]!r} is not in {index_path.parent / shard_of[missing[0]]}, where {index_path.name} has it; "
        "get all files again"
      )
    self.shapes = {name: file.shapes[name] for name, file in self._file.items()}

  def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
    return self._file[name].read(name, rows)


def write_safetensors(
  path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], pieces: Callable[[str], Iterable[np.ndarray]]
) -> None:
  """Writes float32 tensors in the order of `shapes`; pieces(name) gives each one's rows, in one or more arrays."""
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it transformers refuses the file
  end = 0
  for name, shape in shapes.items():
    begin, end = end, end + 4 * math.prod(shape)
    header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
  encoded = json.dumps(header, separators=(",", ":")).encode()
  encoded += b" " * (-len(encoded) % 8)  # data begins at a multiple of 8
  with open(path, "wb") as file:
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for name, shape in shapes.items():
      num_bytes = 0
      for piece in pieces(name):
        piece = np.ascontiguousarray(piece, "<f4")
        assert piece.shape[1:] == tuple(shape[1:]), (name, piece.shape, shape)
        num_bytes += file.write(piece.reshape(-1).view(np.uint8).data)
      assert num_bytes == 4 * math.prod(shape), (name, num_bytes, shape)
    file.flush()
    os.fsync(file.fileno())


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """An object in a small JSON file; raises WeightsError for anything else."""
  if path.stat().st_size > _LONGEST_HEADER:
    raise WeightsError(f"{path} has {path.stat().st_size:,} bytes, more than any such file needs; get it again")
  return _parse_object(path.read_bytes(), str(path))


def _read_entries(file, where: str) -> dict[str, _Entry]:
  size = os.fstat(file.fileno()).st_size
  length = int.from_bytes(file.read(8), "little")
  if size < 8 or length > size - 8:
    raise WeightsError(
      f"{where} has {size:,} bytes, its header alone should have {length:,}: it was cut short, or is no safetensors "
      "file; get it again"
    )
  if length > _LONGEST_HEADER:
    raise WeightsError(f"{where} has a header of {length:,} bytes, at most {_LONGEST_HEADER:,} are read; get it again")
  header = _parse_object(file.read(length), f"the header of {where}")
  header.pop("__metadata__", None)
  entries = {name: _entry(name, value, 8 + length, where) for name, value in header.items()}
  end = 8 + length
  for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
    if entry.begin != end:
      what = "overlaps the tensor before it" if entry.begin < end else "leaves a gap before it"
      raise WeightsError(f"{name!r} in {where} begins at byte {entry.begin:,} and {what}; get the file again")
    end = entry.end
  if end != size:
    what = "was cut short" if end > size else "has bytes that belong to no tensor"
    raise WeightsError(f"{where} has {size:,} bytes, its header describes {end:,}: it {what}; get it again")
  return entries


def _entry(name: str, value: Any, data_begin: int, where: str) -> _Entry:
  def wrong(what: str) -> WeightsError:
    return WeightsError(f"{name!r} in the header of {where} has {what}; get the file again")

  if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
    raise wrong("not exactly dtype, shape and data_offsets")
  dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
  if not isinstance(dtype, str) or dtype not in _ITEM_SIZE:
    raise wrong(f"the type {dtype!r}, known are {', '.join(_ITEM_SIZE)}")
  if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
    raise wrong(f"the shape {shape!r}")
  if not _are_counts(offsets) or len(offsets) != 2:
    raise wrong(f"the data_offsets {offsets!r}")
  if offsets[1] - offsets[0] != _ITEM_SIZE[dtype] * math.prod(shape):
    raise wrong(f"{offsets[1] - offsets[0]:,} bytes for {dtype} of shape {shape}")
  return _Entry(dtype, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _are_counts(value: Any) -> bool:
  return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**63 for x in value)


def _dtype(name: str) -> np.dtype:
  if name == "BF16":
    import ml_dtypes  # noqa: PLC0415 the process that reads torch's files has no such type

    return np.dtype(ml_dtypes.bfloat16)
  return np.dtype(_NUMPY[name])


def _parse_object(data: bytes, where: str) -> dict[str, Any]:
  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
      names = [name for name, _ in pairs]
      twice = next(name for name in names if names.count(name) > 1)
      raise WeightsError(f"{where} has {twice!r} twice; get the file again")
    return result

  try:
    value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
  except WeightsError:
    raise
  except (ValueError, RecursionError) as error:
    raise WeightsError(f"{where} is no JSON ({error}); get the file again") from error
  if not isinstance(value, dict):
    raise WeightsError(f"{where} is no JSON object; get the file again")
  return value
