"""The sample encyclopedia keeps what it promises: sizes, verbatim answers, disjoint splits."""

import collections
import itertools
import json

import pytest

from realm_jax.data.answers import has_answer, normalize_answer
from realm_jax.data.articles import Rejections
from realm_jax.data.questions import read_questions
from realm_jax.data.sample import SAMPLE_PASSAGES, SAMPLE_QUESTIONS
from realm_jax.data.sources import read_articles
from realm_jax.data.splitting import NUM_SPECIAL_TOKENS


@pytest.fixture(scope="module")
def passages() -> dict[str, str]:
  return {a.id: a for a in read_articles([str(SAMPLE_PASSAGES)], rejections=Rejections(), strict=True)}


@pytest.fixture(scope="module")
def questions() -> dict[str, list[dict]]:
  return {
    split: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for split, path in SAMPLE_QUESTIONS.items()
  }


def test_passages_have_60_to_120_words(passages):
  assert len(passages) >= 300
  lengths = {id_: len(p.text.split()) for id_, p in passages.items()}
  assert {id_: n for id_, n in lengths.items() if not 60 <= n <= 120} == {}


def test_passages_are_titled_and_no_text_comes_twice(passages):
  assert all(p.title for p in passages.values())
  assert len({p.text for p in passages.values()}) == len({p.title for p in passages.values()}) == len(passages)


def test_passages_fit_bert(passages, sample_vocabulary):
  title = sample_vocabulary.encode([p.title for p in passages.values()])
  text = sample_vocabulary.encode([p.text for p in passages.values()])
  assert max(len(a.token_id) + len(b.token_id) for a, b in zip(title, text)) + NUM_SPECIAL_TOKENS <= 256


def test_there_are_800_questions_in_three_splits(questions):
  assert set(questions) == {"train", "dev", "test"}
  assert sum(map(len, questions.values())) >= 800
  for split, records in questions.items():
    assert len(records) >= 80, split
    read = read_questions(SAMPLE_QUESTIONS[split]).questions
    assert [(q.question, list(q.answers)) for q in read] == [(r["question"], r["answer"]) for r in records]


def test_answers_stand_verbatim_in_their_passage(questions, passages):
  missing = [
    (record["question"], answer)
    for record in itertools.chain(*questions.values())
    for answer in record["answer"]
    if answer not in passages[record["passage"]].text
    or not has_answer(passages[record["passage"]].text, [answer])
    or not normalize_answer(answer)
  ]
  assert missing == []


def test_splits_share_no_passage(questions):
  of_split = {split: {r["passage"] for r in records} for split, records in questions.items()}
  for one, other in itertools.combinations(of_split, 2):
    assert of_split[one] & of_split[other] == set(), (one, other)


def test_no_question_comes_twice(questions):
  count = collections.Counter(normalize_answer(r["question"]) for r in itertools.chain(*questions.values()))
  assert [question for question, number in count.items() if number > 1] == []


def test_no_question_gives_its_answer_away(questions):
  told = [r["question"] for r in itertools.chain(*questions.values()) if has_answer(r["question"], r["answer"])]
  assert told == []


def test_a_third_is_worded_freely(questions):
  for split, records in questions.items():
    count = collections.Counter(r["wording"] for r in records)
    assert set(count) == {"close", "free"}
    assert 0.3 <= count["free"] / len(records) <= 0.37, split
