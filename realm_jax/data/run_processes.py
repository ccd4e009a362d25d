"""Builds shards in several processes of this machine, and gives their names back in order."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterable, Iterator
from multiprocessing import connection
from typing import NamedTuple

from realm_jax.data.shards import Settings, Shard, build_shard

_BYE_SECONDS = 5.0


class _Worker(NamedTuple):
  process: multiprocessing.process.BaseProcess
  pipe: connection.Connection


def run_processes(shards: Iterable[Shard], settings: Settings, directory: str, num_workers: int) -> Generator[str]:
  """Yields the names of the shards' files, in the shards' order; closing the iterator ends the processes.

  A single shard, or num_workers 1, is done in this process.

  Raises:
    RuntimeError: a process ended by itself.
    Exception: whatever `build_shard` raised.
  """
  shards = iter(shards)
  first = list(itertools.islice(shards, 2))
  if num_workers == 1 or len(first) < 2:
    for shard in itertools.chain(first, shards):
      yield build_shard(shard, settings, directory)
    return
  # Spawned, not forked: the tokeniser has threads. A worker holds no end of another's pipe, so that it sees its parent
  # die, even by SIGKILL.
  context = multiprocessing.get_context("spawn")
  workers = []
  try:
    for _ in range(num_workers):
      ours, theirs = context.Pipe()
      process = context.Process(target=_work, args=(theirs, settings, directory), daemon=True)
      process.start()
      theirs.close()
      workers.append(_Worker(process, ours))
    yield from _in_order(_dispatch(itertools.chain(first, shards), workers))
  finally:
    for worker in workers:
      worker.pipe.close()
      worker.process.terminate()
    for worker in workers:
      worker.process.join(_BYE_SECONDS)
      if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()


def _dispatch(shards: Iterable[Shard], workers: list[_Worker]) -> Iterator[tuple[int, str]]:
  """Yields (place in the order, name) as they come."""
  idle = list(workers)
  busy: dict[connection.Connection, tuple[_Worker, int]] = {}
  numbered = enumerate(shards)
  upcoming = next(numbered, None)
  while upcoming is not None or busy:
    while upcoming is not None and idle:
      worker = idle.pop()
      worker.pipe.send(upcoming[1])
      busy[worker.pipe] = worker, upcoming[0]
      upcoming = next(numbered, None)  # is read while the workers work
    ready = connection.wait(list(busy))
    for pipe in [p for p in busy if p in ready]:
      worker, place = busy.pop(pipe)
      try:
        result = pipe.recv()
      except EOFError:
        worker.process.join()
        raise RuntimeError(
          f"a worker process ended with status {worker.process.exitcode} (-9: out of memory?); run the same command "
          "again to go on, with fewer --workers if it was memory"
        ) from None
      if isinstance(result, Exception):
        raise result
      idle.append(worker)
      yield place, result


def _in_order(results: Iterable[tuple[int, str]]) -> Iterator[str]:
  waiting: dict[int, str] = {}
  following = 0
  for place, name in results:
    waiting[place] = name
    while following in waiting:
      yield waiting.pop(following)
      following += 1


def _work(pipe: connection.Connection, settings: Settings, directory: str) -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
  while True:
    try:
      shard = pipe.recv()
    except (EOFError, OSError):
      return
    result: str | Exception
    try:
      result = build_shard(shard, settings, directory)
    except Exception as error:  # it is raised in the parent
      result = error
    try:
      pipe.send(result)
    except (BrokenPipeError, OSError):
      return
