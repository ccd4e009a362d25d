"""A large snapshot in a process of its own, that reads it and answers searches beside a trainer's loop.

Reading takes seconds of the cores, and ScaNN holds Python's lock while it loads and while it is freed: in the trainer's
own process, steps would wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from realm_jax.index.searcher import check_queries
from realm_jax.index.snapshot_data import SnapshotError
from realm_jax.index.snapshot_server import HEADER


class SnapshotProcess:
  """A searcher whose index is held by another process, which ends with this object.

  Attributes:
    passage_emb_ND: [N, D] bfloat16, in a file without a name that both processes map.
  """

  def __init__(self, directory: str, manifest: dict[str, Any], *, manner: str = "at_once"):
    """Returns when the snapshot is read and checked; the directory is then no longer needed.

    Args:
      manner: how it is read, see `snapshot_server.serve`.

    Raises:
      SnapshotError: a bit of it changed.
      OSError: it could not be read.
      RuntimeError: the process ended.
    """
    self.num_passages = manifest["num_passages"]
    self._lock = threading.Lock()
    with _nameless_file() as file:
      self._start(directory, manifest, file, manner)
      self._check_read()
      flat = np.memmap(file, np.uint8, "r").view(ml_dtypes.bfloat16)
    self.passage_emb_ND = flat.reshape(self.num_passages, manifest["retrieval_size"])

  def search(self, query_emb_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    query = check_queries(query_emb_BD, k, self.num_passages)
    num_queries = len(query)
    with self._lock:
      self._write(HEADER.pack(*query.shape, k) + query.tobytes())
      score = np.frombuffer(self._read(4 * num_queries * k), np.float32).reshape(num_queries, k)
      passage_id = np.frombuffer(self._read(4 * num_queries * k), np.int32).reshape(num_queries, k)
    return score, passage_id

  def _start(self, directory: str, manifest: dict[str, Any], file: BinaryIO, manner: str) -> None:
    self._process = subprocess.Popen(
      [sys.executable, "-m", "realm_jax.index.snapshot_server", directory, str(file.fileno()), manner],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      pass_fds=[file.fileno()],
      env=os.environ | {"JAX_PLATFORMS": "cpu"},  # the accelerator is the trainer's
    )
    weakref.finalize(self, _end, self._process)
    self._write(json.dumps(manifest).encode() + b"\n")

  def _check_read(self) -> None:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(self._obituary())
    if error := json.loads(line):
      if error["kind"] == "SnapshotError":
        raise SnapshotError(error["message"])
      raise OSError(error["errno"], error["message"])

  def _write(self, content: bytes) -> None:
    assert self._process.stdin is not None
    try:
      self._process.stdin.write(content)
      self._process.stdin.flush()
    except BrokenPipeError as error:
      raise RuntimeError(self._obituary()) from error

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


def _nameless_file() -> BinaryIO:
  """In memory where the system can, else on disk; gone when nobody holds it any more."""
  if hasattr(os, "memfd_create"):
    return os.fdopen(os.memfd_create("realm-snapshot"), "w+b")
  return tempfile.TemporaryFile()  # type: ignore[return-value]


def _end(process: subprocess.Popen) -> None:
  process.kill()
  process.communicate()
