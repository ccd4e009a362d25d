"""What a compiled program reads from and writes to a device's main memory, read from its text."""

from __future__ import annotations

import re

from realm_jax.training.collectives import ARRAY, COMPUTATION, loop_bodies, num_bytes

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?(%[\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)")
# They only name what is there already.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "while")


def memory_traffic(text: str, num_iterations: int = 1) -> int:
  """Bytes, by the text of a compiled program (`Compiled.as_text()`).

  Every instruction of the entry computation, and of the loops in it, reads its operands and writes its results once.
  Those that the compiler put into on-chip memory (S(1) in their layout) are left out; `cost_analysis()["bytes
  accessed"]` has them in. A gather is taken to read the whole of its table.

  Args:
    num_iterations: of the program's loops.
  """
  of: dict[str, int] = {}  # an instruction's result: its bytes in main memory
  loops = loop_bodies(text)
  total = repeats = 0
  for line in text.splitlines():
    if computation := COMPUTATION.match(line):
      repeats = 1 if line.startswith("ENTRY ") else num_iterations if computation[1] in loops else 0
    match = _INSTRUCTION.match(line)
    if match is None or not repeats:
      continue
    name, result, operation, rest = match.groups()
    of[name] = _in_main_memory(result)
    if operation in _FREE or operation.endswith("-done") or 'custom_call_target="ConcatBitcast"' in rest:
      continue
    if operation == "slice-start":  # ((whole), slice, ...): a part of the whole is read, wherever it then lies
      whole, _, part = result.partition("), ")
      size = next(num_bytes(dtype, shape) for dtype, shape, _ in ARRAY.findall(part))
      moved = (size if _in_main_memory(whole) else 0) + _in_main_memory(part)
    elif operation.endswith("-start"):  # (to, from, ...)
      moved = of[name]
    else:
      operands = re.findall(r"%[\w.-]+", rest.partition("), ")[0])
      moved = of[name] + sum(of.get(operand, 0) for operand in operands)
    total += repeats * moved
  return total


def _in_main_memory(types: str) -> int:
  return sum(num_bytes(dtype, shape) for dtype, shape, layout in ARRAY.findall(types) if "S(" not in layout)
