"""The rule by which launch/openqa_corpus.py chooses passages."""

import importlib.util
import json
import pathlib

import pytest

from realm_jax.data.answers import has_answer

SCRIPT = pathlib.Path(__file__).parent.parent / "launch" / "openqa_corpus.py"


@pytest.fixture(scope="module")
def script():
  spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def write(path, answers):
  path.write_text("".join(json.dumps({"question": f"q{a}?", "answer": [a]}) + "\n" for a in answers))
  return str(path)


def holders(store, answer, *, regex=False):
  return {i for i in range(len(store)) if has_answer(store.body(i), [answer], regex=regex)}


def test_passages_with_answers_come_first_and_others_fill_up(script, sample_store, tmp_path):
  answers, pattern = ("was", "1867", "in", "xyzzy"), "18[0-9]9"
  names = [write(tmp_path / "dev.jsonl", answers), write(tmp_path / "curatedtrec.jsonl", [pattern])]
  few = script.choose_passages(sample_store, names, 0)
  assert few == sorted(set(few)) and len(few) <= 4 * 5
  held = {answer: holders(sample_store, answer) for answer in answers} | {
    pattern: holders(sample_store, pattern, regex=True)
  }
  assert len(held["was"]) > 5 > len(held["1867"]) > 0 and held["xyzzy"] == set()
  for answer, rows in held.items():
    assert len(rows & set(few)) >= min(5, len(rows)), answer
  more = script.choose_passages(sample_store, names, len(few) + 7)
  assert len(more) == len(few) + 7 and set(few) <= set(more)


def test_training_questions_get_the_best_passage_with_an_answer(script, sample_store):
  asked = "Who discovered radium and polonium?"
  _, found = script.Bm25(sample_store).retrieve([asked], 20)
  words = [set(script.matchable(sample_store.body(i)).split()) for i in found[0]]
  answer = next(iter(words[2] - words[0] - words[1]))  # first held by BM25's third
  questions = [script.Question(asked, (answer,)), script.Question("Who else?", ("xyzzy",))]
  annotated, rows = script.annotate(sample_store, questions, 5)
  assert annotated == [script.Question(asked, (answer,), (sample_store.id(found[0, 2]),))]
  assert rows == sorted([found[0, 0], found[0, 2]])
  assert script.annotate(sample_store, questions, 0) == ([], [])


def test_a_question_with_two_answers_wants_no_more_passages(script, sample_store, tmp_path):
  (tmp_path / "q.jsonl").write_text(json.dumps({"question": "q?", "answer": ["was", "in"]}))
  assert len(script.choose_passages(sample_store, [str(tmp_path / "q.jsonl")], 0)) == 5
