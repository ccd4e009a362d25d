"""Writes networks as directories that HF's classes load with no key missing and none too many."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from realm_jax.weights import names
from realm_jax.weights.contents import Weights
from realm_jax.weights.hf import HIDDEN_ACT, OURS, SIZE_FIELDS, SPAN_LAYER_NORM_EPSILON
from realm_jax.weights.names import Network
from realm_jax.weights.recognition import BLOCK_EMB
from realm_jax.weights.safetensors_file import write_safetensors
from realm_jax.weights.source import EMBEDDER, ENCODER, PASSAGE_EMBEDDER
from realm_jax.weights.tensors import WeightsError

_ROWS = 1 << 16  # passages' embeddings in memory at once

_TOWER = (names.ENCODER, names.POOLER, names.PROJECTION, names.MASKED_WORD_HEAD)
_READER = (names.ENCODER, names.POOLER, names.MASKED_WORD_HEAD, names.SPAN_HEAD)


class _Class(NamedTuple):
  """A class of HF's: its networks with their parts. It never reads those that we lack: they are written as zeros."""

  networks: tuple[tuple[Network, tuple[str, ...]], ...]
  has_decoder: bool = True  # a copy of the word embeddings, for a masked-word head that it may never read


_CLASSES = {
  "BertModel": _Class(((Network(names.BERT, "", ""), (names.ENCODER, names.POOLER)),), has_decoder=False),
  "BertForPreTraining": _Class(
    ((Network(names.BERT, "bert.", ""), (names.ENCODER, names.POOLER, names.MASKED_WORD_HEAD)),), has_decoder=False
  ),
  "RealmEmbedder": _Class(((Network(names.QUERY_TOWER, "realm.", ""), _TOWER),)),
  "RealmScorer": _Class(
    (
      (Network(names.PASSAGE_TOWER, "embedder.realm.", "embedder."), _TOWER),
      (Network(names.QUERY_TOWER, "query_embedder.realm.", "query_embedder."), _TOWER),
    )
  ),
  "RealmKnowledgeAugEncoder": _Class(
    ((Network(names.READER, "realm.", ""), (names.ENCODER, names.POOLER, names.MASKED_WORD_HEAD)),), has_decoder=False
  ),
  "RealmReader": _Class(((Network(names.READER, "realm.", ""), _READER),)),
  "RealmForOpenQA": _Class(
    (
      (Network(names.QUERY_TOWER, "embedder.realm.", "embedder."), _TOWER),
      (Network(names.READER, "reader.realm.", "reader."), _READER),
    )
  ),
}


class _Written(NamedTuple):
  shape: tuple[int, ...]
  pieces: Callable[[], Iterable[np.ndarray]]  # rows of it, one after another


def hf_classes(weights: Weights) -> dict[str, str]:
  """Directory below the output -> the class of HF's in it, for all networks of a source."""
  parts = weights.parts
  if names.BERT in parts:
    return {"": "BertForPreTraining" if names.MASKED_WORD_HEAD in parts[names.BERT] else "BertModel"}
  has_reader, has_spans = names.READER in parts, names.SPAN_HEAD in parts.get(names.READER, ())
  if has_reader and not has_spans and names.MASKED_WORD_HEAD not in parts[names.READER]:
    raise WeightsError(f"{weights.where} has a reader with neither head, for which HF has no class; take the retriever")
  retriever = "RealmScorer" if names.PASSAGE_TOWER in parts else "RealmEmbedder"
  reader = "RealmReader" if has_spans else "RealmKnowledgeAugEncoder"
  if not has_reader or names.QUERY_TOWER not in parts:
    return {"": reader if has_reader else retriever}
  if not has_spans:
    return {EMBEDDER: retriever, ENCODER: reader}
  # RealmForOpenQA has the query tower alone; what the passage tower embedded is in block_emb.
  return {"": "RealmForOpenQA"} | ({PASSAGE_EMBEDDER: "RealmEmbedder"} if names.PASSAGE_TOWER in parts else {})


def write_hf(directory: pathlib.Path, weights: Weights) -> dict[str, str]:
  """Writes all networks of a source below a directory, one tensor at a time; returns what `hf_classes` says.

  Raises:
    WeightsError: HF's classes can't describe the model.
  """
  model = weights.complete_model()
  if names.QUERY_TOWER in weights.parts and model.get("pooling", "cls") != "cls":
    raise WeightsError(
      f"{weights.where} has pooling={model['pooling']}; HF's classes project [CLS] and would compute other numbers, so "
      "this retriever can't be exported: keep it as a run"
    )
  if model.get("projection_layer_norm_epsilon", model["layer_norm_epsilon"]) != model["layer_norm_epsilon"]:
    raise WeightsError(
      f"{weights.where} has projection_layer_norm_epsilon={model['projection_layer_norm_epsilon']} and "
      f"layer_norm_epsilon={model['layer_norm_epsilon']}; HF's classes have one for both and would compute other "
      "numbers: train with both alike to export"
    )
  classes = hf_classes(weights)
  for below, class_name in classes.items():
    (directory / below).mkdir(parents=True, exist_ok=True)
    shown = _passage_tower_alone(weights) if below == PASSAGE_EMBEDDER else weights
    written = dict(_written(class_name, shown))
    write_safetensors(
      directory / below / "model.safetensors",
      {name: tensor.shape for name, tensor in written.items()},
      lambda name, written=written: written[name].pieces(),  # type: ignore[misc]
    )
    config = json.dumps(_config(class_name, shown), indent=2, sort_keys=True)
    (directory / below / "config.json").write_text(config + "\n", encoding="utf-8")
    if weights.vocabulary:
      weights.vocabulary.save(directory / below / "vocab.txt")
      tokenizer = {"do_lower_case": weights.vocabulary.lowercase, "model_max_length": model["max_length"]}
      (directory / below / "tokenizer_config.json").write_text(json.dumps(tokenizer) + "\n", encoding="utf-8")
  return classes


def _written(class_name: str, weights: Weights) -> Iterator[tuple[str, _Written]]:
  """All tensors that the class has, by HF's names."""
  size = {letter: weights.model.get(field, 0) for letter, field in names.FIELDS.items()}
  if class_name == "RealmForOpenQA":
    yield BLOCK_EMB, _block_emb(weights)
  for network, parts in _CLASSES[class_name].networks:
    for part in parts:
      for name in names.of(network, part, names.HF, size, weights.model["num_layers"]):
        if name.ours in weights.tensors or class_name != "BertModel":  # a BERT may have no pooler
          yield name.theirs, _parameter(name, weights)
    if _CLASSES[class_name].has_decoder:
      words = weights.tensors[f"{network.root}/encoder/word_embeddings/embedding"]
      read = (lambda words=words: [words.read()]) if network.root == names.READER else _zeros(words.shape)
      yield f"{network.outer}cls.predictions.decoder.weight", _Written(words.shape, read)
  if class_name == "BertForPreTraining":
    shape = (2, weights.model["hidden_size"])
    yield "cls.seq_relationship.weight", _Written(shape, _zeros(shape))
    yield "cls.seq_relationship.bias", _Written(shape[:1], _zeros(shape[:1]))


def _parameter(name: names.Name, weights: Weights) -> _Written:
  is_turned = names.is_transposed(name.ours, names.HF)
  shape = name.shape[::-1] if is_turned else name.shape
  if name.ours not in weights.tensors:
    return _Written(shape, _zeros(shape))
  read = weights.tensors[name.ours].read
  return _Written(shape, lambda: [read().T if is_turned else read()])


def _block_emb(weights: Weights) -> _Written:
  """Without an index, the embeddings of no passage."""
  if weights.block_emb is None:
    return _Written((0, weights.model["retrieval_size"]), list)
  shape, read = weights.block_emb
  return _Written(shape, lambda: (read(slice(i, i + _ROWS)) for i in range(0, shape[0], _ROWS)))


def _zeros(shape: tuple[int, ...]) -> Callable[[], Iterable[np.ndarray]]:
  return functools.partial(lambda shape: [np.zeros(shape, np.float32)], shape)


def _passage_tower_alone(weights: Weights) -> Weights:
  """As the one tower of a retriever."""
  end = f"{names.PASSAGE_TOWER}/"
  tensors = {
    f"{names.QUERY_TOWER}/{path.removeprefix(end)}": t for path, t in weights.tensors.items() if path.startswith(end)
  }
  return weights._replace(tensors=tensors, parts={names.QUERY_TOWER: weights.parts[names.PASSAGE_TOWER]})


def _config(class_name: str, weights: Weights) -> dict[str, Any]:
  model = weights.complete_model()
  is_realm = class_name.startswith("Realm")
  attention_dropout_rate = model.get("attention_dropout_rate", -1.0)
  config = {theirs: model[ours] for theirs, ours in SIZE_FIELDS.items() if ours in model}
  config |= {
    "architectures": [class_name],
    "model_type": "realm" if is_realm else "bert",
    "num_attention_heads": model["num_heads"],
    "hidden_act": HIDDEN_ACT[model["gelu_is_approximate"]],
    "layer_norm_eps": model["layer_norm_epsilon"],
    "hidden_dropout_prob": model["dropout_rate"],
    "attention_probs_dropout_prob": attention_dropout_rate if attention_dropout_rate >= 0 else model["dropout_rate"],
    "type_vocab_size": 2,
    "pad_token_id": weights.vocabulary.pad_id if weights.vocabulary else 0,
  }
  if is_realm:
    ours = {"stage": weights.stage, "towers_are_shared": names.PASSAGE_TOWER not in weights.parts}
    ours |= {field: model[field] for field in ("embedding_dropout_rate",) if field in model}
    config[OURS] = ours
  if "span_hidden_size" in model:
    config |= {
      "max_span_width": model["max_span_width"],
      "reader_layer_norm_eps": SPAN_LAYER_NORM_EPSILON,
      "reader_seq_len": weights.reading.get("joint_length", 320),
      "reader_beam_size": weights.reading.get("num_passages", 5),
    }
  if class_name == "RealmForOpenQA":
    config["num_block_records"] = weights.block_emb.shape[0] if weights.block_emb else 0
  return config
