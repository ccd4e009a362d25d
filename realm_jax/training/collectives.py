"""What a compiled program sends between devices, read from its text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

Shape = tuple[int, ...]

_BITS = {"pred": 8, "token": 0, "bf16": 16}
# Type, dimensions and layout of an array.
ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+|f8\w+|token)\[([\d,]*)\](?:\{([^}]*)\})?")
_COLLECTIVE = re.compile(
  r"^\s*(?:ROOT )?%?[\w.-]+ = (?P<result>\(?.*?\)?) "
  r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast|ragged-all-to-all)"
  r"(?P<start>-start)?\("
)
COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")


class Collective(NamedTuple):
  """One collective operation of a program.

  num_bytes: of the whole arrays that it is about, on one device: what an all-reduce reduces, what an all-gather has in
    the end, what a reduce-scatter begins with.
  num_parameter_bytes: of those among them that are parameters, or gradients of them.
  group_size: devices that take part together.
  """

  kind: str
  num_bytes: int
  num_parameter_bytes: int
  group_size: int

  @property
  def num_bytes_sent(self) -> float:
    """What a device sends at least, in a ring."""
    if self.kind in ("collective-permute", "collective-broadcast"):
      return self.num_bytes
    return self.num_bytes * (2 if self.kind == "all-reduce" else 1) * (self.group_size - 1) / self.group_size


def find_collectives(
  text: str, num_devices: int, is_parameter: Callable[[Shape], bool], num_iterations: int = 1
) -> list[Collective]:
  """Reads the text of a compiled program (`Compiled.as_text()`).

  Args:
    is_parameter: whether parameters, or a device's parts of them, have this shape. (The compiler puts gradients and a
      scalar loss into one operation, under the name of one of them, so that names tell nothing.)
    num_iterations: of the program's loops; what is in one counts so often.
  """
  found, repeats = [], 1
  loops = loop_bodies(text)
  for line in text.splitlines():
    if computation := COMPUTATION.match(line):
      repeats = num_iterations if computation[1] in loops else 1
    match = _COLLECTIVE.match(line)
    if not match:
      continue
    kind, group_size = match["kind"], _group_size(line, num_devices)
    arrays = ARRAY.findall(match["result"])
    if match["start"] and kind in ("all-gather", "collective-permute"):  # what goes in, what comes out, and more
      arrays = arrays[len(arrays) // 2 :] if kind == "all-gather" else arrays[1:2]
    total = of_parameters = 0
    for dtype, dimensions, _ in arrays:
      size = num_bytes(dtype, dimensions) * (group_size if kind == "reduce-scatter" else 1)
      total += size
      if is_parameter(_shape(dimensions)):
        of_parameters += size
    found += [Collective(kind, total, of_parameters, group_size)] * repeats
  return found


def loop_bodies(text: str) -> set[str]:
  """Names of the computations that loops repeat."""
  return set(re.findall(r"\bbody=%?([\w.-]+)", text))


def num_bytes(dtype: str, dimensions: str) -> int:
  """Of an array of such a type, "bf16", and dimensions, "8,128"."""
  bits = _BITS[dtype] if dtype in _BITS else int(re.findall(r"\d+", dtype)[0])
  return math.prod(_shape(dimensions)) * bits // 8


def _shape(dimensions: str) -> Shape:
  return tuple(int(n) for n in dimensions.split(",") if n)


def _group_size(line: str, num_devices: int) -> int:
  """Of the three forms of replica_groups: [groups,size]<=[...], {{0,1},{2,3}}, and axes of a mesh."""
  if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
    return int(match[1])
  if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
    return len(match[1].split(","))
  if match := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", line):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", match[2]))
  return num_devices
