"""How a step's arrays are spread over devices: the mesh, and the table of the parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

# data: rows of the batch. fsdp: rows too, and the parameters, which are gathered where they are used. tensor: heads and
# the perceptrons' hidden units.
AXES = ("data", "fsdp", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))

# The end of a parameter's path -> how it is split. Each parameter matches exactly one. As in Megatron-LM, the first of
# two products is split by its columns and the second by its rows, so that a layer adds up over "tensor" twice.
RULES = (
  (r"(word|position|token_type)_embeddings/embedding", PartitionSpec(None, "fsdp")),
  (r"layer_\d+/(query|key|value|mlp_in)/kernel", PartitionSpec("fsdp", "tensor")),
  (r"layer_\d+/(query|key|value|mlp_in)/bias", PartitionSpec("tensor")),
  (r"layer_\d+/(attention_output|mlp_out)/kernel", PartitionSpec("tensor", "fsdp")),
  (r"(pooler|transform|projection|endpoint)/kernel", PartitionSpec("fsdp", None)),
  # Vectors of E or less: not worth a collective each.
  (r"layer_\d+/(attention_output|mlp_out)/bias|layer_\d+/\w+_layer_norm/(scale|bias)", PartitionSpec()),
  (r"(pooler|transform|projection|endpoint|score)/bias|score/kernel", PartitionSpec()),
  (r"(encoder|query_tower|passage_tower|masked_word_head|span_head)/layer_norm/(scale|bias)", PartitionSpec()),
  (r"masked_word_head/bias", PartitionSpec()),
)


def step_mesh(config: ConfigDict, devices: Sequence[jax.Device]) -> Mesh:
  """All devices as data x fsdp x tensor; config.mesh has the last two, data is what remains.

  Raises:
    ValueError: the devices, the batch or the model can't be split so, or the devices don't have the model's attention.
  """
  # To read a run XLA will do (model.bert.Bert). Whoever trains with it has a GPU, which JAX perhaps doesn't see.
  if config.model.attention == "cudnn" and devices[0].platform != "gpu":
    raise ValueError(
      "model.attention=cudnn needs a GPU; for TPUs, also in realm plan, set --config.model.attention=splash, elsewhere "
      "naive"
    )
  fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
  num_devices = len(devices)
  for name, size in (("fsdp", fsdp), ("tensor", tensor)):
    if size < 1:
      raise ValueError(f"mesh.{name}={size}, expected at least 1")
  if num_devices % (fsdp * tensor):
    raise ValueError(
      f"mesh.fsdp={fsdp} x mesh.tensor={tensor} does not divide {num_devices} devices; set them so that their product "
      f"is one of {', '.join(str(n) for n in range(1, num_devices + 1) if num_devices % n == 0)}"
    )
  if config.num_microbatches < 1:
    raise ValueError(f"num_microbatches={config.num_microbatches}, expected at least 1")
  num_parts = num_devices // tensor * config.num_microbatches
  if config.batch_size % num_parts:
    multiple = max(1, round(config.batch_size / num_parts)) * num_parts
    accumulated = f" in {config.num_microbatches} microbatches" if config.num_microbatches > 1 else ""
    raise ValueError(
      f"batch_size={config.batch_size} can't be split evenly over {num_devices // tensor} devices{accumulated}; "
      f"set --config.batch_size={multiple} or another multiple of {num_parts}"
    )
  model = config.model
  for axis, size, fields in (("fsdp", fsdp, ("hidden_size",)), ("tensor", tensor, ("num_heads", "mlp_size"))):
    for field in fields:
      if model[field] % size:
        raise ValueError(f"mesh.{axis}={size} does not divide model.{field}={model[field]}; set it to a divisor")
  return Mesh(_arranged(devices, (num_devices // (fsdp * tensor), fsdp, tensor)), AXES, axis_types=(AxisType.Auto,) * 3)


def _arranged(devices: Sequence[jax.Device], shape: tuple[int, int, int]) -> np.ndarray:
  """Neighbours in the mesh are neighbours in the network; "data" alone spans slices, which are far apart."""
  num_slices = len({getattr(device, "slice_index", 0) for device in devices})
  if num_slices > 1 and shape[0] % num_slices == 0:
    within = (shape[0] // num_slices, *shape[1:])
    return mesh_utils.create_hybrid_device_mesh(within, (num_slices, 1, 1), devices)
  return mesh_utils.create_device_mesh(shape, devices)


def state_sharding(mesh: Mesh, abstract_state: Any) -> Any:
  """A sharding for each leaf of a state or of parameters; the optimizer's moments go with their parameters.

  Raises:
    ValueError: an array matches no rule of the table, or several.
  """

  def place(path, x):
    spec = PartitionSpec() if x.ndim == 0 else parameter_spec(jax.tree_util.keystr(path, simple=True, separator="/"))
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(place, abstract_state)


def parameter_spec(path: str) -> PartitionSpec:
  """From the table, by the end of the parameter's path."""
  specs = [spec for rule, spec in RULES if re.search(f"(^|/)({rule})$", path)]
  if len(specs) != 1:
    raise ValueError(f"parameter {path} matches {len(specs)} rules of training/sharding.py, expected exactly one")
  return specs[0]


def placed(abstract: Any, sharding: Any) -> Any:
  """Shapes and types, with one sharding for all or a tree of them."""
  shardings = sharding if not isinstance(sharding, NamedSharding) else jax.tree.map(lambda _: sharding, abstract)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
