"""Google's checkpoints, by the names that are in the released ones."""

import random

import hf_files as files
import numpy as np
import pytest
from test_safetensors_file import mutated

from realm_jax.weights.hf import read_hf
from realm_jax.weights.source import merge, read_weights
from realm_jax.weights.tensors import WeightsError


def tensorflow_name(name, bert, heads, outer):
  """HF's name of a BERT, a masked-word head, a projection or a span head -> TensorFlow's."""
  kind = {"weight": "gamma", "bias": "beta"} if "LayerNorm" in name or "layer_norm" in name else {"weight": "kernel"}
  *parents, leaf = name.split(".")
  path = "/".join(parents)
  path = path.replace("encoder/layer/", "encoder/layer_")
  if "embeddings/" in path and "LayerNorm" not in path:
    return f"{bert}/{path.removeprefix('realm/')}"
  if name == "cls.predictions.bias":
    return f"{heads}/cls/predictions/output_bias".lstrip("/")
  leaf = kind.get(leaf, leaf)
  if path.startswith("realm/"):
    return f"{bert}/{path.removeprefix('realm/')}/{leaf}"
  if path.startswith("cls/predictions"):
    return f"{heads}/{path}/{leaf}".lstrip("/")
  path = path.replace("qa_outputs/dense_intermediate", "dense").replace("qa_outputs/dense_output", "dense_1")
  return f"{outer}/{path.removeprefix('cls/').removeprefix('qa_outputs/')}/{leaf}"


def variables(tensors, bert, heads, outer):
  """Kernels are [inputs, outputs]; the decoder is no variable."""
  result = {}
  for name, value in tensors.items():
    if "decoder" not in name:
      ours = tensorflow_name(name, bert, heads, outer)
      result[ours] = value.T if ours.endswith("/kernel") else value
  return result


def save(prefix, tensors):
  import tensorflow as tf  # noqa: PLC0415 not when the tests are merely collected

  prefix.parent.mkdir(parents=True, exist_ok=True)
  tf.raw_ops.SaveV2(
    prefix=str(prefix), tensor_names=list(tensors), shape_and_slices=[""] * len(tensors),
    tensors=[tf.constant(value) for value in tensors.values()],
  )  # fmt: skip
  (prefix.parent / "checkpoint").write_text('model_checkpoint_path: "/cns/none/of/ours"\n')
  return prefix


EMBEDDER, READER = files.random(1, files.embedder_shapes()), files.random(2, files.reader_shapes())
ENCODER = {name: value for name, value in READER.items() if "qa_outputs" not in name and "decoder" not in name}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
  """The layout of the released directories, with small random weights."""
  directory = tmp_path_factory.mktemp("google")
  module = "module/module/module"
  save(
    directory / "pretrained/embedder/variables/variables",
    variables(EMBEDDER, f"{module}/bert", module, "module/module"),
  )
  save(directory / "pretrained/bert/variables/variables", variables(ENCODER, "bert", "", ""))
  for name in ("embedder", "bert"):
    (directory / f"pretrained/{name}/assets").mkdir()
    files.VOCABULARY.save(directory / f"pretrained/{name}/assets/vocab.txt")
  block_emb = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
  save(directory / "pretrained/embedder/encoded/encoded.ckpt", {"block_emb": block_emb})
  tuned = variables(EMBEDDER, f"{module}/module/bert", f"{module}/module", module)
  tuned |= variables(READER, "reader/module/bert", "reader/module", "reader")
  slots = {f"{name}/{slot}": np.zeros_like(v) for name, v in tuned.items() for slot in ("adam_m", "adam_v")}
  save(directory / "tuned/model.ckpt-300000", tuned | slots | {"global_step": np.int64(300_000)})
  return directory


def assert_same(weights, tensors, directory):
  """As the same tensors in HF's file are read."""
  expected = read_hf(files.write(directory, tensors))
  found = {path: tensor for path, tensor in weights.tensors.items() if path in expected.tensors}
  assert found.keys() == expected.tensors.keys()
  for path, tensor in found.items():
    np.testing.assert_array_equal(tensor.read(), expected.tensors[path].read(), err_msg=path)


def test_pre_trained_modules(released, tmp_path):
  embedder = read_weights(str(released / "pretrained/embedder"))
  assert embedder.parts == {"retriever/query_tower": ("encoder", "pooler", "projection")}
  assert set(embedder.unused.values()) == {"a retriever predicts no words"}
  assert embedder.model["gelu_is_approximate"] and embedder.model["projection_layer_norm_epsilon"] == 1e-12
  assert embedder.vocabulary.digest == files.VOCABULARY.digest
  assert_same(embedder, EMBEDDER, tmp_path / "embedder")
  both = merge([embedder, read_weights(str(released / "pretrained/bert/variables/variables"))])
  assert both.parts["reader"] == ("encoder", "masked-word head")
  assert_same(both, ENCODER, tmp_path / "encoder")
  encoded = read_weights(str(released / "pretrained/embedder/encoded/encoded.ckpt"))
  assert (encoded.parts, encoded.block_emb.shape) == ({}, (5, 4))
  assert merge([both, encoded]).block_emb.read(slice(0, 2)).shape == (2, 4)


def test_a_fine_tuned_checkpoint(released, tmp_path):
  weights = read_weights(str(released / "tuned/model.ckpt-300000"))
  assert weights.parts == {
    "retriever/query_tower": ("encoder", "pooler", "projection"),
    "reader": ("encoder", "masked-word head", "span head"),
  }
  reasons = list(weights.unused.values())
  assert reasons.count("optimizer state") == 2 * (len(EMBEDDER) + len(READER) - 2) + 1
  assert weights.unused["global_step"] == "optimizer state" and weights.vocabulary is None
  assert weights.assumed == {"max_span_width": 10}  # 6 is no multiple of 64, so the heads are not assumed
  assert_same(weights, EMBEDDER, tmp_path / "embedder")
  assert_same(weights, READER, tmp_path / "reader")


def test_a_fine_tuned_model_with_the_tower_that_embedded_the_passages(released):
  sources = ("tuned/model.ckpt-300000.index", "pretrained/embedder", "pretrained/embedder/encoded/encoded.ckpt")
  weights = merge([read_weights(str(released / source)) for source in sources])
  assert weights.parts.keys() == {"retriever/query_tower", "retriever/passage_tower", "reader"}
  assert weights.block_emb.shape == (5, 4) and weights.vocabulary.digest == files.VOCABULARY.digest


def test_googles_bert(tmp_path):
  prefix = save(tmp_path / "bert_model.ckpt", variables(ENCODER, "bert", "", ""))
  files.VOCABULARY.save(tmp_path / "vocab.txt")
  (tmp_path / "bert_config.json").write_text('{"num_attention_heads": 3}')
  weights = read_weights(str(prefix))
  assert weights.parts == {"bert": ("encoder", "pooler", "masked-word head")}
  assert weights.model["num_heads"] == 3 and weights.unused == {}
  (tmp_path / "bert_config.json").write_text('{"num_attention_heads": 4}')
  with pytest.raises(WeightsError, match="has num_attention_heads=4 for a hidden size of 6"):
    read_weights(str(prefix))


def test_damaged_checkpoints_are_refused(tmp_path):
  prefix = save(tmp_path / "x.ckpt", variables(ENCODER, "bert", "", ""))
  data = prefix.with_name("x.ckpt.data-00000-of-00001")
  whole = data.read_bytes()
  data.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
  with pytest.raises(WeightsError, match=r"' in .*x.ckpt can't be read \(.*; get it again"):
    read_weights(str(prefix)).tree()
  data.unlink()
  with pytest.raises(WeightsError, match=r"x.ckpt has 0 of 1 files \*.data-\*: half a download"):
    read_weights(str(prefix))
  data.write_bytes(whole)
  index = prefix.with_name("x.ckpt.index")
  index.write_bytes(index.read_bytes()[:-20])
  with pytest.raises(WeightsError, match=r"x.ckpt can't be read \("):
    read_weights(str(prefix))


@pytest.mark.slow
def test_a_thousand_damaged_checkpoints_give_our_error_or_none(tmp_path):
  prefix = save(tmp_path / "x.ckpt", variables(ENCODER, "bert", "", ""))
  files.VOCABULARY.save(tmp_path / "vocab.txt")
  parts = {path: path.read_bytes() for path in tmp_path.glob("x.ckpt.*")}
  rng = random.Random(0)
  num_refused = 0
  for _ in range(1000):
    path = rng.choice(sorted(parts))
    path.write_bytes(mutated(parts[path], rng))
    try:
      read_weights(str(prefix)).tree()
    except WeightsError:
      num_refused += 1
    path.write_bytes(parts[path])
  assert num_refused > 900
