"""Answers the server's requests in batches, from a run that newer ones replace while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from realm_jax.serving.batching import Batcher
from realm_jax.serving.messages import MAX_FOUND, Latency, Passage, ReadPassage
from realm_jax.serving.open_qa import BATCH_SIZES, OpenQA


class Kind(NamedTuple):
  """What is done with a question; those of one kind share batches."""

  reads: bool
  exact: bool


class Result(NamedTuple):
  """What became of a question: passages best first, of the run and index that were in use."""

  passages: list[Any]
  latency: Latency
  step: int
  index_version: int
  null_probability: float | None


class Answering:
  """What answers now. It is replaced between two batches: each takes it once."""

  def __init__(
    self,
    open_qa: OpenQA,
    *,
    kinds: set[Kind],
    max_waiting: int,
    timeout: float,
    look: Callable[[OpenQA], OpenQA | None],
    look_every: float,
  ):
    """Compiles all that it will run.

    Args:
      kinds: those that will be asked for.
      max_waiting, timeout: see `Batcher`.
      look: what is newer than what is in use, loaded, or None; called in a thread. At most two are in memory.
      look_every: seconds between two looks; 0: none.
    """
    self.open_qa = open_qa
    self._kinds, self._look, self._look_every = kinds, look, look_every
    self._batcher = Batcher(
      lambda kind, questions: answer_batch(self.open_qa, kind, questions),
      batch_size=BATCH_SIZES[-1],
      max_waiting=max_waiting,
      timeout=timeout,
    )
    self._compile(open_qa)

  async def answer(self, kind: Kind, question: str) -> Result:
    """One question's result; raises what `Batcher.submit` does."""
    return await self._batcher.submit(kind, question)

  @contextlib.asynccontextmanager
  async def running(self) -> AsyncIterator[None]:
    """While it answers, and looks for what is newer."""
    async with self._batcher:
      following = asyncio.create_task(self._follow())
      yield
      following.cancel()

  async def _follow(self) -> None:
    while self._look_every > 0:
      await asyncio.sleep(self._look_every)
      try:
        await asyncio.to_thread(self._replace_by_newer)
      except Exception:  # noqa: BLE001 what is in use goes on answering
        traceback.print_exc()

  def _replace_by_newer(self) -> None:
    if newer := self._look(self.open_qa):
      self._compile(newer)  # most is compiled: what has the same shapes
      self.open_qa = newer

  def _compile(self, open_qa: OpenQA) -> None:
    for kind in self._kinds:
      for size in BATCH_SIZES:
        answer_batch(open_qa, kind, ["?"] * size)


def answer_batch(open_qa: OpenQA, kind: Kind, questions: list[str]) -> list[Result]:
  """One batch of questions of one kind, searched and perhaps read."""
  begin = time.perf_counter()
  k = open_qa.config.num_passages if kind.reads else MAX_FOUND
  score_BK, passage_id_BK = open_qa.retrieve(questions, k, exact=kind.exact)
  searched = time.perf_counter()
  passages: list[list[Any]]
  null_probabilities: list[float | None] = [None] * len(questions)
  if kind.reads:
    read = open_qa.read(questions, score_BK, passage_id_BK)
    null_probabilities = [answers[0].null_probability for answers in read]
    passages = [
      [
        ReadPassage(
            id=a.passage_id, title=a.title, text=a.passage, start=a.start, end=a.end, probability=a.probability,
            retrieval_score=a.retrieval_score, reader_score=a.reader_score,
        )
        for a in answers
        if math.isfinite(a.retrieval_score)
      ]
      for answers in read
    ]  # fmt: skip
  else:
    store = open_qa.store
    passages = [
      [
        Passage(id=store.id(i), title=store.title(i), text=store.body(i), retrieval_score=score)
        for score, i in zip(score_K, passage_id_K)
        if math.isfinite(score)  # ScaNN fills up with -inf where it found fewer
      ]
      for score_K, passage_id_K in zip(score_BK.tolist(), passage_id_BK.tolist())
    ]
  latency = Latency(search_ms=1000 * (searched - begin), reading_ms=1000 * (time.perf_counter() - searched))
  return [
    Result(found, latency, open_qa.step, open_qa.snapshot.version, probability)
    for found, probability in zip(passages, null_probabilities)
  ]
