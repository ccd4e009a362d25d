"""The seqio tasks: numbered examples in, rows of a QueryBatch out, from any step on."""

import itertools

import numpy as np
import pytest
import seqio

from realm_jax.batch import QueryBatch
from realm_jax.data.queries import MaskedSentenceSource, QuestionSource, SentenceSource
from realm_jax.data.questions import Question
from realm_jax.data.tasks import NumberedExamples, make_task, query_batches

OPTIONS = {"seed": 5, "query_length": 24, "max_masks": 4}


@pytest.fixture(scope="module")
def source(sample_store):
  return MaskedSentenceSource(sample_store, **OPTIONS)


def take(source, num_batches: int, **options) -> list[QueryBatch]:
  return list(itertools.islice(query_batches("queries", source, **options), num_batches))


def equal(one: QueryBatch, other: QueryBatch) -> None:
  for name, x, y in zip(QueryBatch._fields, one, other):
    np.testing.assert_array_equal(x, y, err_msg=name)
    assert x.dtype == y.dtype, name


def test_numbers_start_anywhere_and_are_dealt_to_shards():
  def numbers(first_example, shard_info=None):
    return list(NumberedExamples(first_example).get_dataset(shard_info=shard_info).take(4).as_numpy_iterator())

  assert numbers(0) == [0, 1, 2, 3]
  assert numbers(2**40) == [2**40, 2**40 + 1, 2**40 + 2, 2**40 + 3]
  assert numbers(10, seqio.ShardInfo(index=0, num_shards=3)) == [10, 13, 16, 19]
  assert numbers(10, seqio.ShardInfo(index=2, num_shards=3)) == [12, 15, 18, 21]


def test_shards_together_are_the_stream(source):
  task = make_task("queries", source, first_example=7)
  positions = []
  for index in range(2):
    shard = seqio.ShardInfo(index=index, num_shards=2)
    dataset = task.get_dataset(None, split="train", shuffle=False, shard_info=shard).take(70)
    positions.append(np.stack([example["token_id_BQ"] for example in dataset.as_numpy_iterator()]))
  dealt = np.stack(positions, 1).reshape(140, -1)
  np.testing.assert_array_equal(dealt, source.draw(np.arange(7, 147)).token_id_BQ)


def test_an_example_has_the_fields_of_a_batch(source):
  (example,) = make_task("queries", source).get_dataset(None, split="train", shuffle=False).take(1).as_numpy_iterator()
  assert set(example) == set(QueryBatch._fields)
  equal(QueryBatch(**{k: np.asarray(v)[None] for k, v in example.items()}), source.draw(np.arange(1)))


@pytest.mark.parametrize("batch_size", [3, 64, 100])  # batches that divide the chunk of 64, and that don't
def test_batch_t_holds_its_numbers(source, batch_size):
  for t, batch in enumerate(take(source, 3, batch_size=batch_size)):
    equal(batch, source.draw(np.arange(t * batch_size, (t + 1) * batch_size)))


def test_a_stream_from_step_t_equals_the_stream_from_0_at_t(source):
  whole = take(source, 9, batch_size=10)
  for first_step in (1, 6):
    for one, other in zip(take(source, 3, batch_size=10, first_step=first_step), whole[first_step:]):
      equal(one, other)


def test_every_kind_goes_through(sample_store):
  questions = [Question(f"who was number {i}?", ("x",)) for i in range(5)]
  vocabulary = sample_store.vocabulary()
  for source in (SentenceSource(sample_store, **OPTIONS), QuestionSource(questions, vocabulary, **OPTIONS)):
    (batch,) = take(source, 1, batch_size=8, first_step=4)
    equal(batch, source.draw(np.arange(32, 40)))
