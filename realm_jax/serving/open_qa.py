"""Answers questions from a run directory: search the index, read the best passages, mark the answer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from realm_jax.batch import QueryBatch
from realm_jax.config import make_reader, make_retriever, stored_config
from realm_jax.data.passages import PassageStore
from realm_jax.data.queries import QuestionSource
from realm_jax.data.questions import Question
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.index import snapshot as snapshots
from realm_jax.index.digest import tree_digest
from realm_jax.index.params import restore_params
from realm_jax.index.retrieve import BatchAssembler, search
from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import Snapshot
from realm_jax.model.reader import Reader, span_candidates
from realm_jax.model.retriever import passage_tower_params

_BATCH = 8  # questions at once: one shape, one compilation


class Answer(NamedTuple):
  """An answer with its evidence."""

  text: str
  probability: float  # among all spans of all passages read
  passage_id: str
  title: str
  passage: str
  start: int  # characters of the passage that the answer covers
  end: int
  retrieval_score: float

  def marked(self, before: str = "[[", after: str = "]]") -> str:
    """The passage with the answer between marks."""
    return f"{self.passage[: self.start]}{before}{self.passage[self.start : self.end]}{after}{self.passage[self.end :]}"


class OpenQA:
  """A retriever, its index and a reader, loaded from one run."""

  def __init__(self, config: ConfigDict, store: PassageStore, vocabulary: Vocabulary, params: Any, snapshot: Snapshot):
    self.config, self.store, self.snapshot = config, store, snapshot
    self._vocabulary, self._params = vocabulary, jax.device_put(params)
    self._retriever = make_retriever(config.model, len(vocabulary))
    self._reader = make_reader(config.model, len(vocabulary))
    self._assembler = BatchAssembler(store, vocabulary, joint_length=config.joint_length)

  @classmethod
  def load(cls, workdir) -> OpenQA:
    """Loads the newest checkpoint and the newest snapshot of a run.

    Raises:
      FileNotFoundError: no checkpoint, corpus or index.
      SnapshotError: the index was not made by this run's passage tower.
    """
    run_dir = RunDir(workdir)
    config = stored_config(run_dir.read_config())
    store = PassageStore(config.corpus)
    step, params = restore_params(run_dir)
    versions = run_dir.snapshot_versions()
    if not versions:
      raise FileNotFoundError(
        f"no index in {run_dir.index}; make one with  realm refresh_index --workdir={workdir} --once"
      )
    snapshot = snapshots.load(run_dir, versions[-1], store, retrieval_size=config.model.retrieval_size)
    if snapshot.manifest["params_digest"] != tree_digest(passage_tower_params(params["retriever"])):
      raise snapshots.SnapshotError(
        f"the newest snapshot of {workdir} was embedded with the parameters of step {snapshot.params_step}, the newest "
        f"checkpoint is of step {step}; run  realm refresh_index --workdir={workdir} --once"
      )
    return cls(config, store, store.vocabulary(), params, snapshot)

  @property
  def can_read(self) -> bool:
    """Whether the reader has learnt to mark answers."""
    return self.config.stage == "finetune"

  def retrieve(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best passages of each question: scores and passage rows, [B, k]."""
    k = min(k, len(self.store))
    parts = [self._retrieve(queries, k) for queries in self._query_batches(questions)]
    score_BK, passage_id_BK = (np.concatenate(part)[: len(questions)] for part in zip(*parts))
    return score_BK, passage_id_BK

  def answer(self, questions: Sequence[str]) -> list[Answer]:
    """One answer to each question, from the config's num_passages best passages."""
    if not self.can_read:
      raise ValueError(
        f"this run is of the stage {self.config.stage!r}: its reader has not learnt to answer; give a fine-tuned run"
      )
    answers = []
    for queries in self._query_batches(questions):
      score_BK, passage_id_BK = self._retrieve(queries, min(self.config.num_passages, len(self.store)))
      joint_BKJ = self._assembler.joint_input(queries, passage_id_BK)
      is_body_BKJ = (joint_BKJ.segment_id == 1) & (joint_BKJ.token_id != self._vocabulary.sep_id)
      inputs = jax.device_put((joint_BKJ, is_body_BKJ, score_BK))
      best_B, probability_B = jax.device_get(_best_span(self._reader, self._params["reader"], *inputs))
      start_S, end_S = span_candidates(joint_BKJ.token_id.shape[-1], self.config.model.max_span_width)
      for b, (best, probability) in enumerate(zip(best_B, probability_B)):
        k, s = divmod(int(best), len(start_S))
        first_body_token = int(np.argmax(is_body_BKJ[b, k]))
        answers.append(
            self._extract(
                int(passage_id_BK[b, k]), start_S[s] - first_body_token, end_S[s] - first_body_token,
                float(probability), float(score_BK[b, k]),
            )
        )  # fmt: skip
    return answers[: len(questions)]

  def _query_batches(self, questions: Sequence[str]):
    """Questions as batches of one size, the last one filled up with its first question."""
    if isinstance(questions, str):
      raise TypeError("give a list of questions, not one text")
    source = QuestionSource(
      [Question(q, ()) for q in questions], self._vocabulary, seed=0, query_length=self.config.query_length, max_masks=1
    )
    for begin in range(0, len(questions), _BATCH):
      row = np.arange(begin, begin + _BATCH)
      yield source.rows(np.where(row < len(questions), row, begin))

  def _retrieve(self, queries: QueryBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
    return search(self._retriever, self._params["retriever"], queries, self.snapshot, k)

  def _extract(self, row: int, first: int, last: int, probability: float, retrieval_score: float) -> Answer:
    """Body tokens first to last -> characters, widened to whole words."""
    body = self.store.body(row)
    encoding = self._vocabulary.encode([body])[0]
    is_continuation = self._vocabulary.is_continuation_V[encoding.token_id]
    while first > 0 and is_continuation[first]:
      first -= 1
    while last + 1 < len(is_continuation) and is_continuation[last + 1]:
      last += 1
    start, end = int(encoding.char_range[first, 0]), int(encoding.char_range[last, 1])
    return Answer(
      body[start:end], probability, self.store.id(row), self.store.title(row), body, start, end, retrieval_score
    )


@functools.partial(jax.jit, static_argnums=0)
def _best_span(reader: Reader, params, joint_BKJ, is_body_BKJ, score_BK):
  """The best span of all passages, as an index into K x S, and its probability among them."""
  span_logit_BKS = reader.apply({"params": params}, joint_BKJ, is_body_BKJ, method="span_logit")
  logit_BX = (span_logit_BKS + score_BK[..., None]).reshape(len(score_BK), -1)
  return logit_BX.argmax(1), jax.nn.softmax(logit_BX).max(1)
