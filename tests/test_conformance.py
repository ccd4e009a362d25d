"""What the reference systems compute, point by point: where each is tested, and the tests that have no other place.

U1   input format, null passage    test_packing.py::test_two_sequences, ::test_the_null_passage_is_cls_sep_sep,
                                   ::test_the_second_sequence_is_cut_first, ::test_equals_its_twin
U2   masking                       test_passages.py::test_only_tokens_strictly_inside_a_span_and_a_sentence_count,
                                   test_queries.py::test_masks_the_span_worked_out_by_hand,
                                   ::test_all_tokens_of_a_span_are_masked_but_max_masks_predicted,
                                   ::test_a_span_must_end_before_the_cut
U3   the K passages                test_retrieve.py::test_chooses_the_null_passage_then_the_best_others
U4   marginal likelihood           test_losses.py::test_per_token_likelihood_by_enumeration,
                                   ::test_per_example_likelihood_by_enumeration,
                                   ::test_both_losses_coincide_where_one_token_is_masked,
                                   ::test_gradient_with_respect_to_a_score_is_the_paper_s
U5   where gradients reach         test_objectives.py::test_masked_word_gradients_reach_both_towers_and_the_reader,
                                   ::test_passage_tower_learns_through_null_and_real_passages,
                                   ::test_question_gradients_reach_query_tower_and_reader_only,
                                   here ::test_u5_the_index_only_chooses
U6   optimizer step                test_optimizer.py::test_steps_match_bert, ::test_first_step_by_hand,
                                   ::test_clips_by_the_norm_of_all_gradients, ::test_warmup_formula
U7   span candidates               test_reader.py::test_320_tokens_have_3155_candidates_of_up_to_10,
                                   ::test_span_head_matches_numpy,
                                   ::test_joint_argmax_is_the_best_span_of_the_best_passage
     get_final_text                test_answers.py::test_get_final_text
U8   golden arrays                 test_retrieve.py::test_google_s_reader_inputs,
                                   ::test_hugging_face_s_block_has_answer
U9   nothing correct, 16 bits      test_losses.py::test_marginal_log_loss_is_zero_where_nothing_is_correct
U10  scores of answers             test_answers.py::test_normalize_answer,
                                   ::test_normalize_answer_splits_before_it_removes, ::test_regex_match,
                                   here ::test_u10_no_prediction_is_missing
U11  Google's split                test_questions.py::test_split_is_googles
U12  embedder's guard              here ::test_u12_every_passage_is_embedded_once,
                                   ::test_u12_a_restart_makes_the_same_bits
U13  refresher's states            test_refresh.py::test_once_publishes_the_newest_and_ends,
                                   ::test_it_ends_when_the_trainer_is_done, ::test_it_does_not_wait_for_ever,
                                   test_snapshot.py::test_an_uncommitted_snapshot_is_invisible,
                                   here ::test_u13_keeps_three, ::test_u13_a_killed_indexer_is_replaced
U14  uids                          here ::test_u14_uids_are_google_s
"""

import ast
import pathlib
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.core import FrozenDict

from realm_jax.batch import Packed
from realm_jax.data.passages import passage_uid
from realm_jax.data.queries import MaskedSentenceSource
from realm_jax.data.questions import Question
from realm_jax.index import refresh as refresh_module
from realm_jax.index import snapshot as snapshots
from realm_jax.index.embed import embed_passages
from realm_jax.index.files import Files
from realm_jax.index.refresh import Refresher, RefreshSettings, abstract_tower_params, embedder, follow
from realm_jax.index.retrieve import BatchAssembler
from realm_jax.index.run_dir import RunDir
from realm_jax.index.tower_export import TowerWriter
from realm_jax.model.retriever import Tower
from realm_jax.serving.evaluation import answer_scores


@pytest.fixture(scope="module")
def tower(sample_store):
  bert = FrozenDict(
    vocab_size=sample_store.description["vocabulary_size"],
    hidden_size=8,
    num_layers=1,
    num_heads=2,
    mlp_size=8,
    max_length=sample_store.passage_length,
  )
  return Tower(bert, retrieval_size=4)


@pytest.fixture(scope="module")
def params(tower):
  row = np.zeros((1, 8), np.int32)
  params = jax.device_get(jax.jit(tower.init)(jax.random.key(0), Packed(row, row, row == 0))["params"])
  # BERT's initial values make passages alike; larger ones set them apart.
  return jax.tree.map(lambda x: x * 20 if x.ndim > 1 else x, params)


def embed(tower, params, store, batches=lambda batches: batches):
  return embed_passages(tower, params, store, store.vocabulary(), batch_size=16, progress=batches)


def refresh(run_dir, tower, store):
  settings = RefreshSettings(batch_size=16)
  refresher = Refresher(run_dir, store, settings, embedder(tower, store, settings), log=[].append)
  abstract_params = abstract_tower_params(tower, store.passage_length)
  return follow(refresher, run_dir, abstract_params, once=True, timeout=0.0, log=[].append)


def export(run_dir, params, step):
  writer = TowerWriter(run_dir)
  writer.write(step, params)
  writer.close()


def test_the_table_names_tests_that_exist():
  here = pathlib.Path(__file__)
  module = ast.parse(here.read_text(encoding="utf-8"))
  table = ast.get_docstring(module)
  assert re.findall(r"^U\d+", table, re.MULTILINE) == [f"U{n}" for n in range(1, 15)]
  file = None
  for word in re.findall(r"here|\w+\.py|::\w+", table):
    if word.startswith("::"):
      tree = ast.parse((here.parent / file).read_text(encoding="utf-8"))
      assert word[2:] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}{word}"
    else:
      file = here.name if word == "here" else word


def test_u5_the_index_only_chooses(sample_store):
  """In pre-training a batch takes ids from the index, and no number that a gradient could flow through."""
  queries = MaskedSentenceSource(sample_store, seed=0, query_length=32, max_masks=5).draw(np.arange(2))
  assembler = BatchAssembler(sample_store, sample_store.vocabulary(), joint_length=128)
  batch = assembler.masked_batch(queries, np.array([[1, 2, 3], [3, 2, 1]]), 3)
  floats = [name for name, value in batch._asdict().items() if getattr(value, "dtype", None) == np.float32]
  assert floats == ["mask_weight_BM"]


def test_u10_no_prediction_is_missing():
  """Google's script counts a question without prediction as wrong; here each has one, or the evaluation fails."""
  questions = [Question("q", ("a",)), Question("r", ("b",))]
  assert answer_scores(["a", None], questions)["exact_match"].tolist() == [1, 0]
  with pytest.raises(ValueError, match="zip"):
    answer_scores(["a"], questions)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ([0, 16], "passage 32 was due for embedding, the end came"),
    ([0, 32], "passage 16 was due for embedding, a batch that begins with passage 32 came"),
    ([0, 0, 16, 32], "passage 16 was due for embedding, a batch that begins with passage 0 came"),
    ([16, 0, 32], "passage 0 was due for embedding, a batch that begins with passage 16 came"),
    ([], "passage 0 was due for embedding, the end came"),
  ],
)
def test_u12_every_passage_is_embedded_once(tower, params, sample_store, given, message):
  """Cut short, skipped, twice, out of order: none becomes an array with rows that belong to nothing."""
  with pytest.raises(ValueError, match=f"^{message}: progress must give every batch once, in order$"):
    embed(tower, params, sample_store, lambda batches: iter(given))


def test_u12_a_restart_makes_the_same_bits(tower, params, sample_store):
  def killed_in_the_second_batch(batches):
    yield next(iter(batches))
    raise KeyboardInterrupt

  whole = embed(tower, params, sample_store)
  with pytest.raises(KeyboardInterrupt):
    embed(tower, params, sample_store, killed_in_the_second_batch)
  again = embed(tower, params, sample_store)
  assert again.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(again.view(np.uint16), whole.view(np.uint16))
  assert len(np.unique(whole.view(np.uint16), axis=0)) == len(sample_store)


def test_u13_keeps_three(tmp_path, tower, params, sample_store):
  run_dir = RunDir(tmp_path)
  for step in range(5):
    export(run_dir, params, step)
    assert refresh(run_dir, tower, sample_store) == 1
  assert run_dir.snapshot_versions() == [3, 4, 5]


@pytest.mark.parametrize(
  ("module", "name", "is_published"),
  [
    (refresh_module, "embed_passages", False),
    (Files, "create", False),  # all files are written by then
    (refresh_module, "delete_old", True),
  ],
)
def test_u13_a_killed_indexer_is_replaced(
  tmp_path, tower, params, sample_store, monkeypatch, module, name, is_published
):
  """Whatever the moment, nothing half-written is seen, and the next indexer ends where an unharmed one would."""
  run_dir = RunDir(tmp_path)
  export(run_dir, params, 7)

  def killed(*args, **kwargs):
    if run_dir.snapshot_versions() or not is_published:  # an indexer deletes as it begins, too
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(module, name, killed)
    with pytest.raises(KeyboardInterrupt):
      refresh(run_dir, tower, sample_store)
  assert run_dir.snapshot_versions() == ([1] if is_published else [])
  assert refresh(run_dir, tower, sample_store) == (0 if is_published else 1)
  assert run_dir.snapshot_versions() == [1]
  snapshot = snapshots.load(run_dir, 1, sample_store)
  assert snapshot.params_step == 7
  np.testing.assert_array_equal(
    snapshot.passage_emb_ND.view(np.uint16), embed(tower, params, sample_store).view(np.uint16)
  )


def test_u14_uids_are_google_s():
  # echo -n ' <sep> ' | sha1sum, and the same of the other two.
  assert f"{passage_uid('', ''):040x}" == "349df205d0f86e6cfa2751aa09f7a343260bc7e4"
  assert f"{passage_uid('Paris', 'Paris is a city.'):040x}" == "627d9d966195370ef41ed98c5e5d6388fbb7d883"
  assert f"{passage_uid('Émile', 'É.'):040x}" == "529b5ef43a33dc1369667fc2f35ab02c5a85a0e5"
  assert passage_uid("a", "b") < 2**160
