"""The seqio tasks: numbered examples in, rows of a QueryBatch out, from any step on."""

import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import seqio
from batches import equal

from realm_jax.batch import QueryBatch
from realm_jax.data.mixing import masked_sentences
from realm_jax.data.queries import MaskedSentenceSource, QuestionSource, SentenceSource
from realm_jax.data.questions import Question
from realm_jax.data.tasks import Numbers, make_mixture, make_task, query_batches

ROOT = pathlib.Path(__file__).parents[1]
OPTIONS = {"seed": 5, "query_length": 24, "max_masks": 4}


@pytest.fixture(scope="module")
def source(sample_store):
  return MaskedSentenceSource(sample_store, **OPTIONS)


def take(source, num_batches: int, **options) -> list[QueryBatch]:
  batches = list(itertools.islice(query_batches("queries", source, **options), num_batches))
  assert len(batches) == num_batches
  return batches


def test_tensorflow_is_quiet_where_jax_was_imported_first():
  """JAX sets the variable too, to a level at which TensorFlow complains of each machine without a GPU."""
  code = "import jax; import realm_jax.data.tasks; import os; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
  environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
  for given, expected in (({}, "3"), ({"TF_CPP_MIN_LOG_LEVEL": "0"}, "0")):
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment | given, cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True)
    assert result.stdout.splitlines()[-1] == expected


def test_numbers_start_anywhere_and_are_dealt_to_shards():
  def numbers(first_example, shard_info=None):
    return list(Numbers(first_example).get_dataset(shard_info=shard_info).take(4).as_numpy_iterator())

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


@pytest.fixture(scope="module", params=["ict", "salient_span", "random_span", "random_token", "questions", "mixture"])
def any_source(request, sample_store):
  if request.param == "ict":
    return SentenceSource(sample_store, **OPTIONS)
  if request.param == "questions":
    questions = [Question(f"who was number {i}?", ("x",)) for i in range(5)]
    return QuestionSource(questions, sample_store.vocabulary(), **OPTIONS)
  mixture = f"{sample_store.path}:0.4,{sample_store.path}/:0.6" if request.param == "mixture" else ""
  masking = "salient_span" if request.param == "mixture" else request.param
  return masked_sentences(sample_store, masking=masking, mixture=mixture, **OPTIONS)


def test_hosts_together_are_one_host_after_any_resume(any_source):
  """Order and masks depend on seed and step alone, for every kind, masking and mixture."""
  whole = take(any_source, 4, batch_size=16)
  for t, batch in enumerate(whole):
    equal(batch, any_source.draw(np.arange(16 * t, 16 * t + 16)))
  for count, first_step in ((1, 1), (2, 2), (8, 3)):
    options = {"batch_size": 16, "first_step": first_step}
    shares = np.split(np.arange(16), count)
    hosts = [take(any_source, 4 - first_step, rows=rows, **options) for rows in shares]
    for t, parts in enumerate(zip(*hosts, strict=True), first_step):
      equal(QueryBatch(*map(np.concatenate, zip(*parts))), whole[t])


def test_a_host_reads_any_rows_of_a_batch(any_source):
  rows = np.array([1, 4, 5, 15])
  (batch,) = take(any_source, 1, batch_size=16, first_step=2, rows=rows)
  equal(batch, any_source.draw(32 + rows))


def test_a_seqio_mixture_has_its_rates(sample_store):
  sources = {
    "sentences": (SentenceSource(sample_store, **OPTIONS), 1.0),
    "spans": (MaskedSentenceSource(sample_store, **OPTIONS), 3.0),
  }
  mixture = make_mixture("both", sources)
  assert mixture.total_rate == 4.0

  def masks():
    dataset = mixture.get_dataset(None, split="train", shuffle=False, seed=7, num_epochs=1).take(200)
    return [example["mask_weight_BM"].any() for example in dataset.as_numpy_iterator()]

  assert abs(np.mean(masks()) - 0.75) < 4 * (0.75 * 0.25 / 200) ** 0.5
  assert masks() == masks()
