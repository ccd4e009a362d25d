"""The process behind `SnapshotProcess`: reads a snapshot, in a modest way if it is to, then answers searches."""

# Only what is light is imported up here, and the rest by `read`, which has stepped back: imports take seconds.
from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
  from realm_jax.index.searcher import Searcher

HEADER = struct.Struct("<III")  # queries, width, k


# Seconds. A step on the same cores loses a turn where it loses any, so turns are short; longer rests lose fewer.
_RUNS, _RESTS = 0.002, 0.038


def serve(directory: str, emb_fd: int, queries: BinaryIO, answers: BinaryIO, manner: str) -> None:
  """Writes the embeddings to a file, then answers until the queries end.

  Args:
    manner: how it reads. "at_once"; "steps_back": with a low priority; "rests": standing still most of the time.
  """
  manifest = json.loads(queries.readline())
  # A thread of its own reads: a thread that has stepped back can't come forward again, and searches must not wait for
  # whoever else has the cores.
  initializer = _step_back if manner == "steps_back" else None
  with _resting() if manner == "rests" else contextlib.nullcontext(), ThreadPoolExecutor(1, "", initializer) as reading:
    result = reading.submit(read, directory, manifest, emb_fd)
    while not result.done():
      if select.select([queries], [], [], 0.1)[0]:  # nothing is asked before the answer: who would ask is gone
        os._exit(1)
    searcher, error = result.result()
  answers.write(json.dumps(error).encode() + b"\n")
  answers.flush()
  while searcher is not None and (header := queries.read(HEADER.size)):
    _answer(searcher, header, queries, answers)


def read(directory: str, manifest: dict[str, Any], emb_fd: int) -> tuple[Searcher | None, dict[str, Any] | None]:
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
    kind = "SnapshotError" if isinstance(error, SnapshotError) else "OSError"
    return None, {"kind": kind, "errno": getattr(error, "errno", None), "message": str(error)}
  return searcher, None


def _step_back() -> None:
  """Lets this thread, and those that it starts, have a tenth of a core that others want, and cores that are idle.

  With less (nice(19), SCHED_IDLE) it would not get to the end beside others that take all cores.
  """
  if sys.platform == "linux":  # elsewhere a thread has no priority of its own
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


@contextlib.contextmanager
def _resting() -> Iterator[None]:
  """Within, this process stands still but for _RUNS of _RUNS + _RESTS seconds, as cpulimit would have it.

  Steps that take all cores notice a low priority: its turns are seldom, but last long.
  """
  paced, (end, begin) = os.getpid(), os.pipe()
  pacer = os.fork()  # nothing heavy is imported, and no thread is started
  if pacer == 0:
    os.close(begin)
    _pace(paced, end)
  os.close(end)
  try:
    yield
  finally:
    os.close(begin)
    os.waitpid(pacer, 0)


def _pace(pid: int, end: int) -> None:
  """Stops and continues a process until it, and with it the other side of the pipe `end`, is gone or says so."""
  for its_end in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(its_end, signal.SIG_IGN)  # else a process that stands still could be left so
  with contextlib.suppress(ProcessLookupError):
    while not select.select([end], [], [], _RUNS)[0]:
      os.kill(pid, signal.SIGSTOP)
      select.select([end], [], [], _RESTS)
      os.kill(pid, signal.SIGCONT)
  os._exit(0)


def _answer(searcher: Searcher, header: bytes, queries: BinaryIO, answers: BinaryIO) -> None:
  import numpy as np  # noqa: PLC0415

  num_queries, size, k = HEADER.unpack(header)
  query = np.frombuffer(queries.read(4 * num_queries * size), np.float32).reshape(num_queries, size)
  score, passage_id = searcher.search(query, k)
  answers.write(np.ascontiguousarray(score, np.float32).tobytes())
  answers.write(np.ascontiguousarray(passage_id, np.int32).tobytes())
  answers.flush()


if __name__ == "__main__":
  serve(sys.argv[1], int(sys.argv[2]), sys.stdin.buffer, sys.stdout.buffer, sys.argv[3])
