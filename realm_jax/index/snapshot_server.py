"""The process behind `SnapshotProcess`: reads a snapshot with a low priority, then answers searches."""

# Only what is light is imported up here, and the rest by `read`, which has stepped back: imports take seconds.
from __future__ import annotations

import json
import os
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
  from realm_jax.index.searcher import Searcher

HEADER = struct.Struct("<III")  # queries, width, k


def serve(directory: str, emb_fd: int, queries: BinaryIO, answers: BinaryIO, *, steps_back: bool) -> None:
  """Writes the embeddings to a file, then answers until the queries end.

  A thread of its own reads: a thread that has stepped back can't come forward again, and searches must not wait for
  whoever else has the cores.
  """
  manifest = json.loads(queries.readline())
  with ThreadPoolExecutor(1, initializer=_step_back if steps_back else None) as reading:
    searcher, error = reading.submit(read, directory, manifest, emb_fd).result()
  answers.write(json.dumps(error).encode() + b"\n")
  answers.flush()
  while searcher is not None and (header := queries.read(HEADER.size)):
    _answer(searcher, header, queries, answers)


def read(directory: str, manifest: dict[str, Any], emb_fd: int) -> tuple[Searcher | None, dict[str, str] | None]:
  """The searcher; or else the kind of error and its message."""
  import numpy as np  # noqa: PLC0415
  from absl import logging  # noqa: PLC0415
  from etils import epath  # noqa: PLC0415

  from realm_jax.index.snapshot_data import SnapshotError, read_data  # noqa: PLC0415

  logging.set_verbosity(logging.ERROR)  # Orbax tells of every file
  try:
    emb_ND, searcher = read_data(epath.Path(directory), manifest)
    with os.fdopen(emb_fd, "wb") as file:
      file.write(np.ascontiguousarray(emb_ND).view(np.uint8).data)
  except (SnapshotError, OSError) as error:
    return None, {"kind": "SnapshotError" if isinstance(error, SnapshotError) else "OSError", "message": str(error)}
  return searcher, None


def _step_back() -> None:
  """Lets this thread, and those that it starts, have a tenth of a core that others want, and cores that are idle.

  With less (nice(19), SCHED_IDLE) it would not get to the end beside steps that take all cores.
  """
  if sys.platform == "linux":  # elsewhere a thread has no priority of its own
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _answer(searcher: Searcher, header: bytes, queries: BinaryIO, answers: BinaryIO) -> None:
  import numpy as np  # noqa: PLC0415

  num_queries, size, k = HEADER.unpack(header)
  query = np.frombuffer(queries.read(4 * num_queries * size), np.float32).reshape(num_queries, size)
  score, passage_id = searcher.search(query, k)
  answers.write(np.ascontiguousarray(score, np.float32).tobytes())
  answers.write(np.ascontiguousarray(passage_id, np.int32).tobytes())
  answers.flush()


if __name__ == "__main__":
  serve(sys.argv[1], int(sys.argv[2]), sys.stdin.buffer, sys.stdout.buffer, steps_back="--steps_back" in sys.argv)
