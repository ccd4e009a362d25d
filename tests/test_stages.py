"""The stages' parts, put together: what a config's fields do to a batch."""

import json
import re

import jax
import numpy as np
import pytest

from realm_jax.config import paper_config
from realm_jax.index.snapshot import Snapshot
from realm_jax.training import stages
from realm_jax.training.stages import make_objective, make_stage
from realm_jax.training.start import initial_params
from tests.tiny_runs import D, tiny_config


def annotated_config(store, path, *names):
  """Fine-tuning on the same question about each name's passage."""
  records = [{"question": f"what {i}?", "answer": ["the"], "annotated": [name]} for i, name in enumerate(names)]
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  config = tiny_config("finetune", store)
  config.update(questions=str(path), num_passages=2, beam_size=20, reads_annotated_passages=True)
  return config


def test_annotated_passages_are_read_and_alone_right(sample_store, tmp_path, capsys):
  store = sample_store
  rows = [i for i in range(len(store)) if " the " in store.body(i)][-5:]
  config = annotated_config(store, tmp_path / "q.jsonl", *map(store.id, rows), "nowhere")
  stage = make_stage(config, store, store.vocabulary())
  assert capsys.readouterr().err == f"{tmp_path / 'q.jsonl'}: 5 of 6 questions have annotated passages\n"
  emb_ND = np.zeros((len(store), D), np.float32)
  emb_ND[:, 0] = np.arange(len(store))  # tells in the batch which passage it is
  snapshot = Snapshot(1, {}, emb_ND, _FirstPassages())
  queries = stage.source.rows(np.arange(6))
  params = jax.device_put(initial_params(config, store.vocabulary()))
  batch = stage.make_batch(queries, params, snapshot)
  beam_BR = batch.beam_emb_BRD[:, :, 0].astype(int)
  for b, row in enumerate(rows):
    assert beam_BR[b, :3].tolist() == [0, row, 1]
    assert np.flatnonzero(batch.beam_has_answer_BR[b]).tolist() == [1]
    assert (batch.gold_start_BKA[b, 1] >= 0).any()
  assert beam_BR[5].tolist() == list(range(20))
  config.reads_annotated_passages = False
  batch = make_stage(config, store, store.vocabulary()).make_batch(queries, params, snapshot)
  assert (batch.beam_emb_BRD[:, :, 0] == np.arange(20)).all()


class _FirstPassages:
  def search(self, query_emb_BD, k):
    shape = (len(query_emb_BD), k)
    return np.zeros(shape, np.float32), np.broadcast_to(np.arange(k), shape)


def test_annotations_that_are_not_in_the_corpus_are_refused(sample_store, tmp_path):
  config = annotated_config(sample_store, tmp_path / "q.jsonl", "nowhere", "elsewhere")
  with pytest.raises(ValueError, match='no question of .* has an "annotated" article or passage that is in'):
    make_stage(config, sample_store, sample_store.vocabulary())


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"beam_size": 1, "num_passages": 2}, "beam_size=1 is less than num_passages=2, which are read of the beam; set "
     "--config.beam_size to 2 or more"),
    ({"beam_size": 0}, "beam_size=0 is less than num_passages=5, which are read of the beam; set --config.beam_size to "
     "5 or more"),
    ({"num_passages": 0}, "num_passages=0, but the corpus has 40 passages; set it to 1 to 40"),
  ],
)  # fmt: skip
def test_sizes_that_can_not_be_are_refused_before_anything_is_made(sample_store, tmp_path, fields, message):
  (tmp_path / "q.jsonl").write_text('{"question": "what?", "answer": ["the"]}\n')
  config = tiny_config("finetune", sample_store)
  config.update(questions=str(tmp_path / "q.jsonl"), **fields)
  with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
    make_stage(config, sample_store, sample_store.vocabulary())


@pytest.mark.parametrize(("stage", "is_said"), [("ict", False), ("mlm", True), ("pretrain", True), ("finetune", True)])
def test_passages_that_are_too_long_for_the_reader_are_counted(sample_store, tmp_path, capsys, stage, is_said):
  (tmp_path / "q.jsonl").write_text('{"question": "what?", "answer": ["the"]}\n')
  config = tiny_config(stage, sample_store)
  config.update(query_length=32, joint_length=96)
  if stage == "finetune":
    config.questions = str(tmp_path / "q.jsonl")
  make_stage(config, sample_store, sample_store.vocabulary())
  num_cut = int((sample_store.body_length_N > 63).sum())
  said = f"{num_cut} of 40 passages of {sample_store.path} have more than the 63 wordpieces that the reader sees"
  assert num_cut > 0 and (said in capsys.readouterr().err) == is_said


def test_the_beam_of_a_small_corpus_is_all_of_it(sample_store, tmp_path, monkeypatch):
  asked = []

  def search(retriever, params, queries, index, num_passages, **options):
    asked.append(num_passages)
    raise InterruptedError  # the rest of the batch is not looked at here

  monkeypatch.setattr(stages, "search", search)
  (tmp_path / "q.jsonl").write_text('{"question": "what?", "answer": ["the"]}\n')
  config = tiny_config("finetune", sample_store)
  config.update(questions=str(tmp_path / "q.jsonl"), num_passages=len(sample_store), beam_size=5000)
  stage = make_stage(config, sample_store, sample_store.vocabulary())
  with pytest.raises(InterruptedError):
    stage.make_batch(stage.source.draw(np.arange(2)), {"retriever": None}, None)
  assert asked == [len(sample_store)]


@pytest.mark.parametrize("field", ["reads_null_passage", "reads_annotated_passages"])
def test_fields_for_questions_are_refused_elsewhere(field):
  config = paper_config("pretrain")
  config[field] = True
  with pytest.raises(ValueError, match=f"^{field} is for finetune; leave it at False for pretrain$"):
    make_objective(config, 100)
