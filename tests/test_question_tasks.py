"""Question sets as seqio tasks, and those that come from TFDS, with made-up data."""

import json

import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from realm_jax.data.question_tasks import TFDS_SETS, question_task
from realm_jax.data.questions import Question, is_dev, read_questions

ANSWERS = {  # as each set of TFDS keeps them
  "nq_open": {"answer": ["Ann", "Bob"]},
  "web_questions": {"answers": ["Ann", "Bob"]},
  "trivia_qa": {"answer": {"aliases": ["Ann", "Bob"]}},
  "squad_open": {"answers": {"text": ["Ann", "Bob"]}},
}


def made_up(name):
  """TFDS as if it had 40 training and 3 test questions of a set."""

  def as_dataset(builder, split, **_):
    count = {"train": 40, TFDS_SETS[name].test_split: 3}[str(split)]
    questions = [f"{split} {i}?" for i in range(count)]
    answers = {
      k: {j: [w] * count for j, w in v.items()} if isinstance(v, dict) else [v] * count
      for k, v in ANSWERS[name].items()
    }
    return tf.data.Dataset.from_tensor_slices({"question": questions, **answers})

  return tfds.testing.mock_data(as_dataset_fn=as_dataset)


@pytest.mark.parametrize("name", TFDS_SETS)
def test_a_set_of_tfds(name):
  with made_up(name):
    whole, train, dev, test = (read_questions(name + s).questions for s in ("", ":train", ":dev", ":test"))
  assert whole == [Question(f"train {i}?", ("Ann", "Bob")) for i in range(40)]
  held_out = is_dev([q.question for q in whole])
  assert dev == [q for q, is_out in zip(whole, held_out) if is_out] and len(dev) > 0
  assert train == [q for q, is_out in zip(whole, held_out) if not is_out]
  assert test == [Question(f"{TFDS_SETS[name].test_split} {i}?", ("Ann", "Bob")) for i in range(3)]


@pytest.mark.parametrize("name", TFDS_SETS)
def test_the_columns_are_those_of_tfds(name):
  with tfds.testing.mock_data(num_examples=4):  # random text in the builder's own columns
    questions, answers_are_regex, skipped = read_questions(name)
  assert (len(questions), answers_are_regex, skipped) == (4, False, "")


def test_an_unknown_set_is_named():
  message = r"^no question set 'nq'; TFDS has nq_open, web_questions, trivia_qa, squad_open, and a file's name ends in"
  with pytest.raises(ValueError, match=message):
    read_questions("nq:train")


@pytest.fixture
def path(tmp_path):
  lines = [{"question": f"who is number {i}?", "answer": [f"x{j}" for j in range(1 + i % 3)]} for i in range(100)]
  (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(tmp_path / "q.jsonl")


def test_a_file_as_a_task(path):
  task = question_task(path)
  for split in ("train", "dev", "all"):
    dataset = task.get_dataset(None, split=split, shuffle=False).as_numpy_iterator()
    read = [Question(e["question"].decode(), tuple(a.decode() for a in e["answers"])) for e in dataset]
    assert read == read_questions(f"{path}:{split}").questions
  assert set(task.splits) == {"train", "dev", "all"}
  assert set(question_task("nq_open").splits) == {"train", "dev", "test", "all"}


def test_tasks_make_a_mixture(path):
  mixture = seqio.Mixture("both", [(question_task(path), 1.0), (question_task(path + ".gz"), 1.0)])
  assert mixture.total_rate == 2.0


def test_metrics_of_a_task(path):
  (scores,) = question_task(path).metric_fns
  assert scores([["the cat sat", "dog"], ["x"]], ["cat", "X!"]) == {"exact_match": 50.0, "f1": 83.33}
  for task in (question_task("curatedtrec.train.jsonl"), question_task(path, regex=True)):
    (scores,) = task.metric_fns
    assert scores([[r"19\d\d"], [r"18\d\d", "x"], ["a"]], ["1945 or so", "in 1812", "A"]) == {"exact_match": 66.67}
