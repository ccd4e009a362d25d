"""Retriever and reader over questions: the numbers of five questions, one of each outcome, by hand."""

import json
import math
import types

import numpy as np
import pytest

from realm_jax.data.build import build_passages
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import Question
from realm_jax.data.spans import NoTagger
from realm_jax.serving import evaluation_run
from realm_jax.serving.evaluation import KINDS
from realm_jax.serving.evaluation_run import (
  answers_over_null,
  answers_to_show,
  evaluate_run,
  report_cases,
  with_closed_book,
)
from realm_jax.serving.open_qa import Answer

TEXTS = ["Paris is big", "Rome is old", "Oslo is cold", "Bern is small", "Lima is far"]
# Question, right answers, passages found, and the word that the reader marks.
CASES = [
  ("right", ("Rome",), [0, 1, 2, 3], (1, "Rome")),
  ("alias", ("old Rome",), [1, 0, 2, 3], (1, "Rome")),
  ("not read", ("Oslo",), [2, 1, 3, 0], (1, "Rome")),
  ("not retrieved", ("Bern",), [0, 1, 3, 2], (0, "Paris")),
  ("not in the corpus", ("Kyiv",), [0, 1, 2, 3], (0, "big")),
]
QUESTIONS = [Question(kind, answers) for kind, answers, *_ in CASES]


@pytest.fixture(scope="module")
def store(sample_vocabulary, tmp_path_factory):
  path = tmp_path_factory.mktemp("cities")
  lines = [json.dumps({"id": f"p{i}", "title": f"T{i}", "text": text}) for i, text in enumerate(TEXTS)]
  (path / "cities.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
  build_passages(
    path / "cities.jsonl", path / "store", vocabulary=sample_vocabulary, passage_length=64, tagger=NoTagger(),
    whole=True,
  )  # fmt: skip
  return PassageStore(path / "store")


class Table:
  """Finds and marks what stands in CASES, and keeps the scores that the reader was given."""

  config = types.SimpleNamespace(num_passages=2)

  def __init__(self, null_probability=()):
    self.given, self.null_probability = [], dict(null_probability)

  def retrieve(self, questions, k):
    rows = [passages[:k] for kind, _, passages, _ in CASES if kind in questions]
    return np.tile(np.arange(9.0, 0, -1)[:k], (len(rows), 1)), np.array(rows)

  def read(self, questions, score_BK, passage_id_BK):
    self.given += [None] * len(questions) if score_BK is None else score_BK.tolist()
    answers = []
    for question, row in zip(questions, passage_id_BK.tolist()):
      (best, word) = next(marked for kind, _, _, marked in CASES if kind == question)
      spans = [(i, word if i == best else "is") for i in row]
      spans.sort(key=lambda span: span[0] != best)
      null = self.null_probability.get(question)
      answers.append(
        [
          Answer(w, 0.5, f"p{i}", f"T{i}", TEXTS[i], TEXTS[i].index(w), TEXTS[i].index(w) + len(w), 2.0, 1.0, null)
          for i, w in spans
        ]
      )
    return answers


def test_each_outcome(store):
  model = Table()
  evaluated = evaluate_run(model, model, store, QUESTIONS, recall_at=[1, 3, 4])
  assert evaluated.kinds == [kind for kind, *_ in CASES] and set(evaluated.kinds) == set(KINDS)
  scores = {name: score.tolist() for name, score in evaluated.scores.items()}
  assert scores["recall@1"] == [0, 0, 1, 0, 0]  # "old Rome" is nowhere
  assert scores["recall@3"] == [1, 0, 1, 1, 0] == scores["token_recall@3"] == scores["substring_recall@3"]
  assert scores["reader_oracle"] == [1, 0, 1, 0, 0]  # 2 passages were read
  assert scores["exact_match"] == [1, 0, 0, 0, 0]
  assert scores["f1"] == pytest.approx([1, 2 / 3, 0, 0, 0])
  assert evaluated.is_answerable_B.tolist() == [True, False, True, True, False]
  assert evaluated.retrieved.passage_id_BK.shape == (5, 4)
  assert model.given == [[9.0, 8.0]] * 5


def test_of_another_retriever_the_reader_sees_no_scores(store):
  reader = Table()
  evaluated = evaluate_run(Table(), reader, store, QUESTIONS, recall_at=[1])
  assert reader.given == [None] * 5
  assert evaluated.retrieved.score_BK[0].tolist() == [9.0, 8.0]  # the files have BM25's
  assert evaluated.retrieved.passage_id_BK.shape == (5, 2)  # as many as are read


def test_answers_that_are_withheld_are_wrong_and_counted(store):
  """Of the five questions three are answered, one of them rightly; the alias is withheld, which is none then."""
  null_probability = {"right": 0.1, "alias": 0.8, "not read": 0.3, "not retrieved": 0.5, "not in the corpus": 0.9}
  model = Table(null_probability)
  evaluated = evaluate_run(model, model, store, QUESTIONS, recall_at=[1], no_answer_above=0.5)
  assert evaluated.predictions == ["Rome", None, "Rome", "Paris", None]
  assert evaluated.scores["exact_match"].tolist() == [1, 0, 0, 0, 0]
  assert evaluated.kinds == ["right", "not in the corpus", "not read", "not retrieved", "not in the corpus"]
  assert evaluated.selective == {
    "answered": 60.0, "exact_match_answered": 33.33, "exact_match_of_surest": {"25": 50.0, "50": 33.33, "75": 25.0},
    "exact_match_of_least_null": {"25": 50.0, "50": 33.33, "75": 25.0},
    "null_auc": 1.0,  # the passages read answer the first and the third question
  }  # fmt: skip
  assert report_cases(evaluated, store, QUESTIONS)[1].prediction == ""
  article = [Question("alias", ("The The",))]  # which normalises to nothing
  assert evaluate_run(model, model, store, article, recall_at=[1], no_answer_above=0.5).scores["f1"].tolist() == [0]


def test_closed_book_scores_stand_beside_the_others(store):
  evaluated = evaluate_run(Table(), None, store, QUESTIONS, recall_at=[1])
  with_both = with_closed_book(evaluated, ["rome", "rome", "Bern", "bern", "far"], QUESTIONS, regex=False)
  assert with_both.scores.keys() - evaluated.scores.keys() == {"closed_book_exact_match", "closed_book_f1"}
  assert with_both.scores["closed_book_exact_match"].tolist() == [1, 0, 0, 1, 0]
  assert with_both.scores["closed_book_f1"].tolist() == pytest.approx([1, 2 / 3, 0, 1, 0])


def test_retrieval_alone(store):
  """Nobody read: what the largest k finds counts as given."""
  evaluated = evaluate_run(Table(), None, store, QUESTIONS, recall_at=[1, 3])
  assert evaluated.kinds == ["not read", "not in the corpus", "not read", "not read", "not in the corpus"]
  assert not {"exact_match", "reader_oracle"} & evaluated.scores.keys() and evaluated.answers is None
  cases = report_cases(evaluated, store, QUESTIONS, num_shown=2)
  assert [[p.text for p in case.passages] for case in cases][2] == [TEXTS[2], TEXTS[1]]
  assert cases[2].prediction is None and cases[2].passages[0].has_answer
  assert cases[2].passages[0].scores == "retrieval score 9.00"


def test_of_many_passages_that_were_read_ten_are_shown():
  """The best 5 of 30, then the first others that hold an answer: ranks 6 to 29 but for those of no answer."""
  read = [Answer("x", 0.5, f"p{i}", "T", "x y", 0, 1, 2.0, 1.0) for i in range(30)]
  holding = {f"p{i}" for i in (2, 7, 9, 11, 20, 21, 22, 29)}
  assert [a.passage_id for a in answers_to_show(read, holding)] == [
    *(f"p{i}" for i in range(5)), "p7", "p9", "p11", "p20", "p21",
  ]  # fmt: skip
  assert answers_to_show(read[:3], holding) == read[:3]


def test_no_more_answers_than_these_are_kept(store, monkeypatch):
  monkeypatch.setattr(evaluation_run, "answers_to_show", lambda answers, holding, num_best: answers[:1])
  evaluated = evaluate_run(Table(), Table(), store, QUESTIONS, recall_at=[1])
  assert [len(answers) for answers in evaluated.answers] == [1] * 5
  assert (evaluated.num_read, evaluated.predictions[0]) == (2, "Rome")


def test_the_report_says_how_many_more_were_read(store):
  model = Table()
  evaluated = evaluate_run(model, model, store, QUESTIONS, recall_at=[1])
  assert evaluated.num_read == 2
  assert {case.num_more for case in report_cases(evaluated, store, QUESTIONS)} == {0}
  of_many = evaluated._replace(num_read=100)
  assert {(len(case.passages), case.num_more) for case in report_cases(of_many, store, QUESTIONS)} == {(2, 98)}


def test_answers_over_the_null_passage(store):
  null_probability = dict(zip([kind for kind, *_ in CASES], (0.1, 0.5, 1.0, 0.25, 0.0)))
  model = Table(null_probability)
  over_null_B = answers_over_null(evaluate_run(model, model, store, QUESTIONS, recall_at=[1]))
  assert over_null_B == pytest.approx([math.log(5), 0, math.log(0.5), math.log(2), math.inf])
  assert answers_over_null(evaluate_run(Table(), Table(), store, QUESTIONS, recall_at=[1])) is None
  assert answers_over_null(evaluate_run(Table(), None, store, QUESTIONS, recall_at=[1])) is None


def test_report_cases(store):
  model = Table()
  evaluated = evaluate_run(model, model, store, QUESTIONS, recall_at=[1])
  cases = report_cases(evaluated, store, QUESTIONS)
  assert [(c.question, c.prediction, c.kind) for c in cases[:2]] == [
    ("right", "Rome", "right"),
    ("alias", "Rome", "alias"),
  ]
  first, second = cases[2].passages  # as the reader ranks them
  assert (first.text[first.start : first.end], first.has_answer) == ("Rome", False)
  assert (second.title, second.has_answer) == ("T2", True)
