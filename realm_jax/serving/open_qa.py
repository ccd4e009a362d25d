"""Answers questions from a run directory: search the index, read the best passages, mark the answer."""

from __future__ import annotations

import datetime
import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from realm_jax.batch import NULL_PASSAGE, QueryBatch
from realm_jax.config import make_reader, make_retriever, stored_config
from realm_jax.data.passages import PassageStore
from realm_jax.data.queries import QuestionSource
from realm_jax.data.questions import Question
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.index import snapshot as snapshots
from realm_jax.index.digest import tree_digest
from realm_jax.index.params import restore_params
from realm_jax.index.retrieve import BatchAssembler, query_input, search
from realm_jax.index.run_dir import RunDir
from realm_jax.index.searcher import ExactSearcher, Searcher
from realm_jax.index.snapshot import Snapshot
from realm_jax.model.reader import Reader, span_candidates
from realm_jax.model.retriever import Retriever, passage_tower_params
from realm_jax.serving.closed_book import fill_in_answers

BATCH_SIZES = (1, 2, 4, 8)  # questions at once, filled up to one of these: each is a compilation


class Answer(NamedTuple):
  """A passage that was read, with its best span: an answer with its evidence."""

  text: str
  probability: float  # among all spans of all passages read
  passage_id: str
  title: str
  passage: str
  start: int  # characters of the passage that the answer covers
  end: int
  retrieval_score: float
  reader_score: float  # the span's logit; with the retrieval score added, it decides
  null_probability: float | None = None  # of the null passage's span, which says that no passage read holds an answer;
  # None: the run doesn't read the null passage

  def is_withheld(self, no_answer_above: float | None) -> bool:
    """Whether "no answer" is to be said instead: where the null passage is more probable than this; None: never."""
    return no_answer_above is not None and self.null_probability is not None and self.null_probability > no_answer_above

  def record(self, further: Sequence[Answer] = ()) -> dict[str, Any]:
    """Its fields, and as further_answers those of other answers to the same question, where there are any."""
    return self._asdict() | ({"further_answers": [answer._asdict() for answer in further]} if further else {})

  def marked(self, before: str = "[[", after: str = "]]") -> str:
    """The passage with the answer between marks."""
    return f"{self.passage[: self.start]}{before}{self.passage[self.start : self.end]}{after}{self.passage[self.end :]}"


class OpenQA:
  """A retriever, its index and a reader, loaded from one run.

  To ask it:

    from realm_jax.serving.open_qa import OpenQA

    reader = OpenQA.load("runs/finetune")
    answer = reader.answer(["Who discovered radium?"])[0]
    print(answer.text, answer.probability, answer.marked())
  """

  def __init__(
    self,
    config: ConfigDict,
    store: PassageStore,
    vocabulary: Vocabulary,
    params: Any,
    snapshot: Snapshot,
    step: int = 0,
    published: datetime.datetime | None = None,
  ):
    """step: the training step of the parameters; published: when the snapshot was."""
    self.config, self.store, self.snapshot, self.step = config, store, snapshot, step
    self.published = published
    self.vocabulary, self.params = vocabulary, jax.device_put(params)
    self.retriever = make_retriever(config.model, len(vocabulary))
    self.reader = make_reader(config.model, len(vocabulary))
    self.assembler = BatchAssembler(store, vocabulary, joint_length=config.joint_length)

  @classmethod
  def load(
    cls, workdir, checkpoint: str | None = None, *, num_passages: int | None = None, beside_others: bool = False
  ) -> OpenQA:
    """Loads a checkpoint of a run and the newest snapshot that its passage tower made.

    A damaged snapshot is left out, with a line on stderr.

    Args:
      checkpoint: a step; "best", as realm evaluate --every_checkpoint found it; None: the newest.
      num_passages: that are read for each question; None: as many as the config says.
      beside_others: other threads go on meanwhile; see `snapshots.load`.

    Raises:
      FileNotFoundError: no checkpoint, corpus or index.
      SnapshotError: no index was made by this checkpoint's passage tower.
      ValueError: no such name of a checkpoint, or num_passages for a run that has not learnt to answer.
    """
    run_dir = RunDir(workdir)
    config = stored_config(run_dir.read_config())
    if num_passages and config.stage != "finetune":
      raise ValueError(f"num_passages={num_passages} are for a reader to read; give a fine-tuned run, or leave it out")
    config.num_passages = num_passages or config.num_inference_passages or config.num_passages
    store = PassageStore(config.corpus)
    step, params = restore_params(run_dir, _step_of(run_dir, checkpoint))
    snapshot = _snapshot_of(run_dir, step, params, config, store, beside_others=beside_others)
    return cls(config, store, store.vocabulary(), params, snapshot, step, _published(run_dir, snapshot.version))

  @property
  def can_read(self) -> bool:
    """Whether the reader has learnt to mark answers."""
    return self.config.stage == "finetune"

  def warn_of_cut_passages(self) -> None:
    """Says on stderr how many passages are too long for the reader, if there are any, and it can read."""
    if self.can_read and (cut := self.assembler.what_is_cut(self.config.query_length)):
      print(cut, file=sys.stderr)

  def check_no_answer(self, no_answer_above: float | None) -> None:
    """Raises ValueError where "no answer" is asked for, and the run has not learnt to say it."""
    if no_answer_above is not None and not self.config.reads_null_passage:
      raise ValueError(
        "this run has not learnt to say that there is no answer; fine-tune one with --config.reads_null_passage=True, "
        "or leave out --no_answer_above"
      )

  @functools.cached_property
  def exact_searcher(self) -> Searcher:
    """The index' own searcher if that is exact; else one made of its embeddings, which stays in memory."""
    searcher = self.snapshot.searcher
    return searcher if isinstance(searcher, ExactSearcher) else ExactSearcher(self.snapshot.passage_emb_ND)

  def retrieve(self, questions: Sequence[str], k: int, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The k best passages of each question: scores and passage rows, [B, k].

    Args:
      exact: compare with every passage, whatever the index' searcher is.

    Raises:
      ValueError: a question is empty.
    """
    if len(questions) == 0:
      return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
    parts = [self.search(queries, k, exact=exact) for queries in self.query_batches(questions)]
    score_BK, passage_id_BK = (np.concatenate(part)[: len(questions)] for part in zip(*parts))
    return score_BK, passage_id_BK

  def search(self, queries: QueryBatch, k: int, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """`retrieve` for queries of any kind."""
    index = self.snapshot._replace(searcher=self.exact_searcher) if exact else self.snapshot
    return search(self.retriever, self.params["retriever"], queries, index, min(k, len(self.store)))

  def read(
    self,
    questions: Sequence[str],
    score_BK: np.ndarray | None,
    passage_id_BK: np.ndarray,
    num_answers: int | None = None,
  ) -> list[list[Answer]]:
    """The best span of each passage that was retrieved, best first.

    Args:
      score_BK: from `retrieve`. None: the passages are another retriever's, whose scores are on another scale; all are
        taken for 0, and the spans' logits decide alone.
      num_answers: answers to a question; None: K, one from each passage.

    Raises:
      ValueError: the run's reader has not learnt to mark answers.
    """
    if not self.can_read:
      raise ValueError(
        f"this run is of the stage {self.config.stage!r}: its reader has not learnt to answer; give a fine-tuned run"
      )
    answers: list[list[Answer]] = []
    for begin, queries in zip(range(0, len(questions), BATCH_SIZES[-1]), self.query_batches(questions)):
      row = _filled_up(begin, len(questions))
      passage_id = passage_id_BK[row]
      score = np.zeros(passage_id.shape, np.float32) if score_BK is None else score_BK[row]
      if self.config.reads_null_passage:
        passage_id = np.insert(passage_id, 0, NULL_PASSAGE, axis=1)
        score = np.insert(score, 0, 0 if score_BK is None else self.null_score(queries), axis=1)
      joint_BKJ, is_body_BKJ = self.assembler.reader_input(queries, passage_id)
      inputs = jax.device_put((joint_BKJ, is_body_BKJ, score))
      span_BK, reader_score_BK, probability_BK = jax.device_get(
        _best_spans(self.reader, self.params["reader"], *inputs)
      )
      start_S, end_S = span_candidates(joint_BKJ.token_id.shape[-1], self.config.model.max_span_width)
      body_BK = is_body_BKJ.argmax(-1)  # where the passage's first token stands
      first_BK, last_BK = start_S[span_BK] - body_BK, end_S[span_BK] - body_BK
      for b in range(min(BATCH_SIZES[-1], len(questions) - begin)):
        order = np.argsort(-probability_BK[b], kind="stable")
        null_probability = float(probability_BK[b, 0]) if self.config.reads_null_passage else None
        answers.append(
          [
            self._extract(
                int(passage_id[b, k]), int(first_BK[b, k]), int(last_BK[b, k]),
                float(probability_BK[b, k]), float(score[b, k]), float(reader_score_BK[b, k]),
            )._replace(null_probability=null_probability)
            for k in order[passage_id[b, order] != NULL_PASSAGE][:num_answers]
          ]
        )  # fmt: skip
    return answers

  def answers(self, questions: Sequence[str], num_answers: int | None = None) -> list[list[Answer]]:
    """The best answers to each question, from as many of the config's num_passages best passages, best first."""
    return self.read(questions, *self.retrieve(questions, self.config.num_passages), num_answers)

  def answer(self, questions: Sequence[str]) -> list[Answer]:
    """One answer to each question, from the config's num_passages best passages."""
    return [found[0] for found in self.answers(questions, 1)]

  def closed_book_answers(self, questions: Sequence[str]) -> Iterable[str]:
    """An answer to each question without passages: see `fill_in_answers`.

    Raises:
      ValueError: the run has no reader.
    """
    if "reader" not in self.params:
      raise ValueError(f"this run is of the stage {self.config.stage!r} and has no reader; give a pre-trained run")
    return fill_in_answers(
      self.reader, self.params["reader"], self.vocabulary, questions, query_length=self.config.query_length
    )

  def null_score(self, queries: QueryBatch) -> np.ndarray:
    """The null passage's scores, [B]."""
    inputs = jax.device_put((query_input(queries), self.assembler.null_input(len(queries.token_id_BQ))))
    return jax.device_get(_score_null(self.retriever, self.params["retriever"], *inputs))

  def query_batches(self, questions: Sequence[str]) -> Iterator[QueryBatch]:
    """Questions as batches of one of the BATCH_SIZES, the last one filled up with its first question."""
    if isinstance(questions, str):
      raise TypeError("give a list of questions, not one text")
    for i, question in enumerate(questions):
      if not question.strip():
        raise ValueError(f"question {i} is empty; leave it out, or write one")
    source = QuestionSource(
      [Question(q, ()) for q in questions], self.vocabulary, seed=0, query_length=self.config.query_length, max_masks=1
    )
    for begin in range(0, len(questions), BATCH_SIZES[-1]):
      yield source.rows(_filled_up(begin, len(questions)))

  def _extract(
    self, row: int, first: int, last: int, probability: float, retrieval_score: float, reader_score: float
  ) -> Answer:
    """Body tokens first to last -> characters, widened to whole words."""
    body = self.store.body(row)
    encoding = self.vocabulary.encode([body])[0]
    is_continuation = self.vocabulary.is_continuation_V[encoding.token_id]
    while first > 0 and is_continuation[first]:
      first -= 1
    while last + 1 < len(is_continuation) and is_continuation[last + 1]:
      last += 1
    start, end = int(encoding.char_range[first, 0]), int(encoding.char_range[last, 1])
    return Answer(
        body[start:end], probability, self.store.id(row), self.store.title(row), body, start, end,
        retrieval_score, reader_score,
    )  # fmt: skip


def _snapshot_of(
  run_dir: RunDir, step: int, params: Any, config: ConfigDict, store: PassageStore, *, beside_others: bool
) -> Snapshot:
  """The newest whole snapshot that the passage tower of a checkpoint made."""
  versions = run_dir.snapshot_versions()
  if not versions:
    raise FileNotFoundError(
      f"no index in {run_dir.index}; make one with  realm refresh_index --workdir={run_dir.path} --once"
    )
  digest, newest, damage = tree_digest(passage_tower_params(params["retriever"])), None, None
  for version in reversed(versions):
    try:
      manifest = snapshots.read_manifest(run_dir, version)
      newest = manifest["params_step"] if newest is None else newest
      if manifest["params_digest"] == digest:
        size = config.model.retrieval_size
        return snapshots.load(run_dir, version, store, retrieval_size=size, beside_a_loop=beside_others)
    except snapshots.SnapshotError as error:
      damage = damage or error
      print(f"snapshot {version} is left out: {error}", file=sys.stderr)
  if damage:
    raise damage
  raise snapshots.SnapshotError(
    f"the newest snapshot of {run_dir.path} was embedded with the parameters of step {newest}, none with those of "
    f"checkpoint {step}; for the newest checkpoint, run  realm refresh_index --workdir={run_dir.path} --once"
  )


def _published(run_dir: RunDir, version: int) -> datetime.datetime | None:
  """When a snapshot was committed, as its file system says; None: it was deleted after it was loaded."""
  try:
    return datetime.datetime.fromtimestamp(run_dir.snapshot_commit(version).stat().mtime, datetime.UTC)
  except FileNotFoundError:
    return None


def _step_of(run_dir: RunDir, checkpoint: str | None) -> int | None:
  if checkpoint is None:
    return None
  if checkpoint == "best":
    return run_dir.best_step()
  if not checkpoint.isdecimal():
    raise ValueError(f"no checkpoint {checkpoint!r}; give a step, as 20000, or best")
  return int(checkpoint)


def _filled_up(begin: int, num_questions: int) -> np.ndarray:
  """The rows of one batch, its first one again behind the last."""
  num_rows = min(BATCH_SIZES[-1], num_questions - begin)
  row = np.arange(begin, begin + next(n for n in BATCH_SIZES if n >= num_rows))
  return np.where(row < num_questions, row, begin)


@functools.partial(jax.jit, static_argnums=0)
def _score_null(retriever: Retriever, params, query_BQ, null_BP):
  embed = functools.partial(retriever.apply, {"params": params})
  return jnp.einsum("bd,bd->b", embed(query_BQ, method="embed_queries"), embed(null_BP, method="embed_passages"))


@functools.partial(jax.jit, static_argnums=0)
def _best_spans(reader: Reader, params, joint_BKJ, is_body_BKJ, score_BK):
  """The best span of each passage, as an index into S, its logit, and its probability among all spans of K passages."""
  span_logit_BKS: Any = reader.apply({"params": params}, joint_BKJ, is_body_BKJ, method="span_logit")
  logit_BKS = span_logit_BKS + score_BK[..., None]
  normalizer_B = jax.nn.logsumexp(logit_BKS, axis=(1, 2))
  return span_logit_BKS.argmax(-1), span_logit_BKS.max(-1), jnp.exp(logit_BKS.max(-1) - normalizer_B[:, None])
