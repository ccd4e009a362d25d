"""Directories in HF's form: config.json, a vocabulary, and weights in safetensors or torch files."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

from realm_jax.weights import names
from realm_jax.weights.compact import CompactTensors, is_compact
from realm_jax.weights.contents import Weights, with_shared_towers
from realm_jax.weights.recognition import recognise
from realm_jax.weights.safetensors_file import SafetensorsFile, ShardedSafetensors, read_json
from realm_jax.weights.tensors import Tensors, WeightsError
from realm_jax.weights.torch_file import TorchFiles
from realm_jax.weights.vocabulary_file import read_vocabulary

# HF's field of config.json -> ours, where the tensors' shapes tell the same.
SIZE_FIELDS = {
  "vocab_size": "vocab_size",
  "hidden_size": "hidden_size",
  "num_hidden_layers": "num_layers",
  "intermediate_size": "mlp_size",
  "max_position_embeddings": "max_length",
  "retriever_proj_size": "retrieval_size",
  "span_hidden_size": "span_hidden_size",
}
SPAN_LAYER_NORM_EPSILON = 1e-3  # of the reader's span head, here and in all released models
OURS = "realm_jax"  # the entry of config.json for what HF has no field for
_MODEL_TYPES = ("bert", "realm", "dpr")
HIDDEN_ACT = {False: "gelu", True: "gelu_new"}  # by gelu_is_approximate
_IS_APPROXIMATE = {"gelu": False, "gelu_new": True, "gelu_pytorch_tanh": True}
# What a class must hold, so that a half of it isn't taken for another.
_NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
  "BertForMaskedLM": {names.BERT: (names.MASKED_WORD_HEAD,)},
  "BertForPreTraining": {names.BERT: (names.MASKED_WORD_HEAD,)},
  "RealmEmbedder": {names.QUERY_TOWER: ()},
  "RealmScorer": {names.QUERY_TOWER: ()},
  "RealmKnowledgeAugEncoder": {names.READER: (names.MASKED_WORD_HEAD,)},
  "RealmReader": {names.READER: (names.SPAN_HEAD,)},
  "RealmForOpenQA": {names.QUERY_TOWER: (), names.READER: (names.SPAN_HEAD,)},
}
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def holds_weights(directory: pathlib.Path) -> bool:
  """Whether a directory has weights in a file, or in shards, by HF's names."""
  return any((directory / name).is_file() for name in _WEIGHTS) or any(directory.glob("model-*.safetensors"))


def read_hf(directory: pathlib.Path) -> Weights:
  """Raises WeightsError if something is missing, damaged, contradicts something else, or is not known here."""
  config = read_json(directory / "config.json") if (directory / "config.json").is_file() else None
  if config is not None:
    _check_known(config, directory)
  weights = recognise(_open(directory), names.HF)
  vocabulary = read_vocabulary(directory)
  weights = weights._replace(where=str(directory), vocabulary=vocabulary)
  if weights.model and vocabulary is not None and len(vocabulary) != weights.model["vocab_size"]:
    raise WeightsError(
      f"the vocabulary in {directory} has {len(vocabulary)} wordpieces, the word embeddings have "
      f"{weights.model['vocab_size']} rows; they are of different models: get both from the same place"
    )
  if not weights.model:  # passages' embeddings alone
    return weights
  if config is None:
    return weights._replace(assumed=_conventions(weights))
  return _with_config(weights, config, directory)


def _open(directory: pathlib.Path) -> Tensors:
  unfinished = [*directory.glob("*.incomplete"), *directory.glob(".cache/huggingface/download/**/*.incomplete")]
  if unfinished:
    raise WeightsError(f"{unfinished[0]} is half a download; finish it, or delete the file if the rest is whole")
  single, index, torch_single, torch_index = (directory / name for name in _WEIGHTS)
  if single.is_file():
    file = SafetensorsFile(single)
    return CompactTensors(file) if is_compact(file) else file
  if index.is_file():
    return ShardedSafetensors(index)
  if torch_single.is_file():
    return TorchFiles([torch_single])
  if torch_index.is_file():
    shards = read_json(torch_index).get("weight_map")
    if not isinstance(shards, dict) or not all(pathlib.PurePath(str(s)).name == s for s in shards.values()):
      raise WeightsError(f"{torch_index} has no weight_map from tensors to files beside it; get it again")
    return TorchFiles([directory / shard for shard in sorted(set(shards.values()))])
  raise WeightsError(
    f"{directory} has none of {', '.join(_WEIGHTS)}"
    + ("; shards are there, but not their index: half a download? Get it again" if holds_weights(directory) else "")
  )


def _check_known(config: dict[str, Any], directory: pathlib.Path) -> None:
  def check(field: str, known: Iterable[Any], default: Any) -> None:
    value = config.get(field, default)
    if not any(type(value) is type(k) and value == k for k in known):
      raise WeightsError(
        f"{directory / 'config.json'} has {field}={value!r}; what can be read here has "
        f"{' or '.join(repr(k) for k in known)}"
      )

  check("model_type", _MODEL_TYPES, "bert")
  check("hidden_act", _IS_APPROXIMATE, "gelu")
  check("type_vocab_size", (2,), 2)
  check("position_embedding_type", ("absolute",), "absolute")
  check("reader_layer_norm_eps", (SPAN_LAYER_NORM_EPSILON,), SPAN_LAYER_NORM_EPSILON)


def _with_config(weights: Weights, config: dict[str, Any], directory: pathlib.Path) -> Weights:
  path = directory / "config.json"
  for field, ours in SIZE_FIELDS.items():
    if field in config and ours in weights.model and config[field] != weights.model[ours]:
      raise WeightsError(
        f"{path} says {field} {config[field]!r}, the tensors have {weights.model[ours]}; they are of different models: "
        "get both from the same place"
      )
  _check_architecture(weights, config, path)
  is_realm = config.get("model_type") == "realm"
  model = weights.model | {
    "num_heads": _count(config, "num_attention_heads", path),
    "gelu_is_approximate": _IS_APPROXIMATE[config.get("hidden_act", "gelu_new" if is_realm else "gelu")],
    "layer_norm_epsilon": _fraction(config, "layer_norm_eps", path, 1e-12),
    "dropout_rate": _fraction(config, "hidden_dropout_prob", path, 0.1),
  }
  if model["hidden_size"] % model["num_heads"]:
    raise WeightsError(
      f"{path} says num_attention_heads {model['num_heads']}, which does not divide the hidden size "
      f"{model['hidden_size']}; get config.json again"
    )
  reading = {}
  if "retrieval_size" in model:
    model["projection_layer_norm_epsilon"] = model["layer_norm_epsilon"]
  if "span_hidden_size" in model:
    model["max_span_width"] = _count(config, "max_span_width", path, 10)
    reading["joint_length"] = _count(config, "reader_seq_len", path, 320)
    reading["num_passages"] = _count(config, "reader_beam_size", path, 5)
  ours = config.get(OURS, {})
  if not isinstance(ours, dict):
    raise WeightsError(f"{path} has {OURS}={ours!r}, it should be an object")
  if "embedding_dropout_rate" in ours:
    model["embedding_dropout_rate"] = _fraction(ours, "embedding_dropout_rate", path)
  if ours.get("towers_are_shared") is not False:
    weights = with_shared_towers(weights)
  stage = ours.get("stage", "")
  return weights._replace(model=model, reading=reading, stage=stage if isinstance(stage, str) else "")


def _check_architecture(weights: Weights, config: dict[str, Any], path: pathlib.Path) -> None:
  architectures = config.get("architectures")
  for name in architectures if isinstance(architectures, list) else []:
    for network, parts in _NEEDED.get(name, {}).items() if isinstance(name, str) else ():
      missing = [part for part in parts if part not in weights.parts.get(network, ())]
      if network not in weights.parts or missing:
        what = missing[0] if network in weights.parts else network
        raise WeightsError(f"{path} says {name}, but the tensors beside it have no {what}; get them again")


def _count(config: dict[str, Any], field: str, path: pathlib.Path, default: int | None = None) -> int:
  value = config.get(field, default)
  if type(value) is not int or value < 1:
    raise WeightsError(f"{path} has {field}={value!r}, it should be a positive integer; get it again")
  return value


def _fraction(config: dict[str, Any], field: str, path: pathlib.Path, default: float | None = None) -> float:
  value: Any = config.get(field, default)
  if type(value) not in (int, float) or not 0 <= value < 1:
    raise WeightsError(f"{path} has {field}={value!r}, it should be a number from 0 to 1; get it again")
  return float(value)


def _conventions(weights: Weights) -> dict[str, Any]:
  """What config.json would tell, as the BERTs of HF and the released REALMs have it."""
  is_realm = names.BERT not in weights.parts
  assumed = {"gelu_is_approximate": is_realm, "layer_norm_epsilon": 1e-12, "dropout_rate": 0.1}
  if is_realm:
    assumed |= {"projection_layer_norm_epsilon": 1e-12, "max_span_width": 10}
  if weights.model["hidden_size"] % 64 == 0:
    assumed["num_heads"] = weights.model["hidden_size"] // 64
  return assumed
