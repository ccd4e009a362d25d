"""Safetensors: the same as the library's, refusals of lying files, and thousands of damaged ones."""

import json
import random
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hf_files import CONFIG, bert_shapes, write
from hf_files import random as random_tensors
from safetensors.numpy import load_file, save_file

from realm_jax.weights.hf import read_hf
from realm_jax.weights.safetensors_file import SafetensorsFile, ShardedSafetensors, write_safetensors
from realm_jax.weights.tensors import WeightsError


def file_of(path, header, data=b"", length=None):
  encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)
  return path


def entry(begin, end, dtype="F32", shape=None):
  return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_reads_what_the_library_writes(tmp_path):
  rng = np.random.default_rng(0)
  tensors = {
    "f32": rng.normal(size=(5, 3)).astype(np.float32),
    "f16": rng.normal(size=7).astype(np.float16),
    "f64": rng.normal(size=(2, 2, 2)),
    "bf16": rng.normal(size=(4, 2)).astype(ml_dtypes.bfloat16),
    "i64": np.arange(6)[None],
    "scalar": np.float32(3.5),
    "nothing": np.zeros((0, 4), np.float32),
  }
  save_file({name: np.asarray(value) for name, value in tensors.items()}, tmp_path / "x.safetensors")
  file = SafetensorsFile(tmp_path / "x.safetensors")
  assert file.shapes == {name: np.shape(value) for name, value in tensors.items()}
  for name, value in tensors.items():
    found = file.read(name)
    assert found.dtype == np.asarray(value).dtype
    np.testing.assert_array_equal(found, value)
  np.testing.assert_array_equal(file.read("f32", slice(1, 3)), tensors["f32"][1:3])
  np.testing.assert_array_equal(file.read("f32", slice(4, 99)), tensors["f32"][4:])


def test_the_library_reads_what_we_write(tmp_path):
  tensors = random_tensors(0, {"b": (3, 4), "a": (5,), "empty": (0, 2)})
  pieces = {"b": [tensors["b"][:1], tensors["b"][1:]], "a": [tensors["a"]], "empty": []}
  write_safetensors(tmp_path / "x.safetensors", {n: t.shape for n, t in tensors.items()}, pieces.__getitem__)
  found = load_file(tmp_path / "x.safetensors")
  assert found.keys() == tensors.keys()
  for name, value in tensors.items():
    np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
  ("header", "data", "length", "message"),
  [
    ({"a": entry(0, 8)}, b"", None, "has 69 bytes, its header describes 77: it was cut short; get it again"),
    ({"a": entry(0, 8)}, bytes(12), None, "has 81 bytes, its header describes 77: it has bytes that belong to no"),
    ({"a": entry(0, 8)}, b"", 2**63, "has 69 bytes, its header alone should have 9,223,372,036,854,775,808: it was"),
    ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), None, "'b' in .* begins at byte 135 and overlaps the tensor"),
    ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), None, "'b' in .* and leaves a gap before it; get the file"),
    ({"a": entry(0, 8, "F16", [2])}, bytes(8), None, r"'a' in the header of .* has 8 bytes for F16 of shape \[2\]"),
    ({"a": entry(0, 8, shape=[2**62, 2**62])}, bytes(8), None, "has 8 bytes for F32 of shape"),
    ({"a": entry(0, 8, "F7")}, bytes(8), None, "has the type 'F7', known are F64, F32"),
    ({"a": entry(0, 8, ["F32"])}, bytes(8), None, r"has the type \['F32'\]"),
    ({"a": entry(0, 8, shape=[-2])}, bytes(8), None, r"has the shape \[-2\]"),
    ({"a": entry(0, 8, shape=[2.0])}, bytes(8), None, r"has the shape \[2.0\]"),
    ({"a": entry(0, 8, shape=[True, 2])}, bytes(8), None, r"has the shape \[True, 2\]"),
    ({"a": entry(8, 0, shape=[2])}, bytes(8), None, "has -8 bytes for F32"),
    ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), None, "not exactly dtype, shape and data_offsets"),
    ({"a": [1]}, b"", None, "not exactly dtype, shape and data_offsets"),
    (b'{"a": 1, "a": 2}', b"", None, "the header of .* has 'a' twice; get the file again"),
    (b"[1]", b"", None, "the header of .* is no JSON object"),
    (b"\xff\xfe", b"", None, "the header of .* is no JSON .*utf-8"),
    (b"[" * 100_000, b"", None, "is no JSON .*recursion"),
    (b"9" * 5000, b"", None, "is no JSON"),
  ],
)
def test_a_lying_file_is_refused(tmp_path, header, data, length, message):
  with pytest.raises(WeightsError, match=message):
    SafetensorsFile(file_of(tmp_path / "x.safetensors", header, data, length))


def test_other_files_are_refused(tmp_path):
  (tmp_path / "short").write_bytes(b"abc")
  with pytest.raises(
    WeightsError, match=r"short has 3 bytes, its header alone should have .* or is no safetensors file"
  ):
    SafetensorsFile(tmp_path / "short")
  with pytest.raises(WeightsError, match=r"none can't be read \(No such file or directory\); check the path"):
    SafetensorsFile(tmp_path / "none")
  with open(tmp_path / "large", "wb") as file:  # sparse: 5 MiB of header would be parsed into ten times that
    file.write(struct.pack("<Q", 5 << 20))
    file.truncate(6 << 20)
  with pytest.raises(WeightsError, match="has a header of 5,242,880 bytes, at most 4,194,304 are read"):
    SafetensorsFile(tmp_path / "large")


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
  save_file({"a": np.ones(4, np.float32)}, tmp_path / "x.safetensors")
  file = SafetensorsFile(tmp_path / "x.safetensors")
  whole = (tmp_path / "x.safetensors").read_bytes()
  (tmp_path / "x.safetensors").write_bytes(whole[:-1])
  with pytest.raises(WeightsError, match="was cut short while it was read: 'a' is not whole"):
    file.read("a")


def sharded(tmp_path, weight_map, **shards):
  for shard, tensors in shards.items():
    save_file({name: np.ones(2, np.float32) for name in tensors}, tmp_path / shard)
  (tmp_path / "index.json").write_text(json.dumps({"weight_map": weight_map}))
  return ShardedSafetensors(tmp_path / "index.json")


def test_shards_are_one(tmp_path):
  file = sharded(tmp_path, {"a": "one", "b": "two"}, one="a", two="b")
  assert file.shapes == {"a": (2,), "b": (2,)}
  np.testing.assert_array_equal(file.read("b", slice(1)), [1.0])


@pytest.mark.parametrize(
  ("weight_map", "message"),
  [
    ({"a": "one", "b": "three"}, "three is missing, index.json names it: half a download"),
    ({"a": "one", "b": "two", "c": "two"}, "'c' is not in .*two, where index.json has it; get all files again"),
    ({"a": "two", "b": "two"}, "two holds 'b', which|'a' is not in .*two"),
    ({"a": "one"}, None),
    ({"a": "one", "b": "../two"}, "names the file '../two' outside its directory"),
    ({"a": 1}, "has no weight_map from tensors to files"),
    ([], "has no weight_map from tensors to files"),
  ],
)
def test_contradicting_shards_are_refused(tmp_path, weight_map, message):
  if message is None:
    assert sharded(tmp_path, weight_map, one="a", two="b").shapes == {"a": (2,)}
  else:
    with pytest.raises(WeightsError, match=message):
      sharded(tmp_path, weight_map, one="a", two="b")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
  with pytest.raises(WeightsError, match="two holds 'a', which index.json has in 'one'; the files are of different"):
    sharded(tmp_path, {"a": "one", "b": "two"}, one="a", two="ab")


def mutated(data: bytes, rng: random.Random) -> bytes:
  """A few bytes changed, cut, inserted, repeated, or a number in the header made another."""
  data = bytearray(data)
  for _ in range(rng.randint(1, 3)):
    if not data:
      break
    begin = rng.randrange(min(len(data), 8 + 4000)) if rng.random() < 0.8 else rng.randrange(len(data))
    kind = rng.randrange(6)
    if kind == 0:
      data[begin] = rng.randrange(256)
    elif kind == 1:
      data = data[: begin + 1]
    elif kind == 2:
      data[begin:begin] = rng.randbytes(rng.randint(1, 9))
    elif kind == 3:
      del data[begin : begin + rng.randint(1, 9)]
    elif kind == 4:
      data[begin : begin + 1] = rng.choice(
        [b"0", b"-1", b"9999999999999999999", b"1e9", b'"', b"}", b"[", b"NaN", b"\\"]
      )
    else:
      data[begin:begin] = data[begin : begin + rng.randint(1, 200)]
  return bytes(data)


def read_damaged(directory, count, seed):
  """Reads `count` damaged copies of a directory's files; returns how many were refused, and the most memory taken."""
  rng = random.Random(seed)
  originals = {path: path.read_bytes() for path in directory.iterdir()}
  size = sum(map(len, originals.values()))
  num_refused, most = 0, 0
  tracemalloc.start()
  for _ in range(count):
    path = rng.choice(list(originals) + [directory / "model.safetensors"] * 4)
    path.write_bytes(mutated(originals[path], rng))
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
      for tensor in read_hf(directory).tensors.values():
        tensor.read()
    except WeightsError:
      num_refused += 1
    most = max(most, tracemalloc.get_traced_memory()[1] - before)
    path.write_bytes(originals[path])
  tracemalloc.stop()
  return num_refused, most / size


def padded_bert(tmp_path):
  """With a tensor of no use that makes the file 300 kB, so that the memory of the checks themselves does not count."""
  tensors = random_tensors(3, bert_shapes()) | {"classifier.weight": np.zeros((300, 250), np.float32)}
  return write(tmp_path / "bert", tensors, CONFIG)


def test_damaged_files_give_our_error_or_none(tmp_path):
  num_refused, memory = read_damaged(padded_bert(tmp_path), 500, seed=0)
  assert 300 < num_refused < 500  # a changed digit of a weight, or a space in the header, harms nothing
  assert memory < 2.0


@pytest.mark.slow
def test_ten_thousand_damaged_files_give_our_error_or_none(tmp_path):
  num_refused, memory = read_damaged(padded_bert(tmp_path), 10_000, seed=1)
  assert 6_000 < num_refused < 10_000
  assert memory < 2.0
