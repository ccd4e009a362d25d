"""Which passages the gradient pushes: the numbers of the trainer's own objective, and how inspect shows them."""

import json

import jax
import numpy as np
import pytest
from tiny_runs import write_run

from realm_jax.batch import NULL_PASSAGE
from realm_jax.data.queries import mask_answer
from realm_jax.model import losses
from realm_jax.serving.directions import make_query, score_gradients
from realm_jax.serving.open_qa import OpenQA
from realm_jax.training.objectives import masked_word_objective, question_objective


@pytest.fixture(scope="module")
def runs(sample_store, tmp_path_factory):
  path = tmp_path_factory.mktemp("directions")
  return {stage: write_run(path / stage, sample_store, stage=stage, steps=(20,)) for stage in ("pretrain", "finetune")}


def without_dropout(open_qa):
  def of(module):
    return module.clone(bert=module.bert.copy({"dropout_rate": 0.0, "attention_dropout_rate": 0.0}))

  return of(open_qa.retriever), of(open_qa.reader)


def answer_in(store, row):
  """A word that a passage has, so that it is an answer there."""
  return store.body(row).split()[3].strip(".,")


def test_an_answers_directions_are_those_of_the_objective(runs, monkeypatch):
  open_qa = OpenQA.load(runs["finetune"].path)
  question, k = "Who was Marie Curie?", open_qa.config.num_passages
  queries = make_query(open_qa, question, None)
  row_BR = open_qa.search(queries, k)[1]
  answer = answer_in(open_qa.store, int(row_BR[0, 1]))
  found = score_gradients(open_qa, question, answer)

  batch = open_qa.assembler.question_batch(queries, [[answer]], row_BR, open_qa.snapshot, k)
  objective = question_objective(*without_dropout(open_qa))
  loss_of = losses.question_loss

  def reader_loss(delta_BR):
    def moved(beam_score_BR, has_answer_BR, score_BK, *rest):
      return loss_of(beam_score_BR, has_answer_BR, score_BK + delta_BR, *rest)

    monkeypatch.setattr(losses, "question_loss", moved)
    return objective(open_qa.params, batch, jax.random.key(0))[1]["reader_loss"]

  expected = -jax.jit(jax.grad(reader_loss))(np.zeros(row_BR.shape, np.float32))[0]
  np.testing.assert_allclose([found[i] for i in row_BR[0].tolist()], expected, atol=1e-5)
  assert max(found.values()) > 1e-3 and sum(found.values()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("per_example", [False, True])
def test_a_masks_directions_are_those_of_the_objective(runs, monkeypatch, per_example):
  open_qa = OpenQA.load(runs["pretrain"].path)
  open_qa.config.marginalize_per_example = per_example
  # An untrained reader says the same of all passages.
  open_qa.params = open_qa.params | {"reader": jax.tree.map(lambda x: 4 * x, open_qa.params["reader"])}
  sentence, answer = "[MASK] discovered radium together with her husband.", "Marie Curie"
  queries, k = make_query(open_qa, sentence, answer), open_qa.config.num_passages
  row_BR = open_qa.search(queries, k)[1]
  found = score_gradients(open_qa, sentence, answer)
  assert list(found) == [NULL_PASSAGE, *row_BR[0, : k - 1].tolist()]

  batch = open_qa.assembler.masked_batch(queries, row_BR, k)
  objective = masked_word_objective(*without_dropout(open_qa), per_example=per_example)
  loss_of = losses.masked_word_loss

  def loss(delta_BK):
    monkeypatch.setattr(
      losses, "masked_word_loss", lambda score_BK, *rest, **options: loss_of(score_BK + delta_BK, *rest, **options)
    )
    return objective(open_qa.params, batch, jax.random.key(0))[0]

  expected = -jax.jit(jax.grad(loss))(np.zeros((1, k), np.float32))[0]
  np.testing.assert_allclose(list(found.values()), expected, atol=1e-5)
  assert max(map(abs, found.values())) > 1e-3


def test_the_sentences_own_passage_is_not_read(runs):
  open_qa = OpenQA.load(runs["pretrain"].path)
  queries = make_query(open_qa, "[MASK] it.", "Thus")
  own = int(open_qa.search(queries, 1)[1][0, 0])  # the best one for almost any sentence of this untrained retriever
  body = open_qa.store.body(own)
  sentence = body[: body.index(".") + 1]
  answer = sentence.split()[0]
  read = score_gradients(open_qa, sentence.replace(answer, "[MASK]", 1), answer)
  best = open_qa.search(make_query(open_qa, sentence.replace(answer, "[MASK]", 1), answer), 8)[1][0].tolist()
  assert own in best and list(read) == [NULL_PASSAGE, *[i for i in best if i != own]][: len(read)]


def test_a_sentence_is_masked_where_the_answer_stands(sample_vocabulary):
  queries = mask_answer(
    "In 1898 [MASK]'s wife found it.", "Pierre Curie", sample_vocabulary, query_length=24, max_masks=10
  )
  whole = sample_vocabulary.encode(["In 1898 Pierre Curie's wife found it."])[0].token_id.tolist()
  answer = sample_vocabulary.encode(["Pierre Curie"])[0].token_id.tolist()
  num, first = len(answer), 1 + len(sample_vocabulary.encode(["In 1898"])[0].token_id)
  assert queries.mask_target_BM[0, :num].tolist() == answer
  assert queries.mask_position_BM[0, :num].tolist() == list(range(first, first + num))
  assert queries.mask_weight_BM[0].tolist() == [1] * num + [0] * (10 - num)
  shown = queries.token_id_BQ[0].tolist()
  assert shown[first : first + num] == [sample_vocabulary.mask_id] * num
  whole[first - 1 : first - 1 + num] = [sample_vocabulary.mask_id] * num
  assert shown[: len(whole) + 2] == [sample_vocabulary.cls_id, *whole, sample_vocabulary.sep_id]


@pytest.mark.parametrize(
  ("sentence", "answer", "message"),
  [
    ("[MASK] and [MASK].", "x", "has [MASK] 2 times; write it once"),
    ("one two three four five six seven eight nine [MASK]", "ten", "within the 6 wordpieces of a query; shorten"),
    ("one [MASK]", " ", "no answer ' ' within"),
  ],
)
def test_a_sentence_that_can_not_be_masked(sample_vocabulary, sentence, answer, message):
  with pytest.raises(ValueError) as error:
    mask_answer(sentence, answer, sample_vocabulary, query_length=8, max_masks=10)
  assert message in str(error.value)


def test_the_table_has_a_column_of_gradients(realm, runs):
  open_qa = OpenQA.load(runs["finetune"].path)
  question = "Who was Marie Curie?"
  answer = answer_in(open_qa.store, int(open_qa.retrieve([question], 1)[1][0, 0]))
  flags = (runs["finetune"].path, f"--question={question}", f"--answer={answer}", "--k=7")
  status, out, _ = realm("inspect", *flags, "--json")
  places = json.loads(out)
  expected = {open_qa.store.id(i): g for i, g in score_gradients(open_qa, question, answer).items()}
  assert status == 0 and len(places) == 7
  assert {p["passage_id"]: p["gradient"] for p in places if p["gradient"] is not None} == pytest.approx(expected)
  assert [p["gradient"] is None for p in places] == [False] * 5 + [True] * 2
  header, *rows = realm("inspect", *flags)[1].splitlines()
  assert header.split() == ["rank", "score", "gradient", "passage"]
  for row, place in zip(rows, places, strict=True):
    number, rest = row.split()[2:4]
    g = place["gradient"]
    assert number == ("-" if g is None else f"{g:+.4f}")
    assert (rest == "up", rest == "down") == ((round(g, 4) > 0, round(g, 4) < 0) if g is not None else (False, False))


def test_the_null_passage_is_one_of_those_read(realm, runs):
  status, out, _ = realm("inspect", runs["pretrain"].path, "--question=[MASK] found radium.", "--answer=Curie", "--k=2")
  rows = out.splitlines()[1:]
  assert status == 0 and len(rows) == 8  # seven and the null passage, though two were asked for
  assert rows[-1].split()[:2] == ["-", "-"] and rows[-1].endswith("  the null passage")
  assert sum(float(row.split()[2]) for row in rows) == pytest.approx(0, abs=1e-3)


def test_an_answer_that_no_passage_has_teaches_nothing(realm, runs):
  out = realm("inspect", runs["finetune"].path, "--question=Who?", "--answer=qqq zzz")[1]
  assert out.splitlines()[-1] == "no passage that is read has the answer: there is nothing to learn from"


@pytest.mark.parametrize(
  ("stage", "flags", "message"),
  [
    ("pretrain", ["--question=Who?", "--answer=x"], "of the stage 'pretrain': write [MASK] where the answer stands"),
    ("finetune", ["--question=[MASK] did.", "--answer=x"], "of the stage 'finetune': ask without [MASK]"),
    ("finetune", ["--question=Who?", "--answer= "], "an empty answer"),
    ("finetune", ["--answer=x"], "--before and --answer say more of what a --question finds"),
  ],
)
def test_wrong_use_of_an_answer(realm, runs, stage, flags, message):
  status, _, err = realm("inspect", runs[stage].path, *flags)
  assert status == 1 and message in err


def test_a_run_that_reads_nothing_takes_no_answer(realm, sample_store, tmp_path):
  write_run(tmp_path / "ict", sample_store, stage="ict", steps=(20,))
  status, _, err = realm("inspect", tmp_path / "ict", "--question=Who?", "--answer=x")
  assert status == 1 and "an answer says nothing to a run of the stage 'ict'" in err


def test_a_null_passage_that_is_read_takes_part(runs):
  open_qa = OpenQA.load(runs["finetune"].path)
  question, k = "Who was Marie Curie?", open_qa.config.num_passages
  answer = answer_in(open_qa.store, int(open_qa.search(make_query(open_qa, question, None), k)[1][0, 1]))
  without = score_gradients(open_qa, question, answer)
  open_qa.config.reads_null_passage = True
  found = score_gradients(open_qa, question, answer)
  assert list(found) == [NULL_PASSAGE, *without]
  assert found[NULL_PASSAGE] < 0  # it has no answer, and takes mass from those that have
  np.testing.assert_allclose(sum(found.values()), 0, atol=1e-6)
