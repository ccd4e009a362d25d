"""Which checkpoint, index and number of passages of a run answers are given with."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from tiny_runs import write_run

from realm_jax.batch import NULL_PASSAGE
from realm_jax.config import make_reader, make_retriever
from realm_jax.index.params import restore_params
from realm_jax.index.retrieve import BatchAssembler, query_input
from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import SnapshotError
from realm_jax.serving.open_qa import OpenQA


@pytest.fixture(scope="module")
def run(sample_store, tmp_path_factory):
  """Checkpoints 10 and 20, each with a snapshot of its own passage tower."""
  return write_run(tmp_path_factory.mktemp("open_qa") / "run", sample_store)


def test_a_checkpoint_comes_with_its_index(run):
  for checkpoint, step in ((None, 20), ("20", 20), ("10", 10)):
    open_qa = OpenQA.load(run.path, checkpoint)
    assert (open_qa.step, open_qa.snapshot.params_step) == (step, step)


def test_a_run_that_can_not_read_takes_no_number_of_passages(sample_store, tmp_path):
  run = write_run(tmp_path / "run", sample_store, stage="pretrain", steps=(0,))
  assert not OpenQA.load(run.path).can_read
  with pytest.raises(
    ValueError, match="^num_passages=9 are for a reader to read; give a fine-tuned run, or leave it out$"
  ):
    OpenQA.load(run.path, num_passages=9)


def test_a_run_says_what_its_reader_can_not_see(run, tmp_path, capsys):
  OpenQA.load(run.path).warn_of_cut_passages()
  assert capsys.readouterr().err == ""
  run = RunDir(shutil.copytree(run.path, tmp_path / "run"))
  run.write_config(run.read_config() | {"joint_length": 64, "query_length": 32})
  OpenQA.load(run.path).warn_of_cut_passages()
  assert "the 31 wordpieces that the reader sees of them" in capsys.readouterr().err


def test_the_best_checkpoint_is_that_of_best_json(run):
  with pytest.raises(
    FileNotFoundError, match=r"^no .*best.json; choose .* realm evaluate --every_checkpoint --workdir="
  ):
    OpenQA.load(run.path, "best")
  for content in ("{}", "[]", '{"step": null}', "{"):
    run.best.write_text(content)
    with pytest.raises(ValueError, match="best.json is damaged .*; run realm evaluate --every_checkpoint again"):
      OpenQA.load(run.path, "best")
  run.best.write_text(json.dumps({"step": 10}))
  assert OpenQA.load(run.path, "best").step == 10
  run.best.write_text(json.dumps({"step": 30}))  # as if checkpoint.keep had taken it since
  with pytest.raises(FileNotFoundError, match=r"^no checkpoint 30 in .* \(there are: \[10, 20\]\)"):
    OpenQA.load(run.path, "best")


def test_a_checkpoint_that_is_no_step(run):
  for name in ("newest", "-1", ""):
    with pytest.raises(ValueError, match=rf"^no checkpoint '{name}'; give a step, as 20000, or best$"):
      OpenQA.load(run.path, name)


def test_a_checkpoint_without_an_index_of_its_tower(run, tmp_path):
  run = RunDir(shutil.copytree(run.path, tmp_path / "run"))
  run.files.remove_tree(run.snapshot(1))
  with pytest.raises(
    SnapshotError, match=r"with the parameters of step 20, none with those of checkpoint 10; for the ne"
  ):
    OpenQA.load(run.path, "10")


@pytest.mark.parametrize(("field", "expected"), [(0, 5), (7, 7)])
def test_more_passages_may_be_read_than_in_training(run, field, expected):
  config = run.read_config()
  RunDir(run.path).write_config(config | {"num_inference_passages": field})
  open_qa = OpenQA.load(run.path)
  assert open_qa.published.timestamp() == int(run.snapshot_commit(open_qa.snapshot.version).stat().mtime)
  assert open_qa.config.num_passages == expected
  asked = OpenQA.load(run.path, num_passages=9)
  assert len(asked.answers(["Who painted the Mona Lisa?"])[0]) == asked.config.num_passages == 9


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="on a GPU it is cuDNN's kernel, for 16 bits only")
def test_what_was_trained_with_a_gpus_attention_answers_anywhere(run, tmp_path):
  run = RunDir(shutil.copytree(run.path, tmp_path / "run"))
  found = []
  for attention in ("naive", "cudnn"):
    config = run.read_config()
    config["model"]["attention"] = attention
    run.write_config(config)
    open_qa = OpenQA.load(run.path)
    score_BK, passage_id_BK = open_qa.retrieve(["Who was Marie Curie?"], 3)
    answers = open_qa.read(["Who was Marie Curie?"], score_BK, passage_id_BK)[0]
    found.append((score_BK[0], [a.text for a in answers], [a.probability for a in answers]))
  assert found[0][1] == found[1][1]
  for i in (0, 2):
    np.testing.assert_allclose(found[1][i], found[0][i], rtol=1e-5)


def test_the_null_passage_takes_its_share_of_the_probability(run, sample_store, tmp_path):
  """Read with it, each answer has its probability times 1 - p(null), where p(null) is from the networks themselves."""
  run = RunDir(shutil.copytree(run.path, tmp_path / "run"))
  without = OpenQA.load(run.path)
  run.write_config(run.read_config() | {"reads_null_passage": True})
  reads_null = OpenQA.load(run.path)
  questions = ["Who was Marie Curie?", "Why?"]
  score_BK, passage_id_BK = reads_null.retrieve(questions, 3)
  for own_score_BK in (score_BK, None):  # None: of another retriever
    before = without.read(questions, own_score_BK, passage_id_BK)
    after = reads_null.read(questions, own_score_BK, passage_id_BK)
    for b in range(2):
      null_probability = after[b][0].null_probability
      assert 0 < null_probability < 1 and before[b][0].null_probability is None
      assert [a.null_probability for a in after[b]] == [null_probability] * 3
      assert [a.text for a in after[b]] == [a.text for a in before[b]]
      np.testing.assert_allclose(
        [a.probability for a in after[b]], [a.probability * (1 - null_probability) for a in before[b]], rtol=1e-4
      )
  params, assembler = restore_params(run)[1], BatchAssembler(sample_store, sample_store.vocabulary(), joint_length=256)
  retriever, reader = (
    make(reads_null.config.model, len(sample_store.vocabulary())) for make in (make_retriever, make_reader)
  )
  queries = next(reads_null.query_batches(questions))
  read_id_BK = np.insert(passage_id_BK, 0, NULL_PASSAGE, axis=1)
  span_logit_BKS = reader.apply(
    {"params": params["reader"]}, *assembler.reader_input(queries, read_id_BK), method="span_logit"
  )
  embed = functools.partial(retriever.apply, {"params": params["retriever"]})
  emb = embed(query_input(queries), method="embed_queries"), embed(assembler.null_input(2), method="embed_passages")
  all_score_BK = np.insert(score_BK, 0, (emb[0] * emb[1]).sum(1), axis=1)
  for own_score_BK, added_BK in ((score_BK, all_score_BK), (None, np.zeros((2, 4)))):
    prob_BX = jax.nn.softmax((span_logit_BKS + added_BK[..., None]).reshape(2, -1))
    expected_B = prob_BX[:, : span_logit_BKS.shape[2]].sum(1)
    found = reads_null.read(questions, own_score_BK, passage_id_BK)
    np.testing.assert_allclose([answers[0].null_probability for answers in found], expected_B, rtol=1e-4)
