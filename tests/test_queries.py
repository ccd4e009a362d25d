"""Queries of the three kinds: what is drawn, what is masked, and that a number names an example."""

import itertools

import numpy as np
import pytest
from batches import equal, rows

from realm_jax.data.articles import Article
from realm_jax.data.packing import Tokens
from realm_jax.data.passages import PassageStore, PassageWriter
from realm_jax.data.queries import (
  MaskedSentenceSource,
  QuestionSource,
  RandomMaskSource,
  ReadSource,
  SentenceSource,
  maskable_spans,
  recurs,
  text_tokens,
)
from realm_jax.data.questions import Question
from realm_jax.data.spans import Span
from realm_jax.data.splitting import split_articles
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary

VOCABULARY = Vocabulary([*SPECIAL_TOKENS, *"abcdefghij", "!", "[", "]", "mask"], lowercase=True)
PAD, UNK, CLS, SEP, MASK = range(5)
A, B, C, D, E, F, G, H = range(5, 13)
STOP = VOCABULARY.tokens.index("!")
QUESTIONS = [Question("a b", ("c",)), Question("[MASK] d", ("e",)), Question("a b c d e f g h", ("i",))]


def write(path, *passages: tuple[str, list[tuple[int, int]]]) -> PassageStore:
  """A store of texts with the character ranges of their spans; "!" ends sentences, as "A." is an abbreviation."""
  with PassageWriter(path, VOCABULARY, passage_length=32) as writer:
    for i, (text, spans) in enumerate(passages):
      (passage,) = split_articles([Article(str(i), "J", text)], VOCABULARY, passage_length=32)
      writer.add(passage, [Span(*span, "entity") for span in spans])
    writer.finish({})
  return PassageStore(path)


@pytest.fixture(scope="module", params=["ict", "masked", "random_span", "random_token", "questions"])
def source(request, sample_store):
  options = {"seed": 3, "query_length": 48, "max_masks": 6}
  if request.param == "ict":
    return SentenceSource(sample_store, **options)
  if request.param == "masked":
    return MaskedSentenceSource(sample_store, **options)
  if request.param.startswith("random"):
    return RandomMaskSource(sample_store, request.param, **options)
  return QuestionSource(QUESTIONS, sample_store.vocabulary(), **options)


# --- all three kinds


def test_a_number_names_a_query(source):
  together = source.draw(np.arange(500))
  numbers = np.array([499, 0, 123, 123, 7])
  equal(source.draw(numbers), rows(together, numbers))
  equal(source.draw(np.arange(250, 260)), rows(together, slice(250, 260)))


def test_shapes_and_types(source):
  batch = source.draw(np.arange(5))
  expected = {
    "token_id_BQ": ((5, 48), np.int32),
    "num_tokens_B": ((5,), np.int32),
    "passage_id_B": ((5,), np.int32),
    "sentence_B2": ((5, 2), np.int32),
    "sentence_is_removed_B": ((5,), bool),
    "mask_position_BM": ((5, 6), np.int32),
    "mask_target_BM": ((5, 6), np.int32),
    "mask_weight_BM": ((5, 6), np.float32),
    "question_id_B": ((5,), np.int32),
    "negative_id_BK": ((5, 1), np.int32),
  }
  assert {name: (x.shape, x.dtype) for name, x in batch._asdict().items()} == expected
  num_tokens_B = (batch.token_id_BQ != PAD).sum(1)
  np.testing.assert_array_equal(batch.num_tokens_B, num_tokens_B)
  np.testing.assert_array_equal(batch.token_id_BQ[:, 0], CLS)
  np.testing.assert_array_equal(batch.token_id_BQ[np.arange(5), num_tokens_B - 1], SEP)


def test_seeds_differ(sample_store):
  options = {"query_length": 48, "max_masks": 6}
  for kind in (SentenceSource, MaskedSentenceSource):
    one, other = (kind(sample_store, seed=seed, **options).draw(np.arange(40)) for seed in (0, 1))
    assert not np.array_equal(one.passage_id_B, other.passage_id_B)


def test_an_epoch_visits_every_passage_once(sample_store):
  options = {"seed": 0, "query_length": 48, "max_masks": 6}
  sentence_offset = sample_store.sentence_offset.astype(int)
  ict = np.nonzero(np.diff(sentence_offset) > 1)[0]
  _, span_offset = maskable_spans(sample_store, 48)
  masked = np.nonzero(np.diff(span_offset))[0]
  assert len(ict) == len(masked) == 40
  for source, passages in (
    (SentenceSource(sample_store, **options), ict),
    (MaskedSentenceSource(sample_store, **options), masked),
  ):
    batch = source.draw(np.arange(2 * len(passages)))
    first, second = batch.passage_id_B.reshape(2, -1)
    np.testing.assert_array_equal(np.sort(first), passages)
    np.testing.assert_array_equal(np.sort(second), passages)
    assert not np.array_equal(first, second)


# --- inverse cloze task


def test_ict_queries_are_sentences_of_their_passage(sample_store):
  batch = SentenceSource(sample_store, seed=0, query_length=20, max_masks=2).draw(np.arange(200))
  seen = set()
  for passage, (first, end), token_id in zip(batch.passage_id_B, batch.sentence_B2, batch.token_id_BQ):
    offset = sample_store.sentence_offset[passage : passage + 2].astype(int)
    bounds = [*sample_store.sentence_start[slice(*offset)].tolist(), int(sample_store.body_length_N[passage])]
    sentence = bounds.index(first)
    assert bounds[sentence + 1] == end
    seen.add(sentence / (len(bounds) - 2))
    begin = int(sample_store.title_length_N[passage])
    body = sample_store.padded_tokens(passage)[begin + first : begin + min(end, first + 18)].tolist()
    assert token_id.tolist() == [CLS, *body, SEP] + [PAD] * (18 - len(body))
  assert {0.0, 1.0} <= seen  # first and last sentences come too
  assert not batch.mask_weight_BM.any()
  assert (batch.question_id_B == -1).all()


def test_ict_skips_passages_of_one_sentence(tmp_path):
  store = write(tmp_path / "store", ("A b!", []), ("C d! E f!", []), ("G!", []))
  batch = SentenceSource(store, seed=0, query_length=8, max_masks=2).draw(np.arange(50))
  assert set(batch.passage_id_B) == {1}
  assert set(map(tuple, batch.token_id_BQ)) == {(CLS, C, D, STOP, SEP, 0, 0, 0), (CLS, E, F, STOP, SEP, 0, 0, 0)}
  assert set(map(tuple, batch.sentence_B2)) == {(0, 3), (3, 6)}


def test_ict_refuses_a_corpus_of_single_sentences(tmp_path):
  store = write(tmp_path / "store", ("A b!", []))
  message = "no passage of .*store has two sentences; ICT needs passages of several sentences"
  with pytest.raises(ValueError, match=message):
    SentenceSource(store, seed=0, query_length=8, max_masks=2)


def test_removal_rate(sample_store):
  def removed(**options):
    source = SentenceSource(sample_store, seed=0, query_length=8, max_masks=1, **options)
    return source.draw(np.arange(4000)).sentence_is_removed_B.mean()

  assert removed(removal_rate=0.0) == 0
  assert removed(removal_rate=1.0) == 1
  assert abs(removed() - 0.9) < 4 * (0.9 * 0.1 / 4000) ** 0.5


# --- masked sentences


def test_masks_the_span_worked_out_by_hand(tmp_path):
  store = write(tmp_path / "store", ("A b! C d e f!", [(7, 10)]))  # d e
  batch = MaskedSentenceSource(store, seed=0, query_length=9, max_masks=3).draw(np.arange(1))
  assert batch.token_id_BQ.tolist() == [[CLS, C, MASK, MASK, F, STOP, SEP, PAD, PAD]]
  assert batch.num_tokens_B.tolist() == [7]
  assert batch.mask_position_BM.tolist() == [[2, 3, 0]]
  assert batch.mask_target_BM.tolist() == [[D, E, 0]]
  assert batch.mask_weight_BM.tolist() == [[1, 1, 0]]
  assert batch.passage_id_B.tolist() == [0]
  assert batch.sentence_B2.tolist() == [[3, 8]]
  assert batch.sentence_is_removed_B.tolist() == [False]


def test_all_tokens_of_a_span_are_masked_but_max_masks_predicted(tmp_path):
  store = write(tmp_path / "store", ("A b c d e f g!", [(2, 11)]))  # b c d e f
  batch = MaskedSentenceSource(store, seed=0, query_length=16, max_masks=2).draw(np.arange(1))
  assert batch.token_id_BQ[0, :9].tolist() == [CLS, A, MASK, MASK, MASK, MASK, MASK, G, STOP]
  assert batch.mask_position_BM.tolist() == [[2, 3]]
  assert batch.mask_target_BM.tolist() == [[B, C]]
  assert batch.mask_weight_BM.tolist() == [[1, 1]]


def test_a_span_must_end_before_the_cut(tmp_path):
  # Of seven tokens a query of length 6 shows a b c d: index 3 is the last below 6 - 2.
  spans = [(4, 5), (4, 7), (6, 7), (6, 9), (8, 9)]  # c, c d, d, d e, e
  store = write(tmp_path / "store", ("A b c d e f.", spans))
  span, offset = maskable_spans(store, 6)
  assert span.tolist() == [[2, 3, 0], [2, 4, 0], [3, 4, 0]]
  assert offset.tolist() == [0, 3]
  assert len(maskable_spans(store, 7)[0]) == 5
  batch = MaskedSentenceSource(store, seed=0, query_length=6, max_masks=4).draw(np.arange(60))
  assert set(map(tuple, batch.token_id_BQ)) == {
    (CLS, A, B, MASK, D, SEP),
    (CLS, A, B, MASK, MASK, SEP),
    (CLS, A, B, C, MASK, SEP),
  }


def test_positions_count_from_the_sentence(tmp_path):
  store = write(tmp_path / "store", ("A b c d e! F g!", [(11, 12)]), ("A!", []), ("A b! H!", [(5, 6)]))
  span, offset = maskable_spans(store, 3)  # [CLS], one token, [SEP]
  assert span.tolist() == [[6, 7, 1], [3, 4, 1]]
  assert offset.tolist() == [0, 1, 1, 2]
  batch = MaskedSentenceSource(store, seed=0, query_length=3, max_masks=1).draw(np.arange(2))
  assert batch.token_id_BQ.tolist() == [[CLS, MASK, SEP]] * 2
  assert sorted(zip(batch.passage_id_B.tolist(), batch.mask_target_BM[:, 0].tolist())) == [(0, F), (2, H)]


def test_recurring_spans_are_those_that_the_other_sentences_hold(tmp_path):
  # Of b (again in C b), C, b, D e (only e is again in F e), e; and in the second passage nothing recurs.
  spans = [(2, 3), (5, 6), (7, 8), (10, 13), (17, 18)]
  store = write(tmp_path / "store", ("A b! C b! D e! F e!", spans), ("A b! C d!", [(0, 1)]))
  span, _ = maskable_spans(store, 8)
  assert recurs(store, np.array([0, 0, 0, 0, 0, 1]), span).tolist() == [True, False, True, False, True, False]

  def targets(rate):
    source = MaskedSentenceSource(store, seed=0, query_length=8, max_masks=1, recurring_rate=rate)
    batch = source.draw(np.arange(400))
    return batch.mask_target_BM[batch.passage_id_B == 0, 0]

  assert set(targets(1.0)) == {B, E}
  assert abs((targets(1.0) == B).mean() - 2 / 3) < 4 * (2 / 9 / 200) ** 0.5
  assert set(targets(0.0)) == {B, C, D, E}
  # Half of the queries take one of three, the other half one of all five.
  is_recurring = 0.5 + 0.5 * 3 / 5
  found = np.isin(targets(0.5), [B, E]).mean()
  assert abs(found - is_recurring) < 4 * (is_recurring * (1 - is_recurring) / 200) ** 0.5


def test_sentences_are_read_with_their_own_another_or_no_passage(sample_store):
  sentences = MaskedSentenceSource(sample_store, seed=0, query_length=24, max_masks=4)
  number = np.arange(4000)
  source = ReadSource(sentences, 40, seed=0, null_rate=0.2, distractor_rate=0.4)
  own, read = sentences.draw(number), source.draw(number)
  equal(own, read._replace(passage_id_B=own.passage_id_B, sentence_is_removed_B=own.sentence_is_removed_B))
  is_null, is_own = read.passage_id_B == -1, read.passage_id_B == own.passage_id_B
  np.testing.assert_array_equal(read.sentence_is_removed_B, is_own)
  tolerance = 4 * (0.25 / 4000) ** 0.5
  assert abs(is_null.mean() - 0.2) < tolerance
  # One of 40 of the distractors from afar is by chance its own.
  assert abs(is_own.mean() - 0.4 - 0.2 / 40) < tolerance
  other = ~is_null & ~is_own
  distance = (read.passage_id_B - own.passage_id_B)[other] % 40
  near = np.isin(distance, [1, 2, 3, 4, 36, 37, 38, 39])
  assert abs(near.mean() - (0.5 + 0.5 * 8 / 40) / (1 - 0.5 / 40)) < 2 * tolerance
  assert set(read.passage_id_B[other]) == set(range(40))
  equal(source.draw(number[100:110]), rows(read, slice(100, 110)))
  with pytest.raises(ValueError, match="null_rate=0.7 and distractor_rate=0.4 are shares of one whole"):
    ReadSource(sentences, 40, seed=0, null_rate=0.7, distractor_rate=0.4)


def test_masked_queries_are_sentences_of_their_passage(sample_store):
  batch = MaskedSentenceSource(sample_store, seed=1, query_length=40, max_masks=40).draw(np.arange(300))
  stored = {
    (passage, *span[:2])
    for passage in range(len(sample_store))
    for span in sample_store.span[slice(*sample_store.span_offset[passage : passage + 2].astype(int))].tolist()
  }
  for b, (passage, (first, end)) in enumerate(zip(batch.passage_id_B, batch.sentence_B2)):
    begin = int(sample_store.title_length_N[passage])
    sentence = sample_store.padded_tokens(passage)[begin + first : begin + end].tolist()[:38]
    masked = np.nonzero(batch.token_id_BQ[b] == MASK)[0]
    predicted = batch.mask_position_BM[b][batch.mask_weight_BM[b] > 0]
    np.testing.assert_array_equal(predicted, masked)
    np.testing.assert_array_equal(masked, np.arange(masked[0], masked[-1] + 1))
    assert masked[-1] - 1 < 40 - 2
    assert (passage, first + masked[0] - 1, first + masked[-1]) in stored
    token_id = batch.token_id_BQ[b].copy()
    token_id[predicted] = batch.mask_target_BM[b][batch.mask_weight_BM[b] > 0]
    assert token_id.tolist() == [CLS, *sentence, SEP] + [PAD] * (38 - len(sentence))


@pytest.mark.parametrize("query_length", [4, 12, 30, 256])
def test_maskable_spans_equal_their_twin(sample_store, query_length):
  span, offset = maskable_spans(sample_store, query_length)
  expected = []
  for i in range(len(sample_store)):
    rows = []
    start = sample_store.sentence_start[slice(*sample_store.sentence_offset[i : i + 2].astype(int))].tolist()
    for first, end, sentence, _ in sample_store.span[slice(*sample_store.span_offset[i : i + 2].astype(int))].tolist():
      if end - 1 - start[sentence] < query_length - 2:
        rows.append([first, end, sentence])
    expected.append(rows)
  assert [span[a:b].tolist() for a, b in itertools.pairwise(offset)] == expected


def test_masking_refuses_a_corpus_without_spans(tmp_path):
  store = write(tmp_path / "store", ("A b c d e f!", [(8, 9)]))
  message = "has no salient span within the first 4 tokens of a sentence; build the corpus with --tagger=rules or spacy"
  with pytest.raises(ValueError, match=message):
    MaskedSentenceSource(store, seed=0, query_length=6, max_masks=2)


# --- questions


def test_questions_by_row():
  source = QuestionSource(QUESTIONS, VOCABULARY, seed=0, query_length=7, max_masks=2)
  batch = source.rows(np.array([2, 0, 1]))
  bracket, close, word = (VOCABULARY.tokens.index(t) for t in ("[", "]", "mask"))
  assert batch.token_id_BQ.tolist() == [
    [CLS, A, B, C, D, E, SEP],
    [CLS, A, B, SEP, 0, 0, 0],
    [CLS, bracket, word, close, D, SEP, 0],  # a literal "[MASK]" is no mask token
  ]
  assert batch.question_id_B.tolist() == [2, 0, 1]
  assert batch.passage_id_B.tolist() == [-1, -1, -1]


def test_questions_come_once_an_epoch():
  source = QuestionSource(QUESTIONS, VOCABULARY, seed=0, query_length=7, max_masks=2)
  question_id = source.draw(np.arange(30)).question_id_B.reshape(10, 3)
  np.testing.assert_array_equal(np.sort(question_id, 1), np.tile([0, 1, 2], (10, 1)))
  assert len({tuple(row) for row in question_id}) > 1


def test_text_tokens():
  tokens = text_tokens(["a", "", "b c!"], VOCABULARY)
  assert isinstance(tokens, Tokens)
  assert tokens.token_id_RL.tolist() == [[A, 0, 0], [0, 0, 0], [B, C, STOP]]
  assert tokens.start_R.tolist() == [0, 0, 0]
  assert tokens.num_tokens_R.tolist() == [1, 0, 3]
  assert text_tokens([""], VOCABULARY).token_id_RL.shape == (1, 1)
