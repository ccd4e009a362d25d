"""What each parameter of BERT and REALM is called: here, in HF's files, and in TensorFlow's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

HF, TENSORFLOW = "hf", "tensorflow"

# Kinds of modules: leaf by leaf ours, HF's, TensorFlow's, and which of the module's sizes the leaf has.
EMBEDDING, DENSE, NORM, ARRAY = "embedding", "dense", "norm", "array"
_LEAVES = {
  EMBEDDING: (("/embedding", ".weight", "", slice(0, 2)),),
  DENSE: (("/kernel", ".weight", "/kernel", slice(0, 2)), ("/bias", ".bias", "/bias", slice(1, 2))),
  NORM: (("/scale", ".weight", "/gamma", slice(0, 1)), ("/bias", ".bias", "/beta", slice(0, 1))),
  ARRAY: (("", "", "", slice(0, 1)),),
}


class Module(NamedTuple):
  """A row of the table."""

  ours: str  # below the network's place in our tree; {n} is the layer
  hf: str  # {bert}, {layer}, {cls} and {outer} are filled in by `_places`
  kind: str
  size: str  # inputs and outputs, or the array's: E hidden · V vocabulary · D retrieval width · L positions
  #            · F width of the perceptron · W width of the span head
  tensorflow: str = ""  # where it isn't HF's name with slashes


FIELDS = {  # letter -> field of config.model, and vocab_size
  "V": "vocab_size", "E": "hidden_size", "F": "mlp_size", "L": "max_length", "D": "retrieval_size",
  "W": "span_hidden_size",
}  # fmt: skip

ENCODER, POOLER, PROJECTION = "encoder", "pooler", "projection"
MASKED_WORD_HEAD, SPAN_HEAD = "masked-word head", "span head"

PARTS: dict[str, tuple[Module, ...]] = {
  ENCODER: (
    Module("encoder/word_embeddings", "{bert}embeddings.word_embeddings", EMBEDDING, "V E"),
    Module("encoder/position_embeddings", "{bert}embeddings.position_embeddings", EMBEDDING, "L E"),
    Module("encoder/token_type_embeddings", "{bert}embeddings.token_type_embeddings", EMBEDDING, "2 E"),
    Module("encoder/layer_norm", "{bert}embeddings.LayerNorm", NORM, "E"),
    Module("encoder/layer_{n}/query", "{layer}attention.self.query", DENSE, "E E"),
    Module("encoder/layer_{n}/key", "{layer}attention.self.key", DENSE, "E E"),
    Module("encoder/layer_{n}/value", "{layer}attention.self.value", DENSE, "E E"),
    Module("encoder/layer_{n}/attention_output", "{layer}attention.output.dense", DENSE, "E E"),
    Module("encoder/layer_{n}/attention_layer_norm", "{layer}attention.output.LayerNorm", NORM, "E"),
    Module("encoder/layer_{n}/mlp_in", "{layer}intermediate.dense", DENSE, "E F"),
    Module("encoder/layer_{n}/mlp_out", "{layer}output.dense", DENSE, "F E"),
    Module("encoder/layer_{n}/mlp_layer_norm", "{layer}output.LayerNorm", NORM, "E"),
  ),
  POOLER: (
    Module("encoder/pooler", "{bert}pooler.dense", DENSE, "E E"),
  ),
  PROJECTION: (
    Module("projection", "{cls}dense", DENSE, "E D", "{outer}dense"),
    Module("layer_norm", "{cls}LayerNorm", NORM, "D", "{outer}LayerNorm"),
  ),
  MASKED_WORD_HEAD: (
    Module("masked_word_head/transform", "{cls}predictions.transform.dense", DENSE, "E E"),
    Module("masked_word_head/layer_norm", "{cls}predictions.transform.LayerNorm", NORM, "E"),
    Module("masked_word_head/bias", "{cls}predictions.bias", ARRAY, "V", "{cls}predictions/output_bias"),
  ),
  SPAN_HEAD: (
    Module("span_head/endpoint", "{outer}qa_outputs.dense_intermediate", DENSE, "E 2W", "{outer}dense"),
    Module("span_head/layer_norm", "{outer}qa_outputs.layer_normalization", NORM, "W", "{outer}layer_normalization"),
    Module("span_head/score", "{outer}qa_outputs.dense_output", DENSE, "W 1", "{outer}dense_1"),
  ),
}  # fmt: skip


class Network(NamedTuple):
  """A network in a source, or in a file to write."""

  root: str  # its place in our tree: BERT, QUERY_TOWER, PASSAGE_TOWER or READER
  inner: str  # what stands before BERT's own names
  outer: str  # what stands before the names of the projection and the span head


BERT = "bert"  # an encoder on its own, with or without a masked-word head
QUERY_TOWER, PASSAGE_TOWER, READER = "retriever/query_tower", "retriever/passage_tower", "reader"

# The parts without which it is no such network, and those that it may lack.
_TOWER_PARTS: tuple[tuple[str, ...], tuple[str, ...]] = ((ENCODER, POOLER, PROJECTION), ())
PARTS_OF = {
  BERT: ((ENCODER,), (POOLER, MASKED_WORD_HEAD)),
  QUERY_TOWER: _TOWER_PARTS,
  PASSAGE_TOWER: _TOWER_PARTS,
  READER: ((ENCODER,), (MASKED_WORD_HEAD, SPAN_HEAD)),
}


class Name(NamedTuple):
  """One parameter."""

  ours: str
  theirs: str
  shape: tuple[int, ...]  # ours


def of(network: Network, part: str, system: str, size: Mapping[str, int], num_layers: int) -> Iterator[Name]:
  """All parameters of a part.

  Args:
    system: HF or TENSORFLOW.
    size: letter -> length, for the letters of the part.
  """
  size = {**size, "1": 1, "2": 2, "2W": 2 * size.get("W", 0)}
  for module in PARTS[part]:
    shape = tuple(size[letter] for letter in module.size.split())
    for n in range(num_layers if "{n}" in module.ours else 1):
      theirs = module.hf if system == HF else module.tensorflow or module.hf.replace(".", "/")
      theirs = theirs.format(**_places(network, system, n))
      ours = f"{network.root}/{module.ours.format(n=n)}"
      for ours_leaf, hf_leaf, tensorflow_leaf, axes in _LEAVES[module.kind]:
        yield Name(ours + ours_leaf, theirs + (hf_leaf if system == HF else tensorflow_leaf), shape[axes])


def is_transposed(ours: str, system: str) -> bool:
  """A kernel is [inputs, outputs] here and in TensorFlow, [outputs, inputs] at HF."""
  return system == HF and ours.endswith("/kernel")


def _places(network: Network, system: str, n: int) -> dict[str, str]:
  if system == HF:
    bert = network.inner
    return {"bert": bert, "layer": f"{bert}encoder.layer.{n}.", "cls": f"{network.outer}cls.", "outer": network.outer}
  bert = f"{network.inner}bert/"
  return {"bert": bert, "layer": f"{bert}encoder/layer_{n}/", "cls": f"{network.inner}cls/", "outer": network.outer}
