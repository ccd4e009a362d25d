"""TPU slices by name: what a chip of each generation can do, and devices to compile for without one."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

INSTALL_LIBTPU = 'pip install "jax[tpu]"   (or, in a checkout of this project: pip install -e ".[tpu]")'


class Chip(NamedTuple):
  """One chip: bytes, operations in bfloat16, and bytes a second.

  The peaks are those of docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read in November 2026. The
  interconnect's is what one chip can send over all its links together: half of the "bidirectional" figure there, for
  v4, where none is given, the pod's all-reduce bandwidth over its 4,096 chips. hbm is what libtpu 0.0.42 lets one
  program have, a little less than is built in.
  """

  hbm: float
  flops: float
  hbm_bandwidth: float
  ici_bandwidth: float
  grids: Mapping[str, str]  # Google's names of slices that can be rented -> grids of chips
  libtpu_name: str
  options: Mapping[str, Any] = {}  # of libtpu
  devices_per_chip: int = 1


_2D = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_3D = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}


def _names(prefix: str, grids: Mapping[int, str], cores_per_chip: int = 1) -> dict[str, str]:
  return {f"{prefix}-{cores_per_chip * chips}": grid for chips, grid in grids.items()}


CHIPS = {
  # Both cores of a v4 chip are one device, as on the machines that are rented.
  "v4": Chip(
    30.75 * 2**30, 275e12, 1200e9, 268e9, _names("v4", _3D, 2), "v4", {"chip_config_name": "megacore"}
  ),
  "v5e": Chip(15.75 * 2**30, 197e12, 819e9, 200e9, _names("v5e", _2D) | _names("v5litepod", _2D), "v5e"),
  "v5p": Chip(95.74 * 2**30, 459e12, 2765e9, 600e9, _names("v5p", _3D, 2), "v5p"),
  "v6e": Chip(31.25 * 2**30, 918e12, 1638e9, 400e9, _names("v6e", _2D), "v6e"),
  "v7x": Chip(189.5 * 2**30, 2307e12, 7380e9, 600e9, _names("tpu7x", _3D), "tpu7x", devices_per_chip=2),
}  # fmt: skip

# JAX's names of devices (`jax.Device.device_kind`) -> generation.
_TPU_KINDS = {
  "TPU v4": "v4",
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v5p": "v5p",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
  "TPU7x": "v7x",
}
# The same of GPUs -> operations a second, dense, in bfloat16, as others quote nvidia.com/en-us/data-center/{a100,h100,
# h200,l4}. But for the A100 NVIDIA gives the rate with sparsity, twice this (H100 SXM and H200: 1,979 TFLOPS;
# H100 PCIe: 1,513; L4: 242). V100 and T4 multiply no bfloat16, and have no such peak.
_GPU_FLOPS = {
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA A100-PCIE-40GB": 312e12,
  "NVIDIA A100 80GB PCIe": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H200": 989e12,
  "NVIDIA L4": 121e12,
}


def peak_flops(device_kind: str) -> float | None:
  """Operations a second of one device in bfloat16; None for a CPU, or a device that isn't known."""
  if generation := _TPU_KINDS.get(device_kind):
    chip = CHIPS[generation]
    return chip.flops / chip.devices_per_chip
  return _GPU_FLOPS.get(device_kind)


class Topology(NamedTuple):
  """A slice of chips."""

  name: str
  chip: Chip
  grid: str

  @property
  def num_chips(self) -> int:
    """Of the whole slice."""
    return math.prod(int(size) for size in self.grid.split("x"))

  @property
  def num_devices(self) -> int:
    """As JAX counts them: a v7x chip is two."""
    return self.num_chips * self.chip.devices_per_chip


def parse_topology(name: str) -> Topology:
  """A slice by its grid of chips, "v5e:8x8", or by Google's name for it, "v5e-64" or "v4-64" (32 chips: v4's and v5p's
  names count cores, of which a chip has two).

  >>> parse_topology("v4-64").grid, parse_topology("v5e:8x8").num_chips
  ('2x4x4', 64)

  Raises:
    ValueError: it is unknown; the known ones are listed.
  """
  for chip in CHIPS.values():
    if name in chip.grids:
      return Topology(name, chip, chip.grids[name])
  generation, _, grid = name.partition(":")
  if generation in CHIPS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", grid):
    return Topology(name, CHIPS[generation], grid)
  known = "; ".join(f"{generation}: {', '.join(chip.grids)}" for generation, chip in CHIPS.items())
  raise ValueError(
    f"unknown topology {name!r}; name a slice, or a generation and its grid of chips, as in v5e:8x8. "
    f"The slices are {known}"
  )


def compile_only_devices(topology: Topology) -> list[jax.Device]:
  """Devices that programs can be compiled for, and that can't run them; needs libtpu, and no TPU.

  Raises:
    ImportError: libtpu is not installed.
    ValueError: no slice has this grid.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ImportError(f"compiling for a TPU needs the libtpu wheel (no TPU): {INSTALL_LIBTPU}")
  chip = topology.chip
  options = dict(chip.options)
  if topology.num_chips == 1:
    options["chips_per_host_bounds"] = [1, 1, 1]  # libtpu's hosts have more
  try:
    described = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{chip.libtpu_name}:{topology.grid}", **options
    )
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).removeprefix("INVALID_ARGUMENT: ")
    grids = ", ".join(dict.fromkeys(chip.grids.values()))
    raise ValueError(f"{topology.name} is no grid of a slice: {reason}; grids are {grids}") from error
  assert len(described.devices) == topology.num_devices
  return list(described.devices)
