"""TensorFlow checkpoints of Google's: BERT, REALM's hub modules, fine-tuned models, and encoded.ckpt."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from realm_jax.weights import names
from realm_jax.weights.contents import Weights
from realm_jax.weights.recognition import recognise
from realm_jax.weights.safetensors_file import read_json
from realm_jax.weights.tensors import WeightsError
from realm_jax.weights.vocabulary_file import read_vocabulary


class TensorFlowCheckpoint:
  """A checkpoint by its prefix; see `Tensors`.

  The `checkpoint` file beside it is not read: in the released ones it names a path of Google's.
  """

  def __init__(self, prefix: pathlib.Path):
    import tensorflow as tf  # noqa: PLC0415 seconds, and only these files need it

    self.where = str(prefix)
    shards = sorted(prefix.parent.glob(f"{prefix.name}.data-?????-of-?????"))
    total = int(shards[0].name[-5:]) if shards and shards[0].name[-5:].isdigit() else 1
    if len(shards) != total:
      raise WeightsError(f"{prefix} has {len(shards)} of {total} files *.data-*: half a download? Get it again")
    try:
      self._reader = tf.train.load_checkpoint(self.where)
      self.shapes = {name: tuple(s) for name, s in self._reader.get_variable_to_shape_map().items()}
    except Exception as error:  # a damaged file gives any of Python's errors, from IndexError to MemoryError
      raise WeightsError(f"{prefix} can't be read ({_first_line(error)}); get it again") from error

  def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
    try:
      return self._reader.get_tensor(name)[rows]
    except Exception as error:  # as above
      raise WeightsError(f"{name!r} in {self.where} can't be read ({_first_line(error)}); get it again") from error


def find_prefix(path: pathlib.Path) -> pathlib.Path | None:
  """The checkpoint that a path means: a prefix itself, its index, or a hub module's directory."""
  for index in (path.parent / f"{path.name}.index", path / "variables" / "variables.index", path):
    if index.suffix == ".index" and index.is_file():
      return index.with_suffix("")
  return None


def read_tensorflow(prefix: pathlib.Path) -> Weights:
  """Raises WeightsError if something is missing or damaged."""
  weights = recognise(TensorFlowCheckpoint(prefix), names.TENSORFLOW)
  if not weights.model:  # encoded.ckpt
    return weights
  model = weights.model | _conventions(weights.model)
  config = prefix.parent / "bert_config.json"
  assumed: dict[str, Any] = {}
  if config.is_file():
    num_heads = read_json(config).get("num_attention_heads")
    if type(num_heads) is not int or num_heads < 1 or model["hidden_size"] % num_heads:
      raise WeightsError(f"{config} has num_attention_heads={num_heads!r} for a hidden size of {model['hidden_size']}")
    model["num_heads"] = num_heads
  elif model["hidden_size"] % 64 == 0:
    assumed["num_heads"] = model["hidden_size"] // 64
  if "span_hidden_size" in model:
    assumed["max_span_width"] = 10
  vocabulary = next(filter(None, map(read_vocabulary, (prefix.parent, prefix.parent.parent / "assets"))), None)
  if vocabulary is not None and len(vocabulary) != model["vocab_size"]:
    raise WeightsError(
      f"the vocabulary beside {prefix} has {len(vocabulary)} wordpieces, the word embeddings have "
      f"{model['vocab_size']} rows; they are of different models: get both from the same place"
    )
  return weights._replace(model=model, assumed=assumed, vocabulary=vocabulary)


def _conventions(model: dict[str, Any]) -> dict[str, Any]:
  """What Google's code has fixed: GELU in its tanh form, and one epsilon outside of the span head."""
  fixed = {"gelu_is_approximate": True, "layer_norm_epsilon": 1e-12, "dropout_rate": 0.1}
  return fixed | ({"projection_layer_norm_epsilon": 1e-12} if "retrieval_size" in model else {})


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]
