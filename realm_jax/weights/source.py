"""Weights from anywhere: what a path or a hub id means, and several sources as one."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from realm_jax.weights import names
from realm_jax.weights.contents import Weights
from realm_jax.weights.hf import holds_weights, read_hf
from realm_jax.weights.hub import download, is_hub_id
from realm_jax.weights.tensorflow_checkpoint import find_prefix, read_tensorflow
from realm_jax.weights.tensors import WeightsError

# Below a directory, where one class of HF's can't hold all networks of ours; the order matters, see `merge`.
EMBEDDER, ENCODER, PASSAGE_EMBEDDER = "embedder", "encoder", "passage_embedder"
_DIRECTORIES = (EMBEDDER, ENCODER, PASSAGE_EMBEDDER)
_STAGES = ("", "ict", "mlm", "pretrain", "finetune")  # each can do what the ones before it can, and more
_OWN = {"realm-tiny": pathlib.Path(__file__).with_name("tiny")}  # what comes with this package


def locate(name: str) -> pathlib.Path:
  """The path that a name means: "realm-tiny" is the small model that comes with this package."""
  return _OWN.get(name, pathlib.Path(name).expanduser())


def read_weights(name: str) -> Weights:
  """Opens a directory in HF's form, a TensorFlow checkpoint, a model of the hub, or our own "realm-tiny".

  Raises:
    WeightsError: what is there can't be read, in whole or in part.
  """
  path = locate(name)
  if (prefix := find_prefix(path)) is not None:
    return read_tensorflow(prefix)
  if not path.exists() and is_hub_id(name):
    path = download(name)
  if path.is_file():
    raise WeightsError(f"{path} is a file; give the directory that it is in, with config.json and vocab.txt")
  found = [path] if holds_weights(path) else []
  found += [path / part for part in _DIRECTORIES if holds_weights(path / part)]
  if not found:
    raise WeightsError(
      f"{path} holds no weights: neither a run's (checkpoints/), nor HF's form (model.safetensors with config.json and "
      "vocab.txt), nor a TensorFlow checkpoint (NAME.index with NAME.data-00000-of-00001: give NAME)"
    )
  return merge([read_hf(directory) for directory in found])


def merge(sources: Sequence[Weights]) -> Weights:
  """Several sources as one: the first tower is the query tower, a second one the passage tower; a BERT beside a tower
  is the reader.

  Raises:
    WeightsError: they contradict each other.
  """
  merged, *others = sources
  for other in others:
    merged = _merge(merged, other)
  if names.BERT in merged.parts and names.QUERY_TOWER in merged.parts and names.READER not in merged.parts:
    if names.MASKED_WORD_HEAD not in merged.parts[names.BERT]:
      raise WeightsError(
        f"{merged.where}: beside a retriever a BERT is taken for the reader, and this one has no masked-word head; to "
        "train from both give them as --config.init and --config.init_reader"
      )
    merged = _move(_without_pooler(merged), names.BERT, names.READER)
  return merged


def _merge(a: Weights, b: Weights) -> Weights:
  if names.QUERY_TOWER in a.parts and names.QUERY_TOWER in b.parts and names.PASSAGE_TOWER not in {*a.parts, *b.parts}:
    b = _move(b, names.QUERY_TOWER, names.PASSAGE_TOWER)
  for network in b.parts:
    if network in a.parts:
      raise WeightsError(f"{a.where} and {b.where} both hold {network}; give one of them")
  for field in sorted(a.model.keys() & b.model.keys()):
    if a.model[field] != b.model[field]:
      raise WeightsError(
        f"{a.where} has {field}={a.model[field]}, {b.where} has {b.model[field]}; one model here has one for all of "
        "its networks"
      )
  if a.vocabulary and b.vocabulary and a.vocabulary.digest != b.vocabulary.digest:
    raise WeightsError(f"{a.where} and {b.where} have different vocabularies; give sources with the same")
  if a.block_emb and b.block_emb:
    raise WeightsError(f"{a.where} and {b.where} both hold passages' embeddings; give one of them")
  width = (a.model | b.model).get("retrieval_size")
  for embeddings in filter(None, (a.block_emb, b.block_emb)):
    if width not in (None, embeddings.shape[1]):
      raise WeightsError(f"{a.where} and {b.where} have embeddings of {width} and {embeddings.shape[1]} numbers")
  return Weights(
    f"{a.where} with {b.where}",
    a.tensors | b.tensors,
    a.parts | b.parts,
    a.model | b.model,
    a.block_emb or b.block_emb,
    {f"{w.where}: {name}": why for w in (a, b) for name, why in w.unused.items()},
    _known(a, b),
    a.vocabulary or b.vocabulary,
    max(a.stage, b.stage, key=_STAGES.index),
    b.reading | a.reading,
  )


def _known(a: Weights, b: Weights) -> dict[str, Any]:
  """What both can only assume."""
  return {field: v for field, v in (b.assumed | a.assumed).items() if field not in a.model | b.model}


def _move(weights: Weights, source: str, target: str) -> Weights:
  def moved(path: str) -> str:
    return target + path.removeprefix(source) if path.split("/")[: source.count("/") + 1] == source.split("/") else path

  return weights._replace(
    tensors={moved(path): tensor for path, tensor in weights.tensors.items()},
    parts={moved(network): parts for network, parts in weights.parts.items()},
  )


def _without_pooler(weights: Weights) -> Weights:
  pooler = [path for path in weights.tensors if path.startswith(f"{names.BERT}/encoder/pooler/")]
  return weights._replace(
    tensors={path: tensor for path, tensor in weights.tensors.items() if path not in pooler},
    parts=weights.parts | {names.BERT: tuple(part for part in weights.parts[names.BERT] if part != names.POOLER)},
    unused=weights.unused | dict.fromkeys(pooler, "a reader pools nothing"),
  )
