"""From queries to reader input: the K passages, answers in them, the three stages' batches."""

import json

import ml_dtypes
import numpy as np
import pytest

from realm_jax.batch import NULL_PASSAGE, QueryBatch
from realm_jax.data.build import build_passages
from realm_jax.data.passages import PassageStore
from realm_jax.data.queries import MaskedSentenceSource, QuestionSource, ReadSource, SentenceSource
from realm_jax.data.questions import Question
from realm_jax.data.spans import make_tagger
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from realm_jax.index.retrieve import BatchAssembler, choose_passages, find_answers, query_input, with_annotated
from realm_jax.index.snapshot import Snapshot

WORDS = "the cat sat on a mat . dogs ran in may 1990 it rained here and there rome was old".split()
ARTICLES = [
  ("Cat", "The cat sat on a mat. It rained. Dogs ran here."),
  ("Rome", "Rome was old in May 1990. The cat ran. It sat there and there."),
  ("Old dogs", "Dogs ran. It rained here."),
]


def build_store(path, vocabulary, articles, passage_length=32):
  lines = [json.dumps({"id": str(i), "title": title, "text": text}) for i, (title, text) in enumerate(articles)]
  (path / "articles.jsonl").write_text("\n".join(lines) + "\n")
  build_passages(
    path / "articles.jsonl", path / "store", vocabulary=vocabulary, passage_length=passage_length,
    tagger=make_tagger("none"), whole=True,
  )  # fmt: skip
  return PassageStore(path / "store")


@pytest.fixture(scope="module")
def vocabulary():
  return Vocabulary([*SPECIAL_TOKENS, *WORDS], lowercase=True)


@pytest.fixture(scope="module")
def store(vocabulary, tmp_path_factory):
  return build_store(tmp_path_factory.mktemp("retrieve"), vocabulary, ARTICLES)


def spell(vocabulary, packed, *row):
  """The tokens of one row, padding left out."""
  return " ".join(vocabulary.tokens[i] for i in packed.token_id[row][packed.is_token[row]])


def words_of(vocabulary, text):
  return " ".join(vocabulary.tokens[i] for i in vocabulary.encode([text])[0].token_id)


def test_chooses_the_null_passage_then_the_best_others():
  a, o, b, c, d, e, f, g = range(10, 18)
  with_own = choose_passages(np.array([[a, o, b, c, d, e, f, g]]), np.array([o]), 8)
  without_own = choose_passages(np.array([[a, o, b, c, d, e, f, g]]), np.array([99]), 8)
  np.testing.assert_array_equal(with_own, [[NULL_PASSAGE, a, b, c, d, e, f, g]])
  np.testing.assert_array_equal(without_own, [[NULL_PASSAGE, a, o, b, c, d, e, f]])


def test_chooses_for_each_query_by_its_own():
  retrieved_id_BR = np.array([[3, 1, 2], [3, 1, 2], [3, 1, 2], [3, 1, 2]])
  chosen_BK = choose_passages(retrieved_id_BR, np.array([3, 1, 2, -1]), 3)
  np.testing.assert_array_equal(chosen_BK, [[-1, 1, 2], [-1, 3, 2], [-1, 3, 1], [-1, 3, 1]])


def test_one_passage_is_the_null_passage():
  np.testing.assert_array_equal(choose_passages(np.array([[5, 6]]), np.array([5]), 1), [[NULL_PASSAGE]])


@pytest.mark.parametrize(
  ("answers", "expected"),
  [
    ([[3, 4]], [(5, 6)]),
    ([[7]], []),
    ([[2, 3, 4]], [(4, 6)]),
    ([[1]], []),  # the question's own words
    ([[4, 11]], []),  # [SEP] is not in the passage
    ([[11, 2]], []),
    ([[3], [3, 4], [3]], [(5, 5), (5, 6)]),
    ([[1] * 20], []),  # longer than the input
  ],
)
def test_finds_answers_in_the_passage_only(answers, expected):
  token_id_J = np.array([10, 0, 1, 11, 2, 3, 4, 11, 0, 0])
  is_body_J = np.array([0, 0, 0, 0, 1, 1, 1, 0, 0, 0], bool)
  assert find_answers(token_id_J, is_body_J, [np.array(a) for a in answers]) == expected


def test_finds_overlapping_answers_in_order():
  found = find_answers(np.array([9, 5, 5, 5, 7, 5, 5]), np.ones(7, bool), [np.array([5, 5]), np.array([9, 5])])
  assert found == [(0, 1), (1, 2), (2, 3), (5, 6)]


def question_queries(token_id, num_tokens):
  """A batch of questions given by their tokens."""
  token_id_BQ = np.array(token_id, np.int32)
  num_queries = len(token_id_BQ)
  none, masks = np.full(num_queries, -1, np.int32), np.zeros((num_queries, 1), np.int32)
  return QueryBatch(
    token_id_BQ, np.array(num_tokens, np.int32), none, np.zeros((num_queries, 2), np.int32), none > 0,
    masks, masks, masks.astype(np.float32), none, none[:, None],
  )  # fmt: skip


def snapshot_of(num_passages):
  emb_ND = np.arange(num_passages * 4).reshape(num_passages, 4).astype(ml_dtypes.bfloat16)
  return Snapshot(1, {}, emb_ND, None)


def test_google_s_reader_inputs(tmp_path):
  """The arrays of language/orqa/ops/orqa_ops_test.py (section 2.8)."""
  tokens = ["[PAD]", "b", "c", "d", "e", "f", "g", "h", "[UNK]", "[MASK]", "[CLS]", "[SEP]"]
  vocabulary = Vocabulary(tokens, lowercase=True)
  store = build_store(tmp_path, vocabulary, [("b", "c d e"), ("b", "f g")])
  assembler = BatchAssembler(store, vocabulary, joint_length=10)
  queries = question_queries([[10, 0, 1, 11]], [4])
  batch = assembler.question_batch(queries, [["d e", "h"]], np.array([[0, 1]]), snapshot_of(2), 2, max_answers=1)
  np.testing.assert_array_equal(
    batch.joint_BKJ.token_id[0], [[10, 0, 1, 11, 2, 3, 4, 11, 0, 0], [10, 0, 1, 11, 5, 6, 11, 0, 0, 0]]
  )
  np.testing.assert_array_equal(batch.joint_BKJ.is_token[0], [[1] * 8 + [0] * 2, [1] * 7 + [0] * 3])
  np.testing.assert_array_equal(
    batch.joint_BKJ.segment_id[0], [[0, 0, 0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]]
  )
  np.testing.assert_array_equal(batch.is_body_BKJ[0], [[0, 0, 0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]])
  np.testing.assert_array_equal(batch.gold_start_BKA[0], [[5], [-1]])
  np.testing.assert_array_equal(batch.gold_end_BKA[0], [[6], [-1]])


def test_hugging_face_s_block_has_answer(tmp_path):
  """The arrays of test_block_has_answer in HF's test_retrieval_realm.py (section 3.7)."""
  words = "test question this is the first second third fourth fifth record longer".split()
  vocabulary = Vocabulary([*SPECIAL_TOKENS, *words], lowercase=True)
  ordinals = ["first", "second", "third", "fourth", "fifth"]
  texts = [f"This is the {word} record" for word in ordinals] + [
    "This is longer longer longer longer record"
  ]  # HF: 4 [UNK]
  store = build_store(tmp_path, vocabulary, [("test", text) for text in texts])
  assembler = BatchAssembler(store, vocabulary, joint_length=16)
  queries = QuestionSource(
    [Question("Test question", ())], vocabulary, seed=0, query_length=8, max_masks=1
  ).rows(np.array([0]))  # fmt: skip
  answers = [["the fourth", "longer longer"]]
  batch = assembler.question_batch(queries, answers, np.array([[0, 3, 5]]), snapshot_of(6), 3, max_answers=3)
  assert spell(vocabulary, batch.joint_BKJ, 0, 0) == "[CLS] test question [SEP] this is the first record [SEP]"
  assert spell(vocabulary, batch.joint_BKJ, 0, 1) == "[CLS] test question [SEP] this is the fourth record [SEP]"
  np.testing.assert_array_equal(batch.beam_has_answer_BR, [[False, True, True]])
  np.testing.assert_array_equal(batch.gold_start_BKA[0], [[-1, -1, -1], [6, -1, -1], [6, 7, 8]])
  np.testing.assert_array_equal(batch.gold_end_BKA[0], [[-1, -1, -1], [7, -1, -1], [7, 8, 9]])


def test_question_batch_takes_the_beam_and_reads_its_first(store, vocabulary):
  assembler = BatchAssembler(store, vocabulary, joint_length=24)
  questions = [Question("Rome was old in", ()), Question("cat sat on", ())]
  queries = QuestionSource(questions, vocabulary, seed=0, query_length=8, max_masks=1).rows(np.array([0, 1]))
  snapshot = snapshot_of(3)
  batch = assembler.question_batch(
    queries, [["May 1990"], ["a mat", "here"]], np.array([[2, 1, 0], [0, 2, 1]]), snapshot, 2
  )
  np.testing.assert_array_equal(batch.beam_emb_BRD[:, :, 0], [[8, 4, 0], [0, 8, 4]])
  assert batch.beam_emb_BRD.dtype == np.float32 and batch.passage_BKP is None
  np.testing.assert_array_equal(batch.beam_has_answer_BR, [[False, True, False], [True, True, False]])
  bodies = [words_of(vocabulary, text) for _, text in ARTICLES]
  assert spell(vocabulary, batch.joint_BKJ, 0, 1) == f"[CLS] rome was old in [SEP] {bodies[1]} [SEP]"
  assert spell(vocabulary, batch.joint_BKJ, 1, 0) == f"[CLS] cat sat on [SEP] {bodies[0]} [SEP]"
  assert spell(vocabulary, batch.query_BQ, 1) == "[CLS] cat sat on [SEP]"
  for b, k, expected in [(0, 0, []), (0, 1, ["may 1990"]), (1, 0, ["a mat", "here"]), (1, 1, ["here"])]:
    spans = [(s, e) for s, e in zip(batch.gold_start_BKA[b, k], batch.gold_end_BKA[b, k]) if s >= 0]
    found = [" ".join(vocabulary.tokens[i] for i in batch.joint_BKJ.token_id[b, k, s : e + 1]) for s, e in spans]
    assert found == expected


def test_passages_to_be_embedded_anew_are_those_that_are_read(store, vocabulary):
  queries = question_queries([[2, 7, 3], [2, 8, 3]], [3, 3])
  retrieved_id_BR = np.array([[2, 1, 0], [0, 2, 1]])
  batch = BatchAssembler(store, vocabulary, joint_length=24).question_batch(
    queries, [["x"]] * 2, retrieved_id_BR, snapshot_of(3), 2, trains_passage_tower=True
  )
  assert batch.passage_BKP.token_id.shape == (2, 2, store.passage_length)
  for b, row in enumerate(retrieved_id_BR):
    for k, i in enumerate(row[:2]):
      title, body = (words_of(vocabulary, text) for text in ARTICLES[i])
      assert spell(vocabulary, batch.passage_BKP, b, k) == f"[CLS] {title} [SEP] {body} [SEP]"


def test_the_null_passage_is_read_first_and_marked_where_nothing_else_is(store, vocabulary):
  queries = question_queries([[2, 7, 3, 0], [2, 8, 9, 3]], [3, 4])
  batch = BatchAssembler(store, vocabulary, joint_length=24).question_batch(
    queries, [["May 1990"], ["nowhere"]], np.array([[2, 1, 0], [0, 2, 1]]), snapshot_of(3), 2, reads_null_passage=True
  )
  words = [" ".join(vocabulary.tokens[i] for i in row) for row in ([7], [8, 9])]
  for b, query in enumerate(words):
    assert spell(vocabulary, batch.joint_BKJ, b, 0) == f"[CLS] {query} [SEP] [SEP]"
  assert (
    spell(vocabulary, batch.joint_BKJ, 0, 1) == f"[CLS] {words[0]} [SEP] {words_of(vocabulary, ARTICLES[2][1])} [SEP]"
  )
  assert [np.flatnonzero(is_body).tolist() for is_body in batch.is_body_BKJ[:, 0]] == [[3], [4]]
  assert spell(vocabulary, batch.null_BP, 0) == spell(vocabulary, batch.null_BP, 1) == "[CLS] [SEP] [SEP]"
  np.testing.assert_array_equal(batch.null_BP.segment_id, [[0, 0, 1]] * 2)
  marked = [np.argwhere(start_KA >= 0).tolist() for start_KA in batch.gold_start_BKA]
  assert marked == [[[2, 0]], [[0, 0]]]  # the first answer is in the second passage, the other one in none
  assert (batch.gold_start_BKA[1, 0, 0], batch.gold_end_BKA[1, 0, 0]) == (4, 4)
  assert batch.beam_emb_BRD.shape[:2] == (2, 3)  # it is not in the beam


@pytest.mark.parametrize(
  "retrieved, annotated, expected",
  [
    ([4, 7, 5, 9], [7], [4, 7, 5, 9]),  # it is read already
    ([4, 7, 5, 9], [9, 5], [4, 5, 7, 9]),  # the better of two takes the last place that is read
    ([4, 7, 5, 9], [1, 2], [4, 1, 7, 5]),  # found nowhere: the beam's last goes
  ],
)
def test_an_annotated_passage_is_read(retrieved, annotated, expected):
  np.testing.assert_array_equal(with_annotated(np.array(retrieved), annotated, 2), expected)


def test_annotated_passages_with_an_answer_are_the_right_ones(store, vocabulary):
  queries = question_queries([[2, 7, 3]] * 3, [3] * 3)
  retrieved_id_BR = np.array([[1, 0, 2]] * 3)
  batch = BatchAssembler(store, vocabulary, joint_length=24).question_batch(
    queries, [["dogs ran"]] * 3, retrieved_id_BR, snapshot_of(3), 1, annotated_B=[[0, 1], [1], []]
  )
  # Passages 0 and 2 hold the answer. Of the second question's annotated one that isn't true, so it is as if unnamed.
  np.testing.assert_array_equal(batch.beam_emb_BRD[:, :, 0], [[0, 4, 8], [4, 0, 8], [4, 0, 8]])
  np.testing.assert_array_equal(
    batch.beam_has_answer_BR, [[True, False, False], [False, True, True], [False, True, True]]
  )
  assert [(start >= 0).any() for start in batch.gold_start_BKA] == [True, False, False]
  np.testing.assert_array_equal(retrieved_id_BR, [[1, 0, 2]] * 3)


def test_patterns_mark_what_they_find(store, vocabulary):
  queries = QuestionSource([Question("cat", ())], vocabulary, seed=0, query_length=8, max_masks=1).rows(np.array([0]))
  batch = BatchAssembler(store, vocabulary, joint_length=24).question_batch(
    queries, [[r"(may )?\d{4}", "SAT (on|there)", "("]], np.array([[1, 2, 0]]), snapshot_of(3), 3, regex=True
  )
  np.testing.assert_array_equal(batch.beam_has_answer_BR, [[True, False, True]])
  spans = [zip(batch.gold_start_BKA[0, k], batch.gold_end_BKA[0, k]) for k in range(3)]
  found = [
    [" ".join(vocabulary.tokens[i] for i in batch.joint_BKJ.token_id[0, k, s : e + 1]) for s, e in pairs if s >= 0]
    for k, pairs in enumerate(spans)
  ]
  assert found == [["may 1990", "sat there"], [], ["sat on"]]


def test_what_is_cut_off_holds_no_answer(store, vocabulary):
  source = QuestionSource([Question("cat", ())], vocabulary, seed=0, query_length=8, max_masks=1)
  answers, row = [["dogs ran here"]], np.array([[0]])
  for joint_length, expected in ((18, 13), (17, 13), (16, -1)):
    assembler = BatchAssembler(store, vocabulary, joint_length=joint_length)
    batch = assembler.question_batch(source.rows(np.array([0])), answers, row, snapshot_of(3), 1)
    # [CLS] cat [SEP], then 7 + 3 tokens before "dogs ran here .", of which the last place is for [SEP].
    assert batch.gold_start_BKA[0, 0, 0] == expected
    assert batch.joint_BKJ.token_id[0, 0, batch.joint_BKJ.is_token[0, 0]][-1] == vocabulary.sep_id
    assert batch.beam_has_answer_BR.all()  # the retriever's rule looks at the whole passage


def test_what_the_reader_can_not_see_is_counted(store, vocabulary):
  assert store.body_length_N.tolist() == [14, 17, 7]
  source = QuestionSource([Question("cat " * 20, ())], vocabulary, seed=0, query_length=6, max_masks=1)
  last = []
  for joint_length, num_cut in ((24, 0), (23, 1), (20, 2)):
    assembler = BatchAssembler(store, vocabulary, joint_length=joint_length)
    room, said = joint_length - 7, assembler.what_is_cut(6)
    if num_cut == 0:
      assert said == ""
    else:
      assert said.startswith(f"{num_cut} of 3 passages of {store.path} have more than the {room} wordpieces that")
      assert f"build the corpus with --passage_length={room + 3}, or" in said
    joint_BKJ = assembler.joint_input(source.rows(np.array([0])), np.array([[0, 1, 2]]))
    last.append(((joint_BKJ.segment_id == 1) & (joint_BKJ.token_id != vocabulary.sep_id)).sum(-1)[0].tolist())
  assert last == [[14, 17, 7], [14, 16, 7], [13, 13, 7]]


def test_masked_batch_reads_null_and_chosen_passages(store, vocabulary):
  source = MaskedSentenceSource(store, seed=0, query_length=12, max_masks=3)
  queries = source.draw(np.arange(2))
  np.testing.assert_array_equal(queries.passage_id_B, [1, 1])  # the only one with a date
  batch = BatchAssembler(store, vocabulary, joint_length=32).masked_batch(queries, np.array([[2, 1, 0], [0, 2, 1]]), 3)
  bodies = [words_of(vocabulary, text) for _, text in ARTICLES]
  query = "[CLS] rome was old in [MASK] [MASK] . [SEP]"
  assert spell(vocabulary, batch.query_BQ, 0) == query
  for b, row in enumerate([[2, 0], [0, 2]]):
    assert spell(vocabulary, batch.passage_BKP, b, 0) == "[CLS] [SEP] [SEP]"
    np.testing.assert_array_equal(batch.passage_BKP.segment_id[b, 0, :4], [0, 0, 1, 0])
    assert spell(vocabulary, batch.joint_BKJ, b, 0) == f"{query} [SEP]"
    for k, i in enumerate(row, 1):
      title = words_of(vocabulary, ARTICLES[i][0])
      assert spell(vocabulary, batch.passage_BKP, b, k) == f"[CLS] {title} [SEP] {bodies[i]} [SEP]"
      assert spell(vocabulary, batch.joint_BKJ, b, k) == f"{query} {bodies[i]} [SEP]"
  assert batch.passage_BKP.token_id.shape == (2, 3, 32)
  # The masks stand at the same places in the query and in the joint input.
  np.testing.assert_array_equal(batch.mask_position_BM, [[5, 6, 0]] * 2)
  assert (batch.joint_BKJ.token_id[:, :, 5:7] == vocabulary.mask_id).all()
  may, year = vocabulary.encode(["may 1990"])[0].token_id
  np.testing.assert_array_equal(batch.mask_target_BM, [[may, year, 0]] * 2)
  np.testing.assert_array_equal(batch.mask_weight_BM, [[1, 1, 0]] * 2)


@pytest.mark.parametrize("removal_rate", [0.0, 1.0, 0.5])
def test_ict_batch_removes_exactly_the_sentence(store, vocabulary, removal_rate):
  source = SentenceSource(store, seed=0, query_length=16, max_masks=1, removal_rate=removal_rate)
  batch = BatchAssembler(store, vocabulary, joint_length=32).ict_batch(queries := source.draw(np.arange(60)))
  seen = set()
  for row in range(60):
    title, body = ARTICLES[queries.passage_id_B[row]]
    sentences = [words_of(vocabulary, s + ".") for s in body.rstrip(".").split(". ")]
    query = spell(vocabulary, batch.query_BQ, row).removeprefix("[CLS] ").removesuffix(" [SEP]")
    n = sentences.index(query)
    if batch.sentence_is_removed_B[row]:
      sentences.pop(n)
    expected = f"[CLS] {words_of(vocabulary, title)} [SEP] {' '.join(sentences)} [SEP]"
    assert spell(vocabulary, batch.passage_BKP, row, 0) == expected
    assert (batch.passage_BKP.token_id[row][~batch.passage_BKP.is_token[row]] == vocabulary.pad_id).all()
    seen.add((int(queries.passage_id_B[row]), n, bool(batch.sentence_is_removed_B[row])))
  flags = {0.0: {False}, 1.0: {True}, 0.5: {False, True}}[removal_rate]
  if removal_rate != 0.5:  # all sentences of all passages came up: the first, middle and last ones too
    assert seen == {(i, n, flag) for i, num in enumerate([3, 3, 2]) for n in range(num) for flag in flags}
  assert {flag for *_, flag in seen} == flags


def test_ict_batch_shows_hard_negatives_whole_behind_the_own_passage(store, vocabulary):
  source = SentenceSource(store, seed=0, query_length=16, max_masks=1, removal_rate=1.0)
  queries = source.draw(np.arange(6))
  alone = BatchAssembler(store, vocabulary, joint_length=32).ict_batch(queries)
  assert alone.passage_BKP.token_id.shape == (6, 1, 32)
  negative_id_BK = np.array([[-1, (i + 1) % 3, NULL_PASSAGE] for i in queries.passage_id_B], np.int32)
  batch = BatchAssembler(store, vocabulary, joint_length=32).ict_batch(queries._replace(negative_id_BK=negative_id_BK))
  for row, (_, i, _) in enumerate(negative_id_BK.tolist()):
    title, body = (words_of(vocabulary, text) for text in ARTICLES[i])
    assert spell(vocabulary, batch.passage_BKP, row, 0) == spell(vocabulary, alone.passage_BKP, row, 0)
    assert spell(vocabulary, batch.passage_BKP, row, 1) == f"[CLS] {title} [SEP] {body} [SEP]"
    assert spell(vocabulary, batch.passage_BKP, row, 2) == "[CLS] [SEP] [SEP]"


@pytest.mark.parametrize("null_rate", [1.0, 0.0, 0.5])
def test_reading_batch_shows_the_rest_of_the_passage_or_none(store, vocabulary, null_rate):
  """Rome holds the one maskable span: its sentence is read with the other two, or with the null passage."""
  source = ReadSource(
    MaskedSentenceSource(store, seed=0, query_length=16, max_masks=3), 3, seed=0, null_rate=null_rate, distractor_rate=0
  )
  batch = BatchAssembler(store, vocabulary, joint_length=32).reading_batch(queries := source.draw(np.arange(40)))
  alone = "[CLS] rome was old in [MASK] [MASK] . [SEP] [SEP]"
  with_rest = (
    f"[CLS] rome was old in [MASK] [MASK] . [SEP] {words_of(vocabulary, 'The cat ran. It sat there and there.')} [SEP]"
  )
  seen = [spell(vocabulary, batch.joint_BJ, row) for row in range(40)]
  assert set(seen) == {1.0: {alone}, 0.0: {with_rest}, 0.5: {alone, with_rest}}[null_rate]
  assert [text == with_rest for text in seen] == queries.sentence_is_removed_B.tolist()
  np.testing.assert_array_equal(batch.mask_position_BM[:, :2], np.tile([5, 6], (40, 1)))
  np.testing.assert_array_equal(
    batch.mask_target_BM[:, :2], np.tile(vocabulary.encode(["may 1990"])[0].token_id, (40, 1))
  )
  np.testing.assert_array_equal(batch.mask_weight_BM, np.tile([1, 1, 0], (40, 1)))


def test_query_input_has_one_segment():
  packed = query_input(question_queries([[2, 7, 3, 0], [2, 3, 0, 0]], [3, 2]))
  np.testing.assert_array_equal(packed.is_token, [[1, 1, 1, 0], [1, 1, 0, 0]])
  np.testing.assert_array_equal(packed.segment_id, np.zeros((2, 4)))
  np.testing.assert_array_equal(packed.token_id, [[2, 7, 3, 0], [2, 3, 0, 0]])
