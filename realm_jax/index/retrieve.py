"""From queries to reader input: search, choose the K passages, pack what the step reads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from realm_jax.batch import NULL_PASSAGE, IctBatch, MaskedBatch, Packed, QueryBatch, QuestionBatch, ReadingBatch
from realm_jax.data.answer_finder import AnswerFinder
from realm_jax.data.answers import all_matches
from realm_jax.data.packing import Tokens, pack
from realm_jax.data.passages import PassageStore
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.index.snapshot import Snapshot
from realm_jax.model.retriever import Retriever


def choose_passages(retrieved_id_BR: np.ndarray, own_id_B: np.ndarray, num_passages: int) -> np.ndarray:
  """[B, R] by rank, R at least K -> [B, K]: the null passage, then the best but the query's own."""
  is_own_BR = retrieved_id_BR == own_id_B[:, None]
  order_BR = np.argsort(is_own_BR, axis=1, kind="stable")
  others_BR = np.take_along_axis(retrieved_id_BR, order_BR, 1)
  return np.insert(others_BR[:, : num_passages - 1], 0, NULL_PASSAGE, axis=1)


def with_annotated(retrieved_id_R: np.ndarray, annotated: Sequence[int], num_passages: int) -> np.ndarray:
  """The beam as it is if one of the annotated is among its first num_passages; else the best of them is the last of
  these, and the beam's last passage is dropped for one that is not in the beam."""
  if np.isin(retrieved_id_R[:num_passages], annotated).any():
    return retrieved_id_R
  ranked = retrieved_id_R[np.isin(retrieved_id_R, annotated)]
  best = ranked[0] if len(ranked) else annotated[0]
  others = retrieved_id_R[retrieved_id_R != best]
  return np.insert(others, num_passages - 1, best)[: len(retrieved_id_R)]


def query_input(queries: QueryBatch) -> Packed:
  """The packed queries, as the query tower reads them."""
  is_token_BQ = np.arange(queries.token_id_BQ.shape[1]) < queries.num_tokens_B[:, None]
  return Packed(queries.token_id_BQ, np.zeros_like(queries.token_id_BQ), is_token_BQ)


def search(
  retriever: Retriever,
  params: Any,
  queries: QueryBatch,
  index: Snapshot,
  k: int,
  *,
  put: Callable[[Any], Any] = jax.device_put,
  fetch: Callable[[jax.Array], np.ndarray] = jax.device_get,
) -> tuple[np.ndarray, np.ndarray]:
  """The k best passages of queries that are embedded with the retriever's parameters: scores and rows, [B, k].

  Args:
    put, fetch: bring the queries to the devices that hold the parameters, and the embeddings back.
  """
  return index.searcher.search(fetch(_embed_queries(retriever, params, put(query_input(queries)))), k)


@functools.partial(jax.jit, static_argnums=0)
def _embed_queries(retriever: Retriever, params, query):
  return retriever.apply({"params": params}, query, method="embed_queries")


class BatchAssembler:
  """Makes the three stages' batches from queries, with the passages of one corpus."""

  def __init__(self, store: PassageStore, vocabulary: Vocabulary, *, joint_length: int):
    self._store, self._vocabulary, self._joint_length = store, vocabulary, joint_length
    self._finder = AnswerFinder(store, vocabulary)

  def what_is_cut(self, query_length: int) -> str:
    """Says how many passages have an end that the reader doesn't see beside a query of that length; "" if none has."""
    room = self._joint_length - query_length - 1  # with [CLS] and [SEP] of the query, but without the last [SEP]
    num_cut = int((self._store.body_length_N > room).sum())
    if num_cut == 0:
      return ""
    return (
      f"{num_cut:,} of {len(self._store):,} passages of {self._store.path} have more than the {room} wordpieces that "
      f"the reader sees of them beside the longest query (joint_length={self._joint_length}, query_length="
      f"{query_length}): answers behind these can't be read; build the corpus with --passage_length={room + 3}, or "
      "train with a larger joint_length"
    )

  def ict_batch(self, queries: QueryBatch) -> IctBatch:
    """Each query's own passage, without its sentence where that is to be removed (section 1.10), then its negatives."""
    title = self._store.title_tokens(queries.passage_id_B)
    own_BP = pack(title, self._shown_body(queries), self._store.passage_length, self._vocabulary)
    negative_BKP = self._passage_input(queries.negative_id_BK[:, 1:])
    passage_BKP = Packed(*(np.concatenate([x[:, None], y], 1) for x, y in zip(own_BP, negative_BKP)))
    return IctBatch(query_input(queries), passage_BKP, queries.sentence_is_removed_B)

  def reading_batch(self, queries: QueryBatch) -> ReadingBatch:
    """Each masked sentence with the passage that the query names, without the sentence if that is its own."""
    body = self._shown_body(queries)
    joint_BJ = pack(_query_tokens(queries), body, self._joint_length, self._vocabulary)
    return ReadingBatch(joint_BJ, queries.mask_position_BM, queries.mask_target_BM, queries.mask_weight_BM)

  def _shown_body(self, queries: QueryBatch) -> Tokens:
    """The queries' passages, without the query's sentence where it is to be removed."""
    body = self._store.body_tokens(queries.passage_id_B)
    removed_B = np.where(queries.sentence_is_removed_B, queries.sentence_B2[:, 1] - queries.sentence_B2[:, 0], 0)
    index_BL = np.broadcast_to(np.arange(body.token_id_RL.shape[1]), body.token_id_RL.shape)
    first_B = body.start_R + queries.sentence_B2[:, 0]
    index_BL = index_BL + np.where(index_BL >= first_B[:, None], removed_B[:, None], 0)
    token_id = np.take_along_axis(body.token_id_RL, np.minimum(index_BL, index_BL.shape[1] - 1), 1)
    return Tokens(token_id, body.start_R, body.num_tokens_R - removed_B)

  def masked_batch(self, queries: QueryBatch, retrieved_id_BR: np.ndarray, num_passages: int) -> MaskedBatch:
    """K = num_passages per query, the null passage among them."""
    passage_id_BK = choose_passages(retrieved_id_BR, queries.passage_id_B, num_passages)
    return MaskedBatch(
      query_input(queries),
      self._passage_input(passage_id_BK),
      self.joint_input(queries, passage_id_BK),
      queries.mask_position_BM,
      queries.mask_target_BM,
      queries.mask_weight_BM,
    )

  def question_batch(
    self,
    queries: QueryBatch,
    answers_B: Sequence[Sequence[str]],
    retrieved_id_BR: np.ndarray,
    snapshot: Snapshot,
    num_passages: int,
    max_answers: int = 16,
    regex: bool = False,
    trains_passage_tower: bool = False,
    reads_null_passage: bool = False,
    annotated_B: Sequence[Sequence[int]] | None = None,
  ) -> QuestionBatch:
    """The beam with the index' embeddings, and the first K passages to read, with the answers marked.

    Args:
      max_answers: occurrences marked in a passage, at most.
      regex: answers are regular expressions; marked is what they find in a passage.
      trains_passage_tower: the passages to read come as the passage tower reads them, too.
      reads_null_passage: it comes before them. Its span is marked where they have no answer marked.
      annotated_B: passages that are said to hold each query's answer. Where some of them do, one is read and they alone
        are the right ones of the beam. Without them every passage with an answer is.
    """
    find = self._finder.have_match if regex else self._finder.have_answer
    retrieved_id_BR = np.array(retrieved_id_BR)
    beam_has_answer_BR = np.zeros(retrieved_id_BR.shape, bool)
    for b, annotated in enumerate(annotated_B or [()] * len(answers_B)):
      asked = np.concatenate([retrieved_id_BR[b], np.array(annotated, np.int64)])
      beam_has_answer_BR[b], has_answer_A = np.split(find(asked, answers_B[b]), [retrieved_id_BR.shape[1]])
      if has_answer_A.any():
        annotated = [i for i, has in zip(annotated, has_answer_A) if has]
        retrieved_id_BR[b] = with_annotated(retrieved_id_BR[b], annotated, num_passages)
        beam_has_answer_BR[b] = np.isin(retrieved_id_BR[b], annotated)
    passage_id_BK = retrieved_id_BR[:, :num_passages]
    read_id_BK = passage_id_BK
    if reads_null_passage:
      read_id_BK = np.insert(passage_id_BK, 0, NULL_PASSAGE, axis=1)
    joint_BKJ, is_body_BKJ = self.reader_input(queries, read_id_BK)
    gold = np.full((2, *read_id_BK.shape, max_answers), -1, np.int32)
    for b, answers in enumerate(answers_B):
      answer_ids = self._answer_ids(answers)
      for k, i in enumerate(passage_id_BK[b].tolist(), int(reads_null_passage)):
        if regex:
          answer_ids = self._answer_ids(all_matches(self._store.body(i), answers))
        spans = find_answers(joint_BKJ.token_id[b, k], is_body_BKJ[b, k], answer_ids)[:max_answers]
        gold[0, b, k, : len(spans)] = [start for start, _ in spans]
        gold[1, b, k, : len(spans)] = [end for _, end in spans]
      if reads_null_passage and (gold[0, b] == -1).all():
        gold[:, b, 0, 0] = is_body_BKJ[b, 0].argmax()
    return QuestionBatch(
      query_input(queries),
      snapshot.passage_emb_ND[retrieved_id_BR].astype(np.float32),
      beam_has_answer_BR,
      joint_BKJ,
      is_body_BKJ,
      gold_start_BKA=gold[0],
      gold_end_BKA=gold[1],
      passage_BKP=self._passage_input(passage_id_BK) if trains_passage_tower else None,
      null_BP=self.null_input(len(passage_id_BK)) if reads_null_passage else None,
    )

  def _answer_ids(self, answers: Sequence[str]) -> list[np.ndarray]:
    """An answer of unknown words alone would be "found" at every unknown word, so it is left out."""
    encodings = self._vocabulary.encode(list(answers))
    return [e.token_id for e in encodings if (e.token_id != self._vocabulary.unk_id).any()]

  def null_input(self, num_queries: int) -> Packed:
    """[CLS] [SEP] [SEP], as the passage tower reads the null passage, once for each query."""
    nothing = self._store.title_tokens(np.full(num_queries, NULL_PASSAGE))
    return pack(nothing, nothing, 3, self._vocabulary)

  def reader_input(self, queries: QueryBatch, passage_id_BK: np.ndarray) -> tuple[Packed, np.ndarray]:
    """`joint_input`, and where answers may stand, bool [B, K, J]: passage tokens, of the null passage its [SEP]."""
    joint_BKJ = self.joint_input(queries, passage_id_BK)
    is_null_BK1 = (passage_id_BK == NULL_PASSAGE)[..., None]
    return joint_BKJ, (joint_BKJ.segment_id == 1) & (is_null_BK1 | (joint_BKJ.token_id != self._vocabulary.sep_id))

  def _passage_input(self, passage_id_BK: np.ndarray) -> Packed:
    """[CLS] title [SEP] body [SEP], [B, K, P], as the index embeds it."""
    flat = passage_id_BK.reshape(-1)
    title, body = self._store.title_tokens(flat), self._store.body_tokens(flat)
    return _unflatten(pack(title, body, self._store.passage_length, self._vocabulary), passage_id_BK.shape)

  def joint_input(self, queries: QueryBatch, passage_id_BK: np.ndarray) -> Packed:
    """[CLS] query [SEP] body [SEP], [B, K, J]: the reader isn't shown the title."""
    query = Tokens(*(np.repeat(x, passage_id_BK.shape[1], 0) for x in _query_tokens(queries)))
    joint = pack(query, self._store.body_tokens(passage_id_BK.reshape(-1)), self._joint_length, self._vocabulary)
    return _unflatten(joint, passage_id_BK.shape)


def _query_tokens(queries: QueryBatch) -> Tokens:
  """The queries without [CLS] and [SEP]."""
  return Tokens(queries.token_id_BQ, np.ones_like(queries.num_tokens_B), queries.num_tokens_B - 2)


def find_answers(
  token_id_J: np.ndarray, is_body_J: np.ndarray, answer_ids: Sequence[np.ndarray]
) -> list[tuple[int, int]]:
  """First and last positions of all answers in the passage part, overlapping ones too, in order."""
  spans: set[tuple[int, int]] = set()
  for answer in answer_ids:
    width = len(answer)
    if width <= len(token_id_J):
      windows = np.lib.stride_tricks.sliding_window_view(token_id_J, width)
      found = (windows == answer).all(1) & is_body_J[: len(windows)] & is_body_J[width - 1 :]
      spans.update((int(start), int(start) + width - 1) for start in np.nonzero(found)[0])
  return sorted(spans)


def _unflatten(packed: Packed, shape: tuple[int, ...]) -> Packed:
  return Packed(*(x.reshape(*shape, x.shape[-1]) for x in packed))
