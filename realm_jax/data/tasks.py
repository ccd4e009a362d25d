"""The queries as seqio tasks. It imports seqio and TensorFlow, which take seconds, so it is imported late."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # JAX sets 1, at which TensorFlow tells of each GPU it lacks
  os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # before the import

import numpy as np
import seqio
import tensorflow as tf

from realm_jax.batch import QueryBatch
from realm_jax.data.queries import QuerySource

# Single examples are drawn so many at a time: large enough that NumPy's call overhead vanishes.
_CHUNK = 64

_RANK = {
  "token_id_BQ": 1,
  "sentence_B2": 1,
  "mask_position_BM": 1,
  "mask_target_BM": 1,
  "mask_weight_BM": 1,
  "negative_id_BK": 1,
}
_DTYPE = {"sentence_is_removed_B": tf.bool, "mask_weight_BM": tf.float32}


class Numbers(seqio.DataSource):
  """The numbers from `first` on. A number names an example or a step, so a stream starts anywhere at no cost."""

  def __init__(self, first: int):
    self._first = first
    super().__init__(splits=["train"], num_input_examples=None)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return True

  def get_dataset(self, split="train", shuffle=False, seed=None, shard_info=None, num_epochs=1) -> tf.data.Dataset:
    """Every `shard_info.num_shards`-th number; order and epochs belong to the drawing, not to the source."""
    del split, shuffle, seed, num_epochs
    shard = shard_info or seqio.ShardInfo(index=0, num_shards=1)
    return tf.data.Dataset.range(self._first + shard.index, np.iinfo(np.int64).max, shard.num_shards)

  def list_shards(self, split: str) -> list[str]:
    return [split]


def make_task(name: str, source: QuerySource, *, first_example: int = 0) -> seqio.Task:
  """A seqio task whose examples are rows of a QueryBatch, keyed by its field names; mixtures take such tasks."""

  def draw_rows(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.batch(_CHUNK).map(_drawing(source)).unbatch()

  return seqio.Task(
    name, source=Numbers(first_example), preprocessors=[draw_rows], output_features=_features(extra_rank=0)
  )


def make_batch_task(
  name: str, source: QuerySource, *, batch_size: int, first_step: int = 0, rows: np.ndarray | None = None
) -> seqio.Task:
  """A seqio task whose examples are whole batches, of step t's numbers t * batch_size and so on, or a host's rows.

  tf.data takes far longer to put single rows together than NumPy to draw them, so nothing is put together.
  """
  draw = _drawing(source)

  def draw_batches(dataset: tf.data.Dataset) -> tf.data.Dataset:
    row = tf.constant(np.arange(batch_size) if rows is None else rows, tf.int64)
    return dataset.map(lambda step: draw(step * batch_size + row))

  return seqio.Task(
    name, source=Numbers(first_step), preprocessors=[draw_batches], output_features=_features(extra_rank=1)
  )


def query_batches(
  name: str, source: QuerySource, *, batch_size: int, first_step: int = 0, rows: np.ndarray | None = None
) -> Iterator[QueryBatch]:
  """Endless batches from step `first_step` on; batch t holds the examples t * batch_size, ..., whatever came before.

  Args:
    name: of the task.
    source: draws the examples.
    batch_size: of all hosts together.
    first_step: the first batch.
    rows: of each batch that this host reads; None: all.
  """
  task = make_batch_task(name, source, batch_size=batch_size, first_step=first_step, rows=rows)
  dataset = task.get_dataset(sequence_length=None, split="train", shuffle=False, num_epochs=1)
  options = tf.data.Options()
  options.threading.private_threadpool_size = 2  # the steps need the cores
  for example in dataset.prefetch(2).with_options(options).as_numpy_iterator():
    yield QueryBatch(**{field: example[field] for field in QueryBatch._fields})


def make_mixture(name: str, sources: Mapping[str, tuple[QuerySource, float]]) -> seqio.Mixture:
  """A seqio mixture of {task name: (source, rate)}, for those who work with seqio.

  It can start only from the beginning: how many examples of each task came before step t is known once they have been
  drawn. `mixing.MixedSource` mixes by number, and so does training.
  """
  tasks = [(make_task(task_name, source), rate) for task_name, (source, rate) in sources.items()]
  return seqio.Mixture(name, tasks)


def _drawing(source: QuerySource) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
  """Example numbers [n] -> the fields of their QueryBatch."""
  example = source.draw(np.arange(1))
  types = [_DTYPE.get(field, tf.int32) for field in QueryBatch._fields]

  def draw(number: tf.Tensor) -> dict[str, tf.Tensor]:
    columns = tf.numpy_function(lambda n: list(source.draw(n)), [number], types)
    for column, field in zip(columns, example):
      column.set_shape((number.shape[0], *field.shape[1:]))
    return dict(zip(QueryBatch._fields, columns))

  return draw


def _features(*, extra_rank: int) -> dict[str, seqio.Feature]:
  return {
    field: seqio.Feature(
      seqio.PassThroughVocabulary(size=2**31 - 1),
      add_eos=False,
      rank=_RANK.get(field, 0) + extra_rank,
      dtype=_DTYPE.get(field, tf.int32),
    )
    for field in QueryBatch._fields
  }
