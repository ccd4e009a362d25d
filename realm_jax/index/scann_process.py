"""ScaNN in a process of its own: while it loads, it holds Python's lock, and would stop the loop of a trainer."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import weakref
from typing import Any, BinaryIO

import numpy as np

from realm_jax.index.searcher import ScannSearcher, check_queries

_HEADER = struct.Struct("<III")  # queries, width, k
_READY = b"ready"


class ScannProcess:
  """A searcher whose index is held by another process, which ends with this object.

  Queries and answers are the arrays' bytes.
  """

  def __init__(self, directory: str, num_passages: int, settings: dict[str, Any]):
    """Returns when the index is loaded; the directory is then no longer needed.

    Raises:
      RuntimeError: it could not be loaded.
    """
    self.num_passages = num_passages
    command = [
      sys.executable,
      "-m",
      "realm_jax.index.scann_process",
      directory,
      str(num_passages),
      json.dumps(settings),
    ]
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    self._lock = threading.Lock()
    weakref.finalize(self, _end, self._process)
    self._read(len(_READY))

  def search(self, query_emb_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    query = check_queries(query_emb_BD, k, self.num_passages)
    num_queries = len(query)
    assert self._process.stdin is not None
    with self._lock:
      try:
        self._process.stdin.write(_HEADER.pack(*query.shape, k) + query.tobytes())
        self._process.stdin.flush()
      except BrokenPipeError as error:
        raise RuntimeError(self._obituary()) from error
      score = np.frombuffer(self._read(4 * num_queries * k), np.float32).reshape(num_queries, k)
      passage_id = np.frombuffer(self._read(4 * num_queries * k), np.int32).reshape(num_queries, k)
    return score, passage_id

  def _read(self, size: int) -> bytes:
    assert self._process.stdout is not None
    content = self._process.stdout.read(size)
    if len(content) < size:
      raise RuntimeError(self._obituary())
    return content

  def _obituary(self) -> str:
    return (
      f"the process that holds ScaNN's index ended with status {self._process.wait()}; its last words are above, and "
      "if there are none, it may have been killed for want of memory"
    )


def _end(process: subprocess.Popen) -> None:
  process.kill()
  process.communicate()


def answer(directory: str, num_passages: int, settings: dict[str, Any], queries: BinaryIO, answers: BinaryIO) -> None:
  """The other process: until the queries end.

  It steps back behind the loop that it loads beside. When it searches, that loop waits for it, and it has the cores.
  """
  os.nice(19)
  searcher = ScannSearcher.load(directory, num_passages, settings)
  answers.write(_READY)
  answers.flush()
  while header := queries.read(_HEADER.size):
    num_queries, size, k = _HEADER.unpack(header)
    query = np.frombuffer(queries.read(4 * num_queries * size), np.float32).reshape(num_queries, size)
    score, passage_id = searcher.search(query, k)
    answers.write(np.ascontiguousarray(score, np.float32).tobytes())
    answers.write(np.ascontiguousarray(passage_id, np.int32).tobytes())
    answers.flush()


if __name__ == "__main__":
  answer(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), sys.stdin.buffer, sys.stdout.buffer)
