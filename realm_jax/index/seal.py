"""Seals small JSON texts, so that one which was changed, renamed or swapped is noticed."""

from __future__ import annotations

import json
from typing import Any

import xxhash


def sealed(content: dict[str, Any], place: str) -> dict[str, Any]:
  """The content with a digest of it and of its place, such as "checkpoints/40", as "seal"."""
  return content | {"seal": _seal(content, place)}


def unsealed(content: Any, place: str) -> dict[str, Any]:
  """What was sealed for a place; raises ValueError where it is not what was written there."""
  if not isinstance(content, dict):
    raise ValueError(f"expected a JSON object, found {type(content).__name__}")
  rest = {name: value for name, value in content.items() if name != "seal"}
  if content.get("seal") != _seal(rest, place):
    raise ValueError(f"its seal is not that of {place}: it was changed, renamed or swapped")
  return rest


def first_line(error: Exception) -> str:
  """What a library says of a damaged file, as far as people read it."""
  return (str(error) or type(error).__name__).splitlines()[0]


def _seal(content: dict[str, Any], place: str) -> str:
  return xxhash.xxh3_128_hexdigest(json.dumps([place, content], sort_keys=True).encode())
