"""The queries as seqio tasks: the only file, with the evaluators to come, that imports seqio and TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import: TensorFlow greets with pages of warnings

import numpy as np
import seqio
import tensorflow as tf

from realm_jax.batch import QueryBatch
from realm_jax.data.queries import QuerySource

# Drawn at a time: large enough that NumPy's call overhead vanishes, small against any batch's memory.
_CHUNK = 64

_RANK = {"token_id_BQ": 1, "sentence_B2": 1, "mask_position_BM": 1, "mask_target_BM": 1, "mask_weight_BM": 1}
_DTYPE = {"sentence_is_removed_B": tf.bool, "mask_weight_BM": tf.float32}


class NumberedExamples(seqio.DataSource):
  """The numbers from `first_example` on. A number names an example, so a stream starts anywhere at no cost."""

  def __init__(self, first_example: int):
    self._first_example = first_example
    super().__init__(splits=["train"], num_input_examples=None)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return True

  def get_dataset(self, split="train", shuffle=False, seed=None, shard_info=None, num_epochs=1) -> tf.data.Dataset:
    """Every `shard_info.num_shards`-th number; order and epochs belong to the drawing, not to the source."""
    del split, shuffle, seed, num_epochs
    shard = shard_info or seqio.ShardInfo(index=0, num_shards=1)
    return tf.data.Dataset.range(self._first_example + shard.index, np.iinfo(np.int64).max, shard.num_shards)

  def list_shards(self, split: str) -> list[str]:
    return [split]


def make_task(name: str, source: QuerySource, *, first_example: int = 0) -> seqio.Task:
  """A seqio task whose examples are rows of a QueryBatch, keyed by its field names."""

  def draw(dataset: tf.data.Dataset) -> tf.data.Dataset:
    example = source.draw(np.arange(1))
    types = [_DTYPE.get(field, tf.int32) for field in QueryBatch._fields]

    def draw_chunk(number):
      columns = tf.numpy_function(lambda n: list(source.draw(n)), [number], types)
      for column, field in zip(columns, example):
        column.set_shape((None, *field.shape[1:]))
      return dict(zip(QueryBatch._fields, columns))

    return dataset.batch(_CHUNK).map(draw_chunk).unbatch()

  features = {
    field: seqio.Feature(
      seqio.PassThroughVocabulary(size=2**31 - 1),
      add_eos=False,
      rank=_RANK.get(field, 0),
      dtype=_DTYPE.get(field, tf.int32),
    )
    for field in QueryBatch._fields
  }
  return seqio.Task(name, source=NumberedExamples(first_example), preprocessors=[draw], output_features=features)


def query_batches(name: str, source: QuerySource, *, batch_size: int, first_step: int = 0) -> Iterator[QueryBatch]:
  """Endless batches from step `first_step` on; batch t holds the examples t * batch_size, ..., whatever came before."""
  task = make_task(name, source, first_example=first_step * batch_size)
  dataset = task.get_dataset(sequence_length=None, split="train", shuffle=False, num_epochs=1)
  dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(2)
  options = tf.data.Options()
  options.threading.private_threadpool_size = 2  # the steps need the cores
  for example in dataset.with_options(options).as_numpy_iterator():
    yield QueryBatch(**{field: example[field] for field in QueryBatch._fields})
