"""Finds our networks among the tensors of a source, and accounts for every tensor in it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from realm_jax.weights import names
from realm_jax.weights.contents import Embeddings, Tensor, Weights
from realm_jax.weights.names import Network
from realm_jax.weights.tensors import Tensors, WeightsError, as_float32

BLOCK_EMB = "block_emb"  # passages' embeddings: a buffer of HF's RealmForOpenQA, and the one variable of encoded.ckpt

_WORD_EMBEDDINGS = {
  names.HF: "embeddings.word_embeddings.weight",
  names.TENSORFLOW: "bert/embeddings/word_embeddings",
}
_LAYER = {names.HF: r"encoder\.layer\.(\d{1,6})\.", names.TENSORFLOW: r"bert/encoder/layer_(\d{1,6})/"}
# Parameters that tell sizes, and the letters of their dimensions.
_TELLING = (
  (names.ENCODER, "encoder/word_embeddings/embedding", "VE"),
  (names.ENCODER, "encoder/position_embeddings/embedding", "LE"),
  (names.ENCODER, "encoder/layer_0/mlp_in/bias", "F"),
  (names.PROJECTION, "projection/bias", "D"),
  (names.SPAN_HEAD, "span_head/layer_norm/scale", "W"),
)
_NO_SIZE = dict.fromkeys(names.FIELDS, 0)  # where names alone are wanted
# What stands before HF's word embeddings -> the network, and what stands before its heads.
_HF_NETWORKS = {
  "": (names.BERT, ""),
  "bert.": (names.BERT, ""),
  "bert_model.": (names.BERT, ""),
  "ctx_encoder.bert_model.": (names.BERT, "ctx_encoder."),
  "question_encoder.bert_model.": (names.BERT, "question_encoder."),
  "realm.": (names.READER, ""),  # or a tower: `_hf_networks`
  "reader.realm.": (names.READER, "reader."),
  "embedder.realm.": (names.QUERY_TOWER, "embedder."),
  "query_embedder.realm.": (names.QUERY_TOWER, "query_embedder."),
}
_UNUSED = (  # the first that fits says why
  (r"(.*/)?(adam_[mv]|AdamWeightDecayOptimizer(_1)?)(/.*)?|global_step", "optimizer state"),
  (r".*position_ids", "a constant"),
  (r".*cls[./]seq_relationship[./].*", "no network here guesses which sentence follows"),
  (r".*encode_proj\..*", "DPR projects the state of [CLS], a tower here the pooled one"),
  (r"linear\.weight", "ColBERT projects every token, a tower here the pooled one"),
  (r"(.*[./])?pooler[./].*", "a reader pools nothing"),
  (r"(embedder\.|query_embedder\.)?cls\.predictions\..*|(module/)+cls/predictions/.*", "a retriever predicts no words"),
  (r"(?s).*", "no network here has it"),
)


def recognise(source: Tensors, system: str) -> Weights:
  """Raises WeightsError if a tensor is missing or misshapen, or nothing of ours is there."""
  source = _Canonical(source)
  networks = _hf_networks(source.shapes) if system == names.HF else _tensorflow_networks(source.shapes)
  if not networks and BLOCK_EMB not in source.shapes:
    some = ", ".join(map(repr, sorted(source.shapes)[:3]))
    raise WeightsError(
      f"{source.where} has no network that is known here (its tensors: {some or 'none'} ...); "
      "known are BERT, DPR, ColBERT and REALM, by the names of HF or TensorFlow"
    )
  _check_roots(networks, source.where)
  unused: dict[str, str] = {}
  parts = {network.root: _parts(network, system, source, unused) for network in networks}
  num_layers = _num_layers(networks, system, source)
  size = _sizes(networks, parts, system, source)
  tensors: dict[str, Tensor] = {}
  used: set[str] = set()
  for network in networks:
    for name in (n for part in parts[network.root] for n in names.of(network, part, system, size, num_layers)):
      is_turned = names.is_transposed(name.ours, system)
      _check(name.theirs, source, name.shape[::-1] if is_turned else name.shape)
      tensors[name.ours] = Tensor(name.shape, functools.partial(_read, source, name.theirs, is_turned))
      used.add(name.theirs)
    if system == names.HF and names.MASKED_WORD_HEAD in parts[network.root]:
      is_read = names.SPAN_HEAD not in parts[network.root]
      for copy, is_same in _tied_copies(network, source, must_be_same=is_read).items():
        if is_same:
          used.add(copy)
        else:
          unused[copy] = "HF's reader never reads it, and here the decoder is the word embeddings"
  rest = source.shapes.keys() - used - unused.keys() - {BLOCK_EMB}
  unused |= {name: next(why for pattern, why in _UNUSED if re.fullmatch(pattern, name)) for name in sorted(rest)}
  block_emb = _embeddings(source, size) if BLOCK_EMB in source.shapes else None
  return Weights(source.where, tensors, parts, _model(size, num_layers), block_emb, unused)


class _Canonical:
  """A source, with one name for what has two: bert-base-uncased itself has gamma and beta in its layer norms."""

  def __init__(self, source: Tensors):
    self.where = source.where
    self._source = source
    self._name: dict[str, str] = {}
    for name in source.shapes:
      canonical = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))
      if canonical in self._name:
        raise WeightsError(f"{self.where} has both {self._name[canonical]!r} and {name!r}; delete one of them")
      self._name[canonical] = name
    self.shapes = {canonical: source.shapes[name] for canonical, name in self._name.items()}

  def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
    return self._source.read(self._name[name], rows)


def _hf_networks(shapes: Mapping[str, tuple[int, ...]]) -> list[Network]:
  end = _WORD_EMBEDDINGS[names.HF]
  stems = sorted(name.removesuffix(end) for name in shapes if name.endswith(end))
  networks = [Network(_HF_NETWORKS[stem][0], stem, _HF_NETWORKS[stem][1]) for stem in stems if stem in _HF_NETWORKS]
  if stems == ["realm."] and "cls.dense.weight" in shapes:
    return [networks[0]._replace(root=names.QUERY_TOWER)]
  if {"embedder.realm.", "query_embedder.realm."} <= set(stems):  # RealmScorer: its embedder reads the passages
    return [n._replace(root=names.PASSAGE_TOWER) if n.inner == "embedder.realm." else n for n in networks]
  return networks


def _tensorflow_networks(shapes: Mapping[str, tuple[int, ...]]) -> list[Network]:
  end = _WORD_EMBEDDINGS[names.TENSORFLOW]
  networks = []
  for stem in sorted(name.removesuffix(end) for name in shapes if name.endswith(end)):
    if re.fullmatch(r"(module/)+", stem):  # 3 deep in the pre-trained embedder, 4 in a fine-tuned checkpoint
      networks.append(Network(names.QUERY_TOWER, stem, stem.removesuffix("module/")))
    elif re.fullmatch(r"reader/(module/)?", stem):
      networks.append(Network(names.READER, stem, "reader/"))
    elif not stem:
      networks.append(Network(names.BERT, "", ""))
  return networks


def _check_roots(networks: list[Network], where: str) -> None:
  for network in networks:
    stems = [n.inner for n in networks if n.root == network.root]
    if len(stems) > 1:
      raise WeightsError(f"{where} has more than one {network.root} ({stems}); give each a file of its own")


def _parts(network: Network, system: str, source: Tensors, unused: dict[str, str]) -> tuple[str, ...]:
  """The parts that must be whole: those that it can't be without, and those of which a tensor is there."""
  needed, optional = names.PARTS_OF[network.root]
  found = list(needed)
  for part in optional:
    there = [name.theirs for name in names.of(network, part, system, _NO_SIZE, 0) if name.theirs in source.shapes]
    if there and not any(source.read(name).any() for name in there):
      unused |= dict.fromkeys(there, "all zeros: the class has it, the model has not")
    elif there:
      found.append(part)
  return tuple(found)


def _num_layers(networks: list[Network], system: str, source: Tensors) -> int:
  """Every network has as many: one model describes them all."""
  num_layers = 0
  for network in networks:
    pattern = re.compile(re.escape(network.inner) + _LAYER[system])
    found = {int(match[1]) for match in map(pattern.match, source.shapes) if match}
    missing = sorted(set(range(max(len(found), num_layers, 1))) - found)
    if missing:
      raise WeightsError(f"{source.where} lacks layer {missing[0]} of {network.inner or 'BERT'!r}; get it again")
    num_layers = len(found)
  return num_layers


def _sizes(
  networks: list[Network], parts: Mapping[str, tuple[str, ...]], system: str, source: Tensors
) -> dict[str, int]:  # fmt: skip
  """Letter -> length, as the first network that has it says; `_check` holds the others to it."""
  size: dict[str, int] = {}
  for network in networks:
    for part, module, letters in _TELLING:
      if part in parts[network.root] and letters[0] not in size:
        named = names.of(network, part, system, _NO_SIZE, 1)
        name = next(n.theirs for n in named if n.ours == f"{network.root}/{module}")
        _check(name, source, (None,) * len(letters))
        size = dict(zip(letters, source.shapes[name])) | size
  return size


def _check(name: str, source: Tensors, expected: tuple[int | None, ...]) -> None:
  """None stands for any length."""
  if name not in source.shapes:
    raise WeightsError(f"{name!r} is missing in {source.where}: half a model? Get it again")
  found = source.shapes[name]
  if len(found) != len(expected) or any(e not in (None, f) for e, f in zip(expected, found)):
    wanted = f"{len(expected)} dimensions" if None in expected else str(list(expected))
    raise WeightsError(
      f"{name!r} in {source.where} has the shape {list(found)}, by the other tensors it should have {wanted}; "
      "get it again"
    )


def _tied_copies(network: Network, source: Tensors, *, must_be_same: bool) -> dict[str, bool]:
  """HF's copies of what a masked-word head takes from elsewhere -> whether they are the same."""
  head = f"{network.outer}cls.predictions."
  original = {
    f"{head}decoder.weight": network.inner + _WORD_EMBEDDINGS[names.HF],
    f"{head}decoder.bias": f"{head}bias",
  }
  is_same = {c: np.array_equal(source.read(c), source.read(o)) for c, o in original.items() if c in source.shapes}
  for copy in (copy for copy, same in is_same.items() if must_be_same and not same):
    raise WeightsError(
      f"{copy!r} in {source.where} differs from {original[copy]!r}; here they are one, so this masked-word head can't "
      "be kept: take the model without it"
    )
  return is_same


def _read(source: Tensors, name: str, is_turned: bool) -> np.ndarray:
  value = as_float32(source.read(name), name, source.where)
  return np.ascontiguousarray(value.T) if is_turned else value


def _embeddings(source: Tensors, size: Mapping[str, int]) -> Embeddings:
  shape = source.shapes[BLOCK_EMB]
  _check(BLOCK_EMB, source, (None, size.get("D")))
  return Embeddings(shape, lambda rows: as_float32(source.read(BLOCK_EMB, rows), BLOCK_EMB, source.where))


def _model(size: Mapping[str, int], num_layers: int) -> dict[str, Any]:
  model = {field: size[letter] for letter, field in names.FIELDS.items() if letter in size}
  return model | {"num_layers": num_layers} if model else {}
