"""HF's directories: which networks are found, where every tensor lands, and what is refused."""

import json
import os
import subprocess
import sys

import hf_files as files
import numpy as np
import pytest
from safetensors.numpy import save_file

from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from realm_jax.weights.hf import read_hf
from realm_jax.weights.source import read_weights
from realm_jax.weights.tensors import WeightsError
from realm_jax.weights.vocabulary_file import read_vocabulary

ENCODER, TOWER = ("encoder",), ("encoder", "pooler", "projection")
SIZES = {"vocab_size": 13, "hidden_size": 6, "mlp_size": 10, "max_length": 9, "num_layers": 2}


def embedder(prefix="", seed=1):
  return files.random(seed, files.embedder_shapes(prefix))


def reader():
  return files.random(1, files.reader_shapes())


def encoder():
  """RealmKnowledgeAugEncoder: HF leaves its decoder out, as it is the word embeddings."""
  shapes = files.bert_shapes("realm.") | files.predictions_shapes()
  return files.random(1, {name: shape for name, shape in shapes.items() if "decoder" not in name})


SOURCES = {  # what is in the file -> the networks in it with their parts, and why the rest is unused
  "bert": (files.random(1, files.bert_shapes()), {"bert": ("encoder", "pooler")}, {}),
  "bert with heads": (
    files.masked_lm(),
    {"bert": ("encoder", "pooler", "masked-word head")},
    {"cls.seq_relationship.weight": "no network here guesses which sentence follows"},
  ),
  "minilm": (
    files.random(1, files.bert_shapes()) | {"embeddings.position_ids": np.arange(9)[None]},
    {"bert": ("encoder", "pooler")},
    {"embeddings.position_ids": "a constant"},
  ),
  "dpr": (
    {n: v for n, v in files.random(1, files.bert_shapes("ctx_encoder.bert_model.")).items() if "pooler" not in n}
    | {"ctx_encoder.encode_proj.weight": np.ones((4, 6), np.float32)},
    {"bert": ENCODER},
    {"ctx_encoder.encode_proj.weight": "DPR projects the state of [CLS], a tower here the pooled one"},
  ),
  "colbert": (
    files.random(1, files.bert_shapes("bert.")) | {"linear.weight": np.ones((4, 6), np.float32)},
    {"bert": ("encoder", "pooler")},
    {"linear.weight": "ColBERT projects every token, a tower here the pooled one"},
  ),
  "classifier": (
    files.random(1, files.bert_shapes("bert.")) | {"classifier.weight": np.ones((2, 6), np.float32)},
    {"bert": ("encoder", "pooler")},
    {"classifier.weight": "no network here has it"},
  ),
  "RealmEmbedder": (
    embedder(),
    {"retriever/query_tower": TOWER},
    dict.fromkeys(files.predictions_shapes(), "a retriever predicts no words"),
  ),
  "RealmScorer": (
    embedder("embedder."),
    {"retriever/query_tower": TOWER},
    dict.fromkeys(files.predictions_shapes("embedder."), "a retriever predicts no words"),
  ),
  "RealmKnowledgeAugEncoder": (
    encoder(),
    {"reader": ("encoder", "masked-word head")},
    {f"realm.pooler.dense.{leaf}": "a reader pools nothing" for leaf in ("weight", "bias")},
  ),
  "RealmReader": (
    reader(),
    {"reader": ("encoder", "masked-word head", "span head")},
    {f"realm.pooler.dense.{leaf}": "a reader pools nothing" for leaf in ("weight", "bias")}
    | {"cls.predictions.decoder.weight": "HF's reader never reads it, and here the decoder is the word embeddings"},
  ),
  "RealmForOpenQA": (
    files.open_qa(),
    {"retriever/query_tower": TOWER, "reader": ("encoder", "masked-word head", "span head")},
    {f"reader.realm.pooler.dense.{leaf}": "a reader pools nothing" for leaf in ("weight", "bias")}
    | dict.fromkeys(files.predictions_shapes("embedder."), "a retriever predicts no words"),
  ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_tensor_is_used_or_unused_for_a_reason(tmp_path, name):
  tensors, parts, unused = SOURCES[name]
  weights = read_hf(files.write(tmp_path, tensors))
  assert weights.parts == parts
  assert weights.unused == unused
  tied = {name for name in tensors if name.endswith("decoder.weight")} - unused.keys()
  assert len(weights.tensors) + len(unused) + len(tied) + ("block_emb" in tensors) == len(tensors)
  assert weights.model.items() >= SIZES.items()
  used = sum(np.size(tensors[name]) for name in tensors.keys() - unused.keys() - tied - {"block_emb"})
  assert sum(tensor.read().size for tensor in weights.tensors.values()) == used


def test_heads_land_where_they_belong(tmp_path):
  tensors = files.open_qa()
  weights = read_hf(files.write(tmp_path, tensors, files.REALM_CONFIG | {"architectures": ["RealmForOpenQA"]}))
  tree = weights.tree()
  tower, reader = tree["retriever"]["query_tower"], tree["reader"]
  for found, name in (
    (tower["projection"]["kernel"], "embedder.cls.dense.weight"),
    (tower["projection"]["bias"], "embedder.cls.dense.bias"),
    (tower["layer_norm"]["scale"], "embedder.cls.LayerNorm.weight"),
    (tower["encoder"]["pooler"]["kernel"], "embedder.realm.pooler.dense.weight"),
    (tower["encoder"]["layer_1"]["key"]["kernel"], "embedder.realm.encoder.layer.1.attention.self.key.weight"),
    (reader["encoder"]["word_embeddings"]["embedding"], "reader.realm.embeddings.word_embeddings.weight"),
    (reader["masked_word_head"]["transform"]["kernel"], "reader.cls.predictions.transform.dense.weight"),
    (reader["masked_word_head"]["layer_norm"]["bias"], "reader.cls.predictions.transform.LayerNorm.bias"),
    (reader["masked_word_head"]["bias"], "reader.cls.predictions.bias"),
    (reader["span_head"]["endpoint"]["kernel"], "reader.qa_outputs.dense_intermediate.weight"),
    (reader["span_head"]["layer_norm"]["scale"], "reader.qa_outputs.layer_normalization.weight"),
    (reader["span_head"]["score"]["kernel"], "reader.qa_outputs.dense_output.weight"),
  ):
    expected = tensors[name].T if found.ndim == 2 and "embeddings" not in name else tensors[name]
    np.testing.assert_array_equal(found, expected, err_msg=name)
  np.testing.assert_array_equal(weights.block_emb.read(slice(1, 3)), tensors["block_emb"][1:3])
  assert weights.model["retrieval_size"] == 4 and weights.model["span_hidden_size"] == 7
  assert (weights.model["max_span_width"], weights.model["gelu_is_approximate"]) == (4, True)


def test_the_towers_of_a_scorer(tmp_path):
  """Its embedder reads passages, its query_embedder queries; HF's torch files have one network twice."""
  two = embedder("embedder.", 1) | embedder("query_embedder.", 2)
  tree = read_hf(files.write(tmp_path / "two", two, files.REALM_CONFIG)).tree()["retriever"]
  for tower, prefix in (("query_tower", "query_embedder."), ("passage_tower", "embedder.")):
    np.testing.assert_array_equal(tree[tower]["projection"]["bias"], two[f"{prefix}cls.dense.bias"])
  same = embedder("embedder.", 1) | embedder("query_embedder.", 1)
  assert read_hf(files.write(tmp_path / "same", same, files.REALM_CONFIG)).parts.keys() == {"retriever/query_tower"}


def test_shards_hold_the_same_model(tmp_path):
  tensors = files.open_qa()
  whole = read_hf(files.write(tmp_path / "whole", tensors, files.REALM_CONFIG))
  files.write_sharded(tmp_path / "shards", tensors, files.REALM_CONFIG)
  shards = read_hf(tmp_path / "shards")
  assert shards.tensors.keys() == whole.tensors.keys()
  for path, tensor in whole.tensors.items():
    np.testing.assert_array_equal(shards.tensors[path].read(), tensor.read())


def test_config_json_tells_what_shapes_do_not(tmp_path):
  tensors = files.random(1, files.bert_shapes())
  model = read_hf(files.write(tmp_path, tensors, files.CONFIG | {"layer_norm_eps": 1e-5})).model
  assert (model["num_heads"], model["gelu_is_approximate"], model["layer_norm_epsilon"]) == (2, False, 1e-5)
  (tmp_path / "config.json").unlink()
  weights = read_hf(tmp_path)
  assert "num_heads" not in weights.model
  # 6 is no multiple of 64, so not even BERT's convention tells the heads.
  assert weights.assumed == {"gelu_is_approximate": False, "layer_norm_epsilon": 1e-12, "dropout_rate": 0.1}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "roberta"}, "has model_type='roberta'; what can be read here has 'bert' or 'realm' or 'dpr'"),
    ({"hidden_act": "relu"}, "has hidden_act='relu'; what can be read here has 'gelu' or 'gelu_new' or"),
    ({"hidden_act": ["gelu"]}, r"has hidden_act=\['gelu'\]"),
    ({"type_vocab_size": 1}, "has type_vocab_size=1; what can be read here has 2"),
    ({"position_embedding_type": "relative_key"}, "has position_embedding_type='relative_key'; what can be read here"),
    ({"reader_layer_norm_eps": 1e-12}, "has reader_layer_norm_eps=1e-12; what can be read here has 0.001"),
    ({"hidden_size": 8}, "says hidden_size 8, the tensors have 6; they are of different models: get both from"),
    ({"num_hidden_layers": 3}, "says num_hidden_layers 3, the tensors have 2"),
    ({"vocab_size": 14}, "says vocab_size 14, the tensors have 13"),
    ({"num_attention_heads": 4}, "says num_attention_heads 4, which does not divide the hidden size 6"),
    ({"num_attention_heads": "2"}, "has num_attention_heads='2', it should be a positive integer"),
    ({"num_attention_heads": None}, "has num_attention_heads=None, it should be a positive integer"),
    ({"layer_norm_eps": -1.0}, "has layer_norm_eps=-1.0, it should be a number from 0 to 1"),
    ({"architectures": ["RealmReader"]}, "says RealmReader, but the tensors beside it have no reader; get them again"),
    ({"architectures": ["BertForMaskedLM"]}, "says BertForMaskedLM, but the tensors beside it have no masked-word"),
  ],
)
def test_a_config_that_contradicts_is_refused(tmp_path, change, message):
  files.write(tmp_path, files.random(1, files.bert_shapes()), files.CONFIG | change)
  with pytest.raises(WeightsError, match=message):
    read_hf(tmp_path)


def changed(**changes):
  """BERT with some tensors replaced; None takes one away."""
  tensors = files.random(1, files.bert_shapes()) | {name.replace("__", "."): value for name, value in changes.items()}
  return {name: value for name, value in tensors.items() if value is not None}


WORD, QUERY = "embeddings__word_embeddings__weight", "encoder__layer__1__attention__self__query__weight"
NAN = np.where(np.arange(36).reshape(6, 6) == 7, np.nan, 1).astype(np.float32)


@pytest.mark.parametrize(
  ("tensors", "message"),
  [
    (changed(**{QUERY: None}), "'encoder.layer.1.attention.self.query.weight' is missing in .*: half a model"),
    (changed(**{QUERY: np.ones((6, 5), np.float32)}), r"query.weight' in .* has the shape \[6, 5\], .* have \[6, 6\]"),
    (changed(**{QUERY: np.ones((6, 6), np.int64)}), "query.weight' in .* has the type int64, a weight is a floating"),
    (changed(**{QUERY: NAN}), r"query.weight' in .* holds nan at \[1, 1\]: its training has diverged or the file is"),
    (changed(**{QUERY: np.full((6, 6), 1e300)}), r"query.weight' in .* holds inf at \[0, 0\]"),
    (changed(**{WORD: np.ones(6, np.float32)}), r"word_embeddings.weight' in .* has the shape \[6\], .* 2 dimensions"),
    (changed(**{WORD: None}), "has no network that is known here .*'embeddings.LayerNorm.bias'"),
    (
      {n.replace("layer.1", "layer.3"): v for n, v in changed().items()},
      "lacks layer 1 of 'BERT'; get it again",
    ),
    (
      changed(**{"embeddings__LayerNorm__gamma": np.ones(6, np.float32)}),
      "has both 'embeddings.LayerNorm.weight' and 'embeddings.LayerNorm.gamma'|has both 'embeddings.LayerNorm.gamma'",
    ),
    (
      files.masked_lm() | {"cls.predictions.decoder.weight": np.ones((13, 6), np.float32)},
      "'cls.predictions.decoder.weight' in .* differs from 'bert.embeddings.word_embeddings.weight'; here they are one",
    ),
    (
      {n: v for n, v in files.masked_lm().items() if n != "cls.predictions.bias"},
      "'cls.predictions.bias' is missing",
    ),
    ({"block_emb": np.ones((5, 3), np.float32)} | embedder("embedder."), r"'block_emb' in .* have \[|2 dimensions"),
    (
      files.random(1, files.bert_shapes("ctx_encoder.bert_model.") | files.bert_shapes("question_encoder.bert_model.")),
      "has more than one bert .*; give each a file of its own",
    ),
    (
      {"h.0.attn.weight": np.ones(3, np.float32)},
      r"has no network that is known here \(its tensors: 'h.0.attn.weight'",
    ),
    ({}, r"has no network that is known here \(its tensors: none"),
  ],
)
def test_what_is_missing_or_wrong_is_named(tmp_path, tensors, message):
  files.write(tmp_path, tensors)
  with pytest.raises(WeightsError, match=message):
    read_hf(tmp_path).tree()


def test_an_unfinished_download_is_refused(tmp_path):
  shard, _ = files.write_sharded(tmp_path, files.open_qa())
  (tmp_path / shard).rename(tmp_path / f"{shard}.incomplete")
  with pytest.raises(WeightsError, match=r"00001-of-00002.safetensors.incomplete is half a download; finish it"):
    read_hf(tmp_path)
  (tmp_path / f"{shard}.incomplete").unlink()
  with pytest.raises(WeightsError, match=r"00001-of-00002.safetensors is missing, .* half a download\? Get it again"):
    read_hf(tmp_path)
  (tmp_path / "model.safetensors.index.json").unlink()
  with pytest.raises(WeightsError, match="shards are there, but not their index: half a download"):
    read_hf(tmp_path)


def test_the_vocabulary_and_its_casing(tmp_path):
  files.VOCABULARY.save(tmp_path / "vocab.txt")
  assert read_vocabulary(tmp_path).digest == files.VOCABULARY.digest  # without a word on casing: no capitals, uncased
  (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
  assert not read_vocabulary(tmp_path).lowercase
  (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": "no"}')
  with pytest.raises(WeightsError, match="has do_lower_case='no', it should be true or false"):
    read_vocabulary(tmp_path)
  (tmp_path / "tokenizer_config.json").unlink()
  Vocabulary([*SPECIAL_TOKENS, "Paris"], lowercase=False).save(tmp_path / "vocab.txt")
  assert not read_vocabulary(tmp_path).lowercase
  (tmp_path / "vocab.txt").unlink()
  assert read_vocabulary(tmp_path) is None
  tokens = files.VOCABULARY.tokens
  tokenizer = {
    "model": {"type": "WordPiece", "vocab": {token: i for i, token in reversed(list(enumerate(tokens)))}},
    "normalizer": {"lowercase": True},
  }
  (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
  assert read_vocabulary(tmp_path).digest == files.VOCABULARY.digest
  tokenizer["model"]["vocab"]["[PAD]"] = 99
  (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
  with pytest.raises(WeightsError, match="is no WordPiece tokenizer with the ids 0, 1, 2"):
    read_vocabulary(tmp_path)


def test_a_vocabulary_of_another_length_is_refused(tmp_path):
  other = Vocabulary([*SPECIAL_TOKENS, "a"], lowercase=True)
  files.write(tmp_path, files.random(1, files.bert_shapes()), files.CONFIG, other)
  with pytest.raises(WeightsError, match="has 6 wordpieces, the word embeddings have 13 rows; they are of different"):
    read_hf(tmp_path)
  (tmp_path / "vocab.txt").write_text("a\na\n")
  with pytest.raises(WeightsError, match=r"the vocabulary in .* can't be used: the vocabulary of 2 wordpieces lacks"):
    read_hf(tmp_path)


def test_models_of_the_hub_come_by_their_id(tmp_path, monkeypatch):
  huggingface_hub = pytest.importorskip("huggingface_hub")
  files.write(tmp_path / "cache", files.random(1, files.bert_shapes()), files.CONFIG)
  asked = []

  def snapshot_download(hub_id, allow_patterns):
    asked.append((hub_id, allow_patterns))
    if hub_id == "nobody/nothing":
      raise OSError("cannot reach the hub\nand more")
    return str(tmp_path / "cache")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  monkeypatch.chdir(tmp_path)
  assert read_weights("somebody/bert-tiny").model["hidden_size"] == 6
  assert [hub_id for hub_id, _ in asked] == ["somebody/bert-tiny"]
  assert not any(pattern.endswith(".bin") for pattern in asked[0][1])
  message = (
    r"^no run or directory nobody/nothing, .* \(cannot reach the hub\); check the name, or get the files elsewhere \(hf"
  )
  with pytest.raises(WeightsError, match=message):
    read_weights("nobody/nothing")
  with pytest.raises(WeightsError, match=r"^\. holds no weights"):
    read_weights(".")
  with pytest.raises(WeightsError, match="is a file; give the directory that it is in"):
    read_weights(str(tmp_path / "cache" / "vocab.txt"))


def test_torch_files_need_torch_and_load_no_code(tmp_path, monkeypatch):
  """Without torch the message says what to do; with it, code in the file is not run (tests/test_hf_oracle.py reads)."""
  monkeypatch.delenv("REALM_TORCH_PYTHON", raising=False)
  (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
  probe = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, check=False)
  message = "No module named 'torch'" if probe.returncode else "weights_only|Weights only"
  monkeypatch.chdir(tmp_path)
  with pytest.raises(WeightsError, match=rf"pytorch_model.bin can't be read: .*({message}).*|REALM_TORCH_PYTHON"):
    read_hf(tmp_path)
  assert not os.path.exists("executed")
  (tmp_path / "pytorch_model.bin").unlink()
  (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')
  with pytest.raises(WeightsError, match="pytorch_model-1.bin is missing: half a download"):
    read_hf(tmp_path)


def test_half_precision_becomes_float32(tmp_path):
  tensors = {name: value.astype(np.float16) for name, value in files.random(1, files.bert_shapes()).items()}
  save_file(tensors, tmp_path / "model.safetensors")
  found = read_hf(tmp_path).tensors["bert/encoder/pooler/bias"].read()
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, tensors["pooler.dense.bias"].astype(np.float32))
