"""The parameters that a run starts from: random, another run's, or a BERT in HF's form."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors import safe_open

from realm_jax.batch import Packed
from realm_jax.config import STAGES, make_reader, make_retriever
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir
from realm_jax.model.retriever import passage_tower_params

_HF_NAMES = (  # HF's name -> ours, in the tree of model.bert.Bert; a kernel is transposed
  (r"embeddings\.(word|position|token_type)_embeddings\.weight", r"\1_embeddings/embedding"),
  (r"embeddings\.LayerNorm\.(weight|bias|gamma|beta)", r"layer_norm/\1"),
  (r"encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.(weight|bias)", r"layer_\1/\2/\3"),
  (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"layer_\1/attention_output/\2"),
  (
    r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(weight|bias|gamma|beta)",
    r"layer_\1/attention_layer_norm/\2",
  ),
  (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)", r"layer_\1/mlp_in/\2"),
  (r"encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)", r"layer_\1/mlp_out/\2"),
  (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.(weight|bias|gamma|beta)", r"layer_\1/mlp_layer_norm/\2"),
  (r"pooler\.dense\.(weight|bias)", r"pooler/\1"),
)


def initial_params(config: ConfigDict, vocabulary: Vocabulary) -> dict[str, Any]:
  """{"retriever": ..., "reader": ...}, as the stage holds them, from `config.init` as far as that has them."""
  # Compiled as one program: op by op, even a tiny model takes seconds.
  params = jax.jit(lambda: _random_params(config, len(vocabulary)))()
  if config.init:
    params = _from(config.init, params, vocabulary)
  if config.init_reader and "reader" in params:
    params |= _from(config.init_reader, {"reader": params["reader"]}, vocabulary)
  return params


def _from(path: str, params: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
  if RunDir(path).config.exists():
    return _from_run(path, params)
  return _from_bert(pathlib.Path(path), params, vocabulary)


def abstract_params(config: ConfigDict, vocab_size: int) -> dict[str, Any]:
  """Shapes and types of the parameters."""
  return jax.eval_shape(lambda: _random_params(config, vocab_size))


def _random_params(config: ConfigDict, vocab_size: int) -> dict[str, Any]:
  retriever, reader = make_retriever(config.model, vocab_size), make_reader(config.model, vocab_size)
  row = np.zeros((1, 8), np.int32)
  packed = Packed(row, row, row == 0)
  retriever_key, reader_key = jax.random.split(jax.random.key(config.seed))
  init = {
    "retriever": lambda: retriever.init(retriever_key, packed, packed)["params"],
    "reader": lambda: reader.init(reader_key, packed, row[:, :1])["params"],
  }
  return {name: init[name]() for name in STAGES[config.stage]}


def _from_run(run: str, params: dict[str, Any]) -> dict[str, Any]:
  """Takes the other run's networks; one that it lacks takes the other's encoder, a shared tower is copied to both."""
  _, source = restore_params(RunDir(run))
  if "retriever" in params and "retriever" not in source:
    raise ValueError(f"{run} holds no retriever, only {', '.join(source)}; give it as --config.init_reader")
  if "reader" in params and "reader" not in source:
    # After ICT only the retriever exists. The reader's encoder starts from the query tower's: both read text.
    source["reader"] = params["reader"] | {"encoder": _without_pooler(source["retriever"]["query_tower"]["encoder"])}
  source = {name: source[name] for name in params}
  if "passage_tower" in params.get("retriever", ()):
    source["retriever"]["passage_tower"] = passage_tower_params(source["retriever"])
  elif "passage_tower" in source.get("retriever", ()):
    raise ValueError(f"{run} has two towers; set --config.model.towers_are_shared=False to start from it")
  _check_shapes(source, params, run)
  return source


def _from_bert(path: pathlib.Path, params: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
  """BERT's weights for every encoder of ours; heads and projections stay random."""
  if not (path / "model.safetensors").is_file():
    raise FileNotFoundError(
      f"{path} is neither a run directory (config.json) nor a BERT (model.safetensors with vocab.txt)"
    )
  theirs = Vocabulary.load(path / "vocab.txt", lowercase=vocabulary.lowercase)
  if theirs.digest != vocabulary.digest:
    raise ValueError(
      f"the corpus has another vocabulary ({len(vocabulary)} wordpieces) than {path} ({len(theirs)}); "
      f"build the corpus with --vocab={path / 'vocab.txt'}"
    )
  encoder = read_bert(path / "model.safetensors")
  result = {}
  if "retriever" in params:
    result["retriever"] = {name: tower | {"encoder": encoder} for name, tower in params["retriever"].items()}
  if "reader" in params:
    result["reader"] = params["reader"] | {"encoder": _without_pooler(encoder)}
  _check_shapes(result, params, str(path))
  return result


def _without_pooler(encoder: dict[str, Any]) -> dict[str, Any]:
  """The reader pools nothing."""
  return {name: value for name, value in encoder.items() if name != "pooler"}


def read_bert(path: pathlib.Path) -> dict[str, Any]:
  """HF's BertModel in safetensors -> our encoder's parameters; a prefix "bert." is left out, other tensors too."""
  tree: dict[str, Any] = {}
  with safe_open(path, "np") as file:
    for name in file.keys():
      for pattern, ours in _HF_NAMES:
        if match := re.fullmatch(rf"(?:bert\.)?{pattern}", name):
          _place(tree, match.expand(ours).split("/"), file.get_tensor(name).astype(np.float32))
  return tree


def _place(tree: dict[str, Any], path: list[str], value: np.ndarray) -> None:
  *parents, leaf = path
  leaf = {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)  # so in bert-base-uncased
  if leaf == "weight":
    leaf, value = ("scale", value) if value.ndim == 1 else ("kernel", np.ascontiguousarray(value.T))
  for parent in parents:
    tree = tree.setdefault(parent, {})
  tree[leaf] = value


def _check_shapes(source: dict[str, Any], params: dict[str, Any], path: str) -> None:
  found = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(source)}
  for key, value in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(key)
    if found.get(name) != value.shape:
      raise ValueError(
        f"{path} has {name} of shape {found.get(name, 'none')}, the config describes {value.shape}; "
        "set config.model to the sizes of what you start from"
      )
  extra = set(found) - {jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(params)}
  if extra:
    raise ValueError(f"{path} has parameters that the config does not describe: {', '.join(sorted(extra)[:5])}")
