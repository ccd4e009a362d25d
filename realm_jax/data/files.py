"""Writes small files so that nobody ever sees half of one."""

from __future__ import annotations

import os

from etils import epath


def write_whole(path: epath.Path, content: bytes) -> None:
  """Writes under a name of its own, then moves; on gs:// an object appears whole anyway."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if "://" in str(path):
    path.write_bytes(content)
    return
  # Two processes may write the same file, when one was left over from a build that was killed.
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    temporary.write_bytes(content)
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
