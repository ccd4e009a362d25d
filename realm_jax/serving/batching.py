"""Answers requests that wait together as one batch, in the one thread that works the device."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple


class Overloaded(RuntimeError):
  """As many requests wait as may."""


class _Waiting(NamedTuple):
  kind: Hashable
  question: str
  result: asyncio.Future[Any]


class Batcher:
  """A bounded queue before a function of many questions.

  Use as an async context manager: leaving it ends the thread.
  """

  def __init__(
    self, work: Callable[[Any, list[str]], Sequence[Any]], *, batch_size: int, max_waiting: int, timeout: float
  ):
    """work: answers questions of one kind, called with the kind and at most batch_size questions."""
    self._work, self._batch_size, self._max_waiting, self._timeout = work, batch_size, max_waiting, timeout
    self._waiting: deque[_Waiting] = deque()
    self._arrived = asyncio.Event()
    self._thread = ThreadPoolExecutor(1, "device")

  async def __aenter__(self) -> Batcher:
    self._loop = asyncio.create_task(self._run())
    return self

  async def __aexit__(self, *exc) -> None:
    self._loop.cancel()
    self._thread.shutdown(cancel_futures=True)

  async def submit(self, kind: Hashable, question: str) -> Any:
    """The work's result for one question; questions of one kind share batches.

    Raises:
      Overloaded: the queue is full.
      TimeoutError: no result within the time limit; a request that has not begun never will.
    """
    if len(self._waiting) >= self._max_waiting:
      raise Overloaded(f"{self._max_waiting} requests wait already")
    waiting = _Waiting(kind, question, asyncio.get_running_loop().create_future())
    self._waiting.append(waiting)
    self._arrived.set()
    try:
      async with asyncio.timeout(self._timeout):
        return await waiting.result
    finally:
      if waiting in self._waiting:
        self._waiting.remove(waiting)

  async def _run(self) -> None:
    while True:
      await self._arrived.wait()
      batch = self._next_batch()
      if not batch:
        self._arrived.clear()
        continue
      questions = [w.question for w in batch]
      try:
        results = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, batch[0].kind, questions)
      except Exception as error:
        for w in batch:
          if not w.result.done():
            w.result.set_exception(error)
        continue
      for w, result in zip(batch, results):
        if not w.result.done():  # cancelled when its time was over
          w.result.set_result(result)

  def _next_batch(self) -> list[_Waiting]:
    """The longest waiting request, and the next of its kind."""
    batch: list[_Waiting] = []
    others: list[_Waiting] = []
    while self._waiting and len(batch) < self._batch_size:
      first = self._waiting.popleft()
      (batch if not batch or first.kind == batch[0].kind else others).append(first)
    self._waiting.extendleft(reversed(others))
    return batch
