"""What of ours a source holds, before any of it is in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from realm_jax.data.vocabulary import Vocabulary
from realm_jax.weights import names
from realm_jax.weights.tensors import WeightsError, as_float32


class Tensor(NamedTuple):
  """One of our parameters, wherever it is."""

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]  # float32, finite


class Embeddings(NamedTuple):
  """The passages' embeddings of a source."""

  shape: tuple[int, ...]  # [N, D]
  read: Callable[[slice], np.ndarray]  # rows, float32, finite


class Weights(NamedTuple):
  """What of ours a source holds, nothing of it in memory yet."""

  where: str
  tensors: dict[str, Tensor]  # by our path: the network's root, then our module's
  parts: dict[str, tuple[str, ...]]  # the network's root -> its parts
  model: dict[str, Any]  # fields of config.model, and vocab_size
  block_emb: Embeddings | None
  unused: dict[str, str]  # the source's name -> why
  assumed: dict[str, Any] = {}  # fields of config.model that nothing in the source tells
  vocabulary: Vocabulary | None = None
  stage: str = ""  # of the run that it was exported from
  reading: dict[str, Any] = {}  # fields of the config on how passages are read

  def complete_model(self) -> dict[str, Any]:
    """The model's fields, told or assumed; raises WeightsError if one can't even be assumed."""
    model = self.assumed | self.model
    if not self.model:
      raise WeightsError(f"{self.where} holds no network; give the model that its embeddings are of, too")
    if "num_heads" not in model:
      raise WeightsError(
        f"nothing says how many heads {self.where} has, and its hidden size {model['hidden_size']} is no multiple of "
        "64; put a config.json with num_attention_heads beside it"
      )
    return model

  def tree(self) -> dict[str, Any]:
    """All parameters, read, as nested dictionaries."""
    root: dict[str, Any] = {}
    for path, tensor in self.tensors.items():
      *parents, leaf = path.split("/")
      node = root
      for parent in parents:
        node = node.setdefault(parent, {})
      node[leaf] = tensor.read()
    return root


def from_tree(where: str, params: Mapping[str, Any]) -> Weights:
  """Our own parameters: {"retriever": ..., "reader": ...}."""
  tensors = {}

  def add(path: str, value: Any) -> None:
    if isinstance(value, Mapping):
      for name, child in value.items():
        add(f"{path}/{name}" if path else name, child)
    else:
      tensors[path] = Tensor(value.shape, lambda: as_float32(value, path, where))

  add("", params)
  parts = {}
  for network, (needed, optional) in names.PARTS_OF.items():
    modules = {part: f"{network}/{names.PARTS[part][0].ours}/".format(n=0) for part in (*needed, *optional)}
    found = tuple(part for part, module in modules.items() if any(path.startswith(module) for path in tensors))
    if found:
      parts[network] = found
  return Weights(where, tensors, parts, {}, None, {})


def with_shared_towers(weights: Weights) -> Weights:
  """HF writes a network that serves as both towers once or twice; here it is one."""
  passage = {ours: tensor for ours, tensor in weights.tensors.items() if ours.startswith(f"{names.PASSAGE_TOWER}/")}
  for ours, tensor in passage.items():
    query = weights.tensors[ours.replace(names.PASSAGE_TOWER, names.QUERY_TOWER, 1)]
    if not np.array_equal(tensor.read(), query.read()):
      return weights
  return weights._replace(
    tensors={ours: tensor for ours, tensor in weights.tensors.items() if ours not in passage},
    parts={network: parts for network, parts in weights.parts.items() if network != names.PASSAGE_TOWER},
  )
