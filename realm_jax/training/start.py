"""The parameters that a run starts from: random, another run's, or weights from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from realm_jax.batch import Packed
from realm_jax.config import STAGES, make_reader, make_retriever
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir
from realm_jax.weights.contents import Weights
from realm_jax.weights.source import read_weights


def initial_params(config: ConfigDict, vocabulary: Vocabulary) -> dict[str, Any]:
  """{"retriever": ..., "reader": ...}, as the stage holds them, from `config.init` as far as that has them."""
  source, reader_source = _read(config.init, config, vocabulary), _read(config.init_reader, config, vocabulary)
  params = abstract_params(config, len(vocabulary))
  if source:
    params = _adopt(source, params, config.init)
  if reader_source and "reader" in params:
    params |= _adopt(reader_source, {"reader": params["reader"]}, config.init_reader)
  return _draw_the_rest(params, lambda: random_params(config, len(vocabulary)))


def _draw_the_rest(params: dict[str, Any], draw: Callable[[], dict[str, Any]]) -> dict[str, Any]:
  """Random numbers for what is a shape still, of draw's tree."""
  leaves, tree = jax.tree.flatten(params)
  lacking = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]

  def draw_lacking() -> list[jax.Array]:
    drawn = jax.tree.leaves(draw())
    return [drawn[i] for i in lacking]

  # Compiled as one program, of these alone: op by op, or with all, even a tiny model takes seconds.
  for i, value in zip(lacking, jax.jit(draw_lacking)() if lacking else []):
    leaves[i] = value
  return jax.tree.unflatten(tree, leaves)


def abstract_params(config: ConfigDict, vocab_size: int) -> dict[str, Any]:
  """Shapes and types of the parameters."""
  return jax.eval_shape(lambda: random_params(config, vocab_size))


def random_params(config: ConfigDict, vocab_size: int) -> dict[str, Any]:
  """{"retriever": ..., "reader": ...}, as far as the stage has them, by BERT's initialisers from config.seed."""
  retriever, reader = make_retriever(config.model, vocab_size), make_reader(config.model, vocab_size)
  row = np.zeros((1, 8), np.int32)
  packed = Packed(row, row, row == 0)
  retriever_key, reader_key = jax.random.split(jax.random.key(config.seed))
  init = {
    "retriever": lambda: retriever.init(retriever_key, packed, packed)["params"],
    "reader": lambda: reader.init(reader_key, packed, row[:, :1])["params"],
  }
  return {name: init[name]() for name in STAGES[config.stage]}


def _read(path: str, config: ConfigDict, vocabulary: Vocabulary) -> dict[str, Any]:
  """A run's parameters, or weights of the config's model and the corpus' vocabulary; nothing from no path."""
  if not path:
    return {}
  run_dir = RunDir(path)
  if run_dir.checkpoints.exists():
    return restore_params(run_dir)[1]
  weights = read_weights(path)
  if weights.vocabulary is None:
    raise ValueError(f"{path} has no vocabulary; put its vocab.txt there, so that it can be compared with the corpus'")
  if weights.vocabulary.digest != vocabulary.digest:
    raise ValueError(
      f"the corpus has another vocabulary ({_describe(vocabulary)}) than {path} ({_describe(weights.vocabulary)}); "
      f"build the corpus with --vocab={path}"
    )
  _check_model(weights, config.model)
  return weights.tree()


def _describe(vocabulary: Vocabulary) -> str:
  return f"{len(vocabulary)} wordpieces, {'uncased' if vocabulary.lowercase else 'cased'}"


def _check_model(weights: Weights, model: ConfigDict) -> None:
  """How often something is dropped in training is the config's own choice, all else must be as in the weights."""
  told = {field: value for field, value in weights.model.items() if field in model and "dropout" not in field}
  different = {field: value for field, value in told.items() if model[field] != value}
  if different:
    field, value = next(iter(different.items()))
    flags = " ".join(f"--config.model.{field}={value}" for field, value in different.items())
    raise ValueError(f"{weights.where} has {field}={value}, the config {model[field]}; set {flags}")


def _adopt(source: dict[str, Any], params: dict[str, Any], where: str) -> dict[str, Any]:
  """Takes the source's parameters; a part that it lacks stays random, a shared tower is copied to both."""
  bert, towers = source.get("bert", {}), source.get("retriever", {})
  query_tower = towers.get("query_tower") or {name: bert[name] for name in bert if name == "encoder"}
  result = {}
  if "retriever" in params:
    if not query_tower:
      raise ValueError(f"{where} holds no retriever, only {', '.join(source)}; give it as --config.init_reader")
    _check_pooling(query_tower, params["retriever"]["query_tower"], where)
    if "passage_tower" in towers and "passage_tower" not in params["retriever"]:
      raise ValueError(f"{where} has two towers; set --config.model.towers_are_shared=False to start from it")
    adopted = {"query_tower": query_tower, "passage_tower": towers.get("passage_tower", query_tower)}
    result["retriever"] = {name: _replace(tower, adopted[name]) for name, tower in params["retriever"].items()}
  if "reader" in params:
    # After ICT only the retriever exists. The reader's encoder starts from the query tower's: both read text.
    reader = source.get("reader") or bert or {"encoder": query_tower["encoder"]}
    result["reader"] = _replace(params["reader"], reader)
  _check_shapes(result, params, where)
  return result


def _check_pooling(source: dict[str, Any], tower: dict[str, Any], where: str) -> None:
  """A projection belongs to what it was trained to project; a BERT alone has none."""
  if "projection" in source and ("pooler" in source["encoder"]) != ("pooler" in tower["encoder"]):
    pooling = "cls" if "pooler" in source["encoder"] else "mean"
    raise ValueError(f"{where} has a retriever with another pooling; set --config.model.pooling={pooling}")


def _replace(params: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
  """Encoder and heads, each whole; but an encoder may come without its pooler, or with one that isn't needed."""
  if "encoder" not in source:
    return params | source
  pooler = {name: value for name, value in params["encoder"].items() if name == "pooler"}
  encoder = {name: value for name, value in source["encoder"].items() if name != "pooler" or pooler}
  return params | source | {"encoder": pooler | encoder}


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
