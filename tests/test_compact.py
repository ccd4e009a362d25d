"""Compact weights: what is kept, how far numbers are off, and refusals."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from realm_jax.weights.compact import CompactTensors, compact, is_compact
from realm_jax.weights.safetensors_file import SafetensorsFile
from realm_jax.weights.source import locate, read_weights
from realm_jax.weights.tensors import WeightsError

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(0, [[1.0], [1e-3], [30.0]], (3, 50)).astype(np.float32)
TENSORS = {
  "a.weight": np.concatenate([MATRIX, np.zeros((1, 50), np.float32)]),  # a row of zeros has no scale
  "zero.bias": np.zeros(2, np.float32),  # where training begins, so it stays
  "a.bias": RNG.normal(size=50).astype(np.float32),
  "unused.weight": np.zeros((4, 4), np.float32),
  "cls.predictions.decoder.weight": MATRIX,
  "block_emb": MATRIX,
}


@pytest.fixture
def directory(tmp_path):
  save_file(TENSORS, tmp_path / "model.safetensors")
  compact(tmp_path)
  return tmp_path


def test_rows_are_off_by_half_a_step_at_most(directory):
  file = SafetensorsFile(directory / "model.safetensors")
  assert is_compact(file)
  tensors = CompactTensors(file)
  assert tensors.shapes == {"a.weight": (4, 50), "zero.bias": (2,), "a.bias": (50,)}
  np.testing.assert_array_equal(tensors.read("a.bias"), TENSORS["a.bias"])
  read, largest = tensors.read("a.weight"), np.abs(TENSORS["a.weight"]).max(1, keepdims=True)
  assert (np.abs(read - TENSORS["a.weight"]) <= largest / 127 / 2 * (1 + 1e-5)).all()
  assert 0 < np.abs(read - TENSORS["a.weight"])[1].max() < 1e-5  # each row has its own scale
  np.testing.assert_array_equal(tensors.read("a.weight", slice(1, 3)), read[1:3])


def test_it_takes_a_quarter(directory):
  stored = load_file(directory / "model.safetensors")
  assert sum(x.nbytes for x in stored.values()) == 4 * 50 + 4 * 4 + 52 * 4
  assert sorted(path.name for path in directory.iterdir()) == ["model.safetensors"]


def test_a_scale_that_does_not_fit_is_refused(tmp_path):
  save_file({"a": np.zeros((2, 3), np.int8), "a.scale": np.zeros((3, 1), np.float32)}, tmp_path / "model.safetensors")
  with pytest.raises(WeightsError, match=r"'a.scale' in .*/model.safetensors doesn't fit 'a'; get the file again"):
    CompactTensors(SafetensorsFile(tmp_path / "model.safetensors"))


def test_the_model_of_the_package_is_whole():
  weights = read_weights("realm-tiny")
  assert weights.parts.keys() == {"retriever/query_tower", "reader"} and weights.stage == "finetune"
  assert len(weights.vocabulary) == weights.model["vocab_size"] == 30_522 and weights.vocabulary.lowercase
  assert (weights.model["num_layers"], weights.model["hidden_size"], weights.model["num_heads"]) == (2, 128, 2)
  assert all(np.isfinite(tensor.read()).all() for tensor in weights.tensors.values())
  assert sum(path.stat().st_size for path in locate("realm-tiny").iterdir()) < 16e6
