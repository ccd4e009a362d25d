"""Draws queries of the three kinds: sentences (ICT), masked sentences (pre-training) and questions (fine-tuning)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from realm_jax.batch import NO_PASSAGE, NULL_PASSAGE, QueryBatch
from realm_jax.data.draws import shuffled, uniform
from realm_jax.data.masking import RANDOM_MASKS, mask_tokens, span_mask
from realm_jax.data.packing import Tokens, pack
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import Question
from realm_jax.data.vocabulary import Vocabulary


class QuerySource(Protocol):
  """Endless examples by number: the same number gives the same query, whatever was drawn before."""

  def draw(self, number_B: np.ndarray) -> QueryBatch:
    """Examples number_B, int [B] -> their queries."""
    ...


class SentenceSource:
  """Inverse cloze task: a random sentence of a passage, whose positive the passage is (Guu et al. 2020, 3.4)."""

  def __init__(self, store: PassageStore, *, seed: int, query_length: int, max_masks: int, removal_rate: float = 0.9):
    """removal_rate is the share of queries whose sentence is removed from the passage (0.9 in ORQA)."""
    self._store, self._vocabulary = store, store.vocabulary()
    self._seed, self._query_length, self._max_masks, self._removal_rate = seed, query_length, max_masks, removal_rate
    num_sentences_N = np.diff(store.sentence_offset.astype(np.int64))
    self._passage_id = np.nonzero(num_sentences_N > 1)[0]
    if len(self._passage_id) == 0:
      raise ValueError(f"no passage of {store.path} has two sentences; ICT needs passages of several sentences")

  def draw(self, number_B: np.ndarray) -> QueryBatch:
    passage_id_B = self._passage_id[shuffled(self._seed, number_B, len(self._passage_id))]
    batch, _ = draw_sentences(
      self._store, passage_id_B, self._seed, number_B, self._query_length, self._max_masks, self._vocabulary
    )
    return batch._replace(sentence_is_removed_B=uniform(self._seed, 2, number_B) < self._removal_rate)


class MaskedSentenceSource:
  """A sentence with one salient span masked (section 3.4 of Guu et al. 2020; rules in `maskable_spans`)."""

  def __init__(self, store: PassageStore, *, seed: int, query_length: int, max_masks: int, recurring_rate: float = 0.0):
    """recurring_rate is the share of queries that mask only a span whose tokens occur in the rest of the passage.

    Such a one can be read there, and not only guessed (recurring spans, Ram et al. 2021). Not every passage has any.
    """
    self._store, self._vocabulary = store, store.vocabulary()
    self._seed, self._query_length, self._max_masks = seed, query_length, max_masks
    self._recurring_rate = recurring_rate
    self._span, span_offset = maskable_spans(store, query_length)
    num_spans_N = np.diff(span_offset)
    self._passage_id = np.nonzero(num_spans_N)[0]
    self._begin, self._num_spans = span_offset[:-1][self._passage_id], num_spans_N[self._passage_id]
    if len(self._passage_id) == 0:
      raise ValueError(
        f"{store.path} has no salient span within the first {query_length - 2} tokens of a sentence; "
        "build the corpus with --tagger=rules or spacy"
      )

  def draw(self, number_B: np.ndarray) -> QueryBatch:
    row_B = shuffled(self._seed, number_B, len(self._passage_id))
    passage_id_B = self._passage_id[row_B]
    begin_B, num_spans_B = self._begin[row_B], self._num_spans[row_B]
    span_B = begin_B + (uniform(self._seed, 1, number_B) * num_spans_B).astype(np.int64)
    if self._recurring_rate:
      span_C = np.concatenate([np.arange(b, b + n) for b, n in zip(begin_B, num_spans_B)])
      query_C = np.repeat(np.arange(len(row_B)), num_spans_B)
      recurs_C = recurs(self._store, passage_id_B[query_C], self._span[span_C])
      is_asked_B = uniform(self._seed, 3, number_B) < self._recurring_rate
      # The first of a random order that recurs.
      order_C = np.lexsort((uniform(self._seed, 4, span_C + number_B[query_C] * 65_537), query_C))
      order_C = order_C[recurs_C[order_C] & is_asked_B[query_C[order_C]]]
      query, first = np.unique(query_C[order_C], return_index=True)
      span_B[query] = span_C[order_C[first]]
    first_B, end_B, sentence_B = self._span[span_B].T
    sentence_B2 = _sentence_range(self._store, passage_id_B, sentence_B)
    batch = _make_batch(
      _body_range(self._store, passage_id_B, sentence_B2),
      self._query_length,
      self._max_masks,
      self._vocabulary,
      passage_id_B=passage_id_B,
      sentence_B2=sentence_B2,
    )
    # + 1 for [CLS].
    is_masked_BQ = span_mask(batch, first_B - sentence_B2[:, 0] + 1, end_B - sentence_B2[:, 0] + 1)
    return mask_tokens(batch, is_masked_BQ, self._vocabulary.mask_id)


class RandomMaskSource:
  """Any sentence, with a random span or random tokens masked: what the paper's ablation (its Table 2) compares with."""

  def __init__(self, store: PassageStore, masking: str, *, seed: int, query_length: int, max_masks: int):
    """masking: one of RANDOM_MASKS."""
    self._store, self._vocabulary, self._mask = store, store.vocabulary(), RANDOM_MASKS[masking]
    self._seed, self._query_length, self._max_masks = seed, query_length, max_masks

  def draw(self, number_B: np.ndarray) -> QueryBatch:
    passage_id_B = shuffled(self._seed, number_B, len(self._store))
    batch, sentence = draw_sentences(
      self._store, passage_id_B, self._seed, number_B, self._query_length, self._max_masks, self._vocabulary
    )
    is_continuation_V = self._vocabulary.is_continuation_V
    is_cut_B = _is_cut_in_a_word(sentence, self._query_length - 2, is_continuation_V)
    is_masked_BQ = self._mask(batch, is_cut_B, is_continuation_V, seed=self._seed, number_B=number_B)
    return mask_tokens(batch, is_masked_BQ, self._vocabulary.mask_id)


class ReadSource:
  """Sentences with what they are read with in the stage mlm: the rest of their passage, another passage, or none.

  Half of the other passages stand within four rows of their own, where most corpora have the same article: they look
  right and mostly don't help, as many of those that a retriever will find.
  """

  def __init__(self, source: QuerySource, num_passages: int, *, seed: int, null_rate: float, distractor_rate: float):
    """The rates are the shares of the null passage and of other passages."""
    if not 0 <= null_rate <= null_rate + distractor_rate <= 1:
      raise ValueError(f"null_rate={null_rate} and distractor_rate={distractor_rate} are shares of one whole")
    self._source, self._num_passages, self._seed = source, num_passages, seed
    self._null_rate, self._distractor_rate = null_rate, distractor_rate

  def draw(self, number_B: np.ndarray) -> QueryBatch:
    """passage_id is the passage to read, sentence_is_removed says that it is the sentence's own."""
    batch = self._source.draw(number_B)
    place_B = uniform(self._seed, 7, number_B)
    offset_B = np.array([-4, -3, -2, -1, 1, 2, 3, 4])[(place_B * 16).astype(np.int64) % 8]
    near_B = batch.passage_id_B + offset_B
    far_B = (place_B * 2 % 1 * self._num_passages).astype(np.int64)
    other_B = np.where(place_B < 0.5, near_B, far_B) % self._num_passages
    kind_B = uniform(self._seed, 8, number_B)
    shown_B = np.where(kind_B < self._null_rate + self._distractor_rate, other_B, batch.passage_id_B)
    shown_B = np.where(kind_B < self._null_rate, NULL_PASSAGE, shown_B).astype(np.int32)
    return batch._replace(passage_id_B=shown_B, sentence_is_removed_B=shown_B == batch.passage_id_B)


class QuestionSource:
  """Questions in an order of their own each epoch."""

  def __init__(
    self, questions: Sequence[Question], vocabulary: Vocabulary, *, seed: int, query_length: int, max_masks: int
  ):
    self._seed, self._query_length, self._max_masks, self._vocabulary = seed, query_length, max_masks, vocabulary
    self._tokens = text_tokens([q.question for q in questions], vocabulary)

  def draw(self, number_B: np.ndarray) -> QueryBatch:
    return self.rows(shuffled(self._seed, number_B, len(self._tokens.num_tokens_R)))

  def rows(self, row_B: np.ndarray) -> QueryBatch:
    """Chosen questions, in the list's order."""
    tokens = Tokens(*(x[row_B] for x in self._tokens))
    return _make_batch(tokens, self._query_length, self._max_masks, self._vocabulary, question_id_B=row_B)


def mask_answer(sentence: str, answer: str, vocabulary: Vocabulary, *, query_length: int, max_masks: int) -> QueryBatch:
  """One query: a sentence with its answer masked, as pre-training masks a salient span.

  Args:
    sentence: has [MASK], once, in the answer's place.

  Raises:
    ValueError: it has not, or there is no answer within the query's length.
  """
  before, _, after = sentence.partition("[MASK]")
  if sentence.count("[MASK]") != 1:
    raise ValueError(f"{sentence!r} has [MASK] {sentence.count('[MASK]')} times; write it once, in the answer's place")
  encoding = vocabulary.encode([before + answer + after])[0]
  begin, end = encoding.char_range.T
  (place,) = np.nonzero((begin < len(before) + len(answer)) & (end > len(before)))
  if len(place) == 0 or place[-1] + 1 > query_length - 2:
    raise ValueError(f"no answer {answer!r} within the {query_length - 2} wordpieces of a query; shorten the sentence")
  tokens = Tokens(encoding.token_id[None], np.zeros(1, np.int64), np.array([len(begin)]))
  batch = _make_batch(tokens, query_length, max_masks, vocabulary)
  return mask_tokens(batch, span_mask(batch, place[:1] + 1, place[-1:] + 2), vocabulary.mask_id)


def text_tokens(texts: Sequence[str], vocabulary: Vocabulary) -> Tokens:
  """Texts as rows of tokens."""
  ids = vocabulary.token_ids(texts)
  num_tokens = np.fromiter(map(len, ids), np.int64, len(ids))
  token_id = np.zeros((len(ids), max([1, *map(len, ids)])), np.int32)
  # All at once: an array for each text takes as long as cutting it.
  is_token = np.arange(token_id.shape[1]) < num_tokens[:, None]
  token_id[is_token] = np.fromiter(itertools.chain.from_iterable(ids), np.int32, num_tokens.sum())
  return Tokens(token_id, np.zeros_like(num_tokens), num_tokens)


def maskable_spans(store: PassageStore, query_length: int) -> tuple[np.ndarray, np.ndarray]:
  """Spans that fit a query with [CLS] and [SEP]: [S, 3] first, last + 1, sentence; and offsets [N + 1]."""
  num_spans_N = np.diff(store.span_offset.astype(np.int64))
  passage_S = np.repeat(np.arange(len(store)), num_spans_N)
  span = np.asarray(store.span, np.int64)[:, :3]
  sentence_start = store.sentence_start[store.sentence_offset[passage_S].astype(np.int64) + span[:, 2]].astype(np.int64)
  fits = span[:, 1] - sentence_start <= query_length - 2
  offset = np.concatenate([[0], np.cumsum(np.bincount(passage_S[fits], minlength=len(store)))])
  return span[fits], offset


def recurs(store: PassageStore, passage_id_C: np.ndarray, span_C3: np.ndarray) -> np.ndarray:
  """Whether every token of a span (first, last + 1, sentence) occurs in its passage's other sentences, bool [C]."""
  body = store.body_tokens(passage_id_C)
  sentence_C2 = _sentence_range(store, passage_id_C, span_C3[:, 2])
  position_CL = np.arange(body.token_id_RL.shape[1]) - body.start_R[:, None]
  is_other_CL = (position_CL >= 0) & (position_CL < body.num_tokens_R[:, None])
  is_other_CL &= (position_CL < sentence_C2[:, :1]) | (position_CL >= sentence_C2[:, 1:])
  recurs_C = np.ones(len(span_C3), bool)
  length_C = span_C3[:, 1] - span_C3[:, 0]
  for offset in range(int(length_C.max(initial=0))):
    inside_C = offset < length_C
    token_C = body.token_id_RL[np.arange(len(span_C3)), body.start_R + span_C3[:, 0] + np.where(inside_C, offset, 0)]
    recurs_C &= ~inside_C | ((body.token_id_RL == token_C[:, None]) & is_other_CL).any(1)
  return recurs_C


def draw_sentences(
  store: PassageStore,
  passage_id_B: np.ndarray,
  seed: int,
  number_B: np.ndarray,
  query_length: int,
  max_masks: int,
  vocabulary: Vocabulary,
) -> tuple[QueryBatch, Tokens]:
  """A random sentence of each passage: packed, and as it stands in the body."""
  begin_B = store.sentence_offset[passage_id_B].astype(np.int64)
  num_sentences_B = store.sentence_offset[passage_id_B + 1].astype(np.int64) - begin_B
  sentence_B = (uniform(seed, 1, number_B) * num_sentences_B).astype(np.int64)
  sentence_B2 = _sentence_range(store, passage_id_B, sentence_B)
  tokens = _body_range(store, passage_id_B, sentence_B2)
  fields = {"passage_id_B": passage_id_B, "sentence_B2": sentence_B2}
  return _make_batch(tokens, query_length, max_masks, vocabulary, **fields), tokens


def _is_cut_in_a_word(tokens: Tokens, room: int, is_continuation_V: np.ndarray) -> np.ndarray:
  """Whether what follows the first `room` tokens is the rest of a word."""
  next_R = np.minimum(tokens.start_R + room, tokens.token_id_RL.shape[1] - 1)
  next_token_R = tokens.token_id_RL[np.arange(len(next_R)), next_R]
  return (tokens.num_tokens_R > room) & is_continuation_V[next_token_R]


def _sentence_range(store: PassageStore, passage_id_B: np.ndarray, sentence_B: np.ndarray) -> np.ndarray:
  """First and last + 1 body token of a sentence of each passage, [B, 2]."""
  row_B = store.sentence_offset[passage_id_B].astype(np.int64) + sentence_B
  is_last_B = row_B + 1 == store.sentence_offset[passage_id_B + 1].astype(np.int64)
  next_B = store.sentence_start[np.minimum(row_B + 1, len(store.sentence_start) - 1)]
  return np.stack(
    [store.sentence_start[row_B], np.where(is_last_B, store.body_length_N[passage_id_B], next_B)], 1
  ).astype(np.int64)


def _body_range(store: PassageStore, passage_id_B: np.ndarray, range_B2: np.ndarray) -> Tokens:
  body = store.body_tokens(passage_id_B)
  return Tokens(body.token_id_RL, body.start_R + range_B2[:, 0], range_B2[:, 1] - range_B2[:, 0])


def _make_batch(tokens: Tokens, query_length: int, max_masks: int, vocabulary: Vocabulary, **fields) -> QueryBatch:
  """Packs queries; what a kind doesn't have stays 0 or -1."""
  num_queries = len(tokens.num_tokens_R)
  packed = pack(tokens, None, query_length, vocabulary)
  batch = QueryBatch(
    token_id_BQ=packed.token_id,
    num_tokens_B=packed.is_token.sum(1).astype(np.int32),
    passage_id_B=np.full(num_queries, NO_PASSAGE, np.int32),
    sentence_B2=np.zeros((num_queries, 2), np.int32),
    sentence_is_removed_B=np.zeros(num_queries, bool),
    mask_position_BM=np.zeros((num_queries, max_masks), np.int32),
    mask_target_BM=np.zeros((num_queries, max_masks), np.int32),
    mask_weight_BM=np.zeros((num_queries, max_masks), np.float32),
    question_id_B=np.full(num_queries, -1, np.int32),
    negative_id_BK=np.full((num_queries, 1), NO_PASSAGE, np.int32),
  )
  return batch._replace(**{name: value.astype(getattr(batch, name).dtype) for name, value in fields.items()})
