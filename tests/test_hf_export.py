"""Directories for HF's classes: exactly their keys, and the same model when read again."""

import json

import hf_files as files
import numpy as np
import pytest
from safetensors.numpy import load_file

from realm_jax.weights.hf import read_hf
from realm_jax.weights.hf_export import write_hf
from realm_jax.weights.source import merge, read_weights
from realm_jax.weights.tensors import WeightsError

# What HF's classes save: all that they ask for, but for what they tie.
BERT_FOR_PRETRAINING = {
  name: shape
  for name, shape in (files.bert_shapes("bert.") | files.predictions_shapes()).items()
  if "decoder" not in name
} | {"cls.seq_relationship.weight": (2, 6), "cls.seq_relationship.bias": (2,)}
ENCODER = {n: s for n, s in (files.bert_shapes("realm.") | files.predictions_shapes()).items() if "decoder" not in n}


def embedder(prefix="", seed=1):
  return files.random(seed, files.embedder_shapes(prefix))


def read(tmp_path, name, tensors, config=None):
  return read_hf(files.write(tmp_path / name, tensors, config))


def assert_same(a, b):
  assert a.tensors.keys() == b.tensors.keys()
  for path, tensor in a.tensors.items():
    np.testing.assert_array_equal(b.tensors[path].read(), tensor.read(), err_msg=path)


@pytest.mark.parametrize(
  ("tensors", "config", "class_name", "shapes"),
  [
    (files.random(1, files.bert_shapes("bert.")), files.CONFIG, "BertModel", files.bert_shapes()),
    (files.masked_lm(), files.CONFIG, "BertForPreTraining", BERT_FOR_PRETRAINING),
    (embedder("embedder."), files.REALM_CONFIG, "RealmEmbedder", files.embedder_shapes()),
    (
      embedder("embedder.") | embedder("query_embedder.", 2),
      files.REALM_CONFIG,
      "RealmScorer",
      files.embedder_shapes("embedder.") | files.embedder_shapes("query_embedder."),
    ),
    (files.random(1, ENCODER), files.REALM_CONFIG, "RealmKnowledgeAugEncoder", ENCODER),
    (files.random(1, files.reader_shapes()), files.REALM_CONFIG, "RealmReader", files.reader_shapes()),
    (
      files.open_qa(),
      files.REALM_CONFIG,
      "RealmForOpenQA",
      files.embedder_shapes("embedder.") | files.reader_shapes("reader.") | {"block_emb": (5, 4)},
    ),
  ],
)
def test_a_class_gets_its_keys_and_nothing_else(tmp_path, tensors, config, class_name, shapes):
  weights = read(tmp_path, "in", tensors, config)
  assert write_hf(tmp_path / "out", weights) == {"": class_name}
  written = load_file(tmp_path / "out" / "model.safetensors")
  assert {name: value.shape for name, value in written.items()} == shapes
  again = read_hf(tmp_path / "out")
  assert_same(weights, again)
  assert again.model == weights.model | {"dropout_rate": 0.1}
  assert again.vocabulary.digest == files.VOCABULARY.digest
  config_json = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config_json["architectures"] == [class_name] and config_json["hidden_act"] == config["hidden_act"]
  if weights.block_emb:
    np.testing.assert_array_equal(written["block_emb"], tensors["block_emb"])
    assert config_json["num_block_records"] == 5


def test_a_realm_without_config_json_has_the_released_ones_settings(tmp_path):
  sizes = {files.E: 64, files.W: 3, 2 * files.W: 6}
  shapes = {n: tuple(sizes.get(length, length) for length in v.shape) for n, v in files.open_qa().items()}
  weights = read(tmp_path, "in", files.random(1, shapes))
  assert weights.assumed == {
    "num_heads": 1, "gelu_is_approximate": True, "layer_norm_epsilon": 1e-12, "dropout_rate": 0.1,
    "projection_layer_norm_epsilon": 1e-12, "max_span_width": 10,
  }  # fmt: skip
  assert write_hf(tmp_path / "out", weights) == {"": "RealmForOpenQA"}
  assert_same(weights, read_hf(tmp_path / "out"))


def test_embeddings_alone_are_no_model(tmp_path):
  for config in (None, files.REALM_CONFIG):
    weights = read(tmp_path, "in", {"block_emb": np.ones((5, 4), np.float32)}, config)
    assert (weights.parts, weights.block_emb.shape) == ({}, (5, 4))
    with pytest.raises(WeightsError, match="holds no network; give the model that its embeddings are of, too"):
      write_hf(tmp_path / "out", weights)


def test_what_hf_never_reads_is_zero_and_is_not_read_back(tmp_path):
  spans_alone = {n: v for n, v in files.random(1, files.reader_shapes()).items() if not n.startswith("cls.")}
  weights = read(tmp_path, "in", spans_alone, files.REALM_CONFIG)
  assert write_hf(tmp_path / "out", weights) == {"": "RealmReader"}
  written = load_file(tmp_path / "out" / "model.safetensors")
  assert written.keys() == files.reader_shapes().keys()
  for name in written.keys() - spans_alone.keys() - {"cls.predictions.decoder.weight"}:
    assert not written[name].any(), name
  assert not written["realm.pooler.dense.weight"].any()
  again = read_hf(tmp_path / "out")
  assert again.parts == {"reader": ("encoder", "span head")}
  assert again.unused["cls.predictions.bias"] == "all zeros: the class has it, the model has not"


def test_two_towers_and_a_reader_take_two_directories(tmp_path):
  """RealmForOpenQA has room for the query tower alone."""
  passage = read(tmp_path, "passage", embedder(seed=7), files.REALM_CONFIG)
  weights = merge([read(tmp_path, "in", files.open_qa(), files.REALM_CONFIG), passage])
  assert write_hf(tmp_path / "out", weights) == {"": "RealmForOpenQA", "passage_embedder": "RealmEmbedder"}
  assert_same(weights, read_weights(str(tmp_path / "out")))


def test_a_retriever_and_a_reader_without_spans_take_two_directories(tmp_path):
  """As Google's pre-trained modules are; HF's pre-trained open-QA model fills in a random span head."""
  parts = [read(tmp_path, "e", embedder(), files.REALM_CONFIG), read(tmp_path, "b", files.masked_lm(), files.CONFIG)]
  parts[1] = parts[1]._replace(model=parts[1].model | {"gelu_is_approximate": True})
  weights = merge(parts)
  assert weights.parts["reader"] == ("encoder", "masked-word head")
  assert weights.unused["bert/encoder/pooler/kernel"] == "a reader pools nothing"
  assert write_hf(tmp_path / "out", weights) == {"embedder": "RealmEmbedder", "encoder": "RealmKnowledgeAugEncoder"}
  assert_same(weights, read_weights(str(tmp_path / "out")))


def test_sources_that_contradict_are_refused(tmp_path):
  openqa = read(tmp_path, "a", files.open_qa(), files.REALM_CONFIG)
  with pytest.raises(WeightsError, match="both hold reader; give one of them"):
    merge([openqa, openqa])
  exact = read(tmp_path, "b", files.random(1, files.bert_shapes()), files.CONFIG)
  tower = read(tmp_path, "c", embedder(), files.REALM_CONFIG)
  with pytest.raises(WeightsError, match="has gelu_is_approximate=True, .* has False; one model here has one for all"):
    merge([tower, exact])
  with pytest.raises(WeightsError, match="both hold retriever/query_tower"):
    merge([tower, tower, tower])


def test_a_reader_needs_a_head(tmp_path):
  tower = read(tmp_path, "e", embedder(), files.REALM_CONFIG)
  bert = read(tmp_path, "b", files.random(1, files.bert_shapes()), files.CONFIG | {"hidden_act": "gelu_new"})
  with pytest.raises(WeightsError, match="beside a retriever a BERT is taken for the reader, and this"):
    merge([tower, bert])
  reader = read(tmp_path, "r", files.random(1, files.bert_shapes("realm.")), files.REALM_CONFIG)
  with pytest.raises(WeightsError, match="has a reader with neither head, for which HF has no class"):
    write_hf(tmp_path / "out", reader)


def test_a_model_that_hf_has_no_word_for_is_refused(tmp_path):
  weights = read(tmp_path, "in", embedder(), files.REALM_CONFIG)
  other = weights._replace(model=weights.model | {"projection_layer_norm_epsilon": 1e-3})
  with pytest.raises(WeightsError, match="has projection_layer_norm_epsilon=0.001 and layer_norm_epsilon=1e-12; HF's"):
    write_hf(tmp_path / "out", other)
  other = weights._replace(model=weights.model | {"pooling": "mean"})
  with pytest.raises(WeightsError, match=r"has pooling=mean; HF's classes project \[CLS\] and would compute other"):
    write_hf(tmp_path / "out", other)
  weights = read(tmp_path, "unknown", embedder())
  with pytest.raises(WeightsError, match="nothing says how many heads .* put a config.json with num_attention_heads"):
    write_hf(tmp_path / "out", weights)
