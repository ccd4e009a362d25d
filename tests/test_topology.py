"""TPU slices: their names, their chips, and what is said of those that are none."""

import math
import types

import pytest

from realm_jax.training import topology
from realm_jax.training.topology import CHIPS, Topology, compile_only_devices, parse_topology, peak_flops


@pytest.mark.parametrize(
  ("name", "generation", "num_chips"),
  [
    ("v5e:8x8", "v5e", 64), ("v5e-64", "v5e", 64), ("v5litepod-16", "v5e", 16), ("v5litepod-1", "v5e", 1),
    ("v6e:1x1", "v6e", 1), ("v4:2x4x4", "v4", 32),
    ("v4-64", "v4", 32), ("v5p-8", "v5p", 4), ("v6e-256", "v6e", 256), ("v7x:2x2x1", "v7x", 4), ("tpu7x-8", "v7x", 8),
  ],
)  # fmt: skip
def test_names_of_slices(name, generation, num_chips):
  """v4's and v5p's names count cores, two a chip; the others' count chips."""
  parsed = parse_topology(name)
  assert parsed.chip is CHIPS[generation] and parsed.num_chips == num_chips


@pytest.mark.parametrize(
  "name", ["v5e", "v5e:", "v5e:8", "v5e:0x8", "v5e:8x8x8x8", "v9:2x2", "v5e-65", "v5e:8x", "", "a100"]
)
def test_an_unknown_topology_is_answered_with_the_known_ones(name):
  with pytest.raises(ValueError, match=r"^unknown topology .*as in v5e:8x8") as error:
    parse_topology(name)
  assert repr(name) in str(error.value)
  assert all(slice_name in str(error.value) for chip in CHIPS.values() for slice_name in chip.grids)


def test_grids_and_names_agree():
  for chip in CHIPS.values():
    for name, grid in chip.grids.items():
      cores = 2 if name.startswith(("v4", "v5p")) else 1
      assert int(name.rpartition("-")[2]) == cores * math.prod(int(n) for n in grid.split("x"))


def test_chips_are_those_that_jax_knows():
  """Peaks and memory against JAX' own table, which has them rounded, and the memory with what is reserved."""
  pltpu = pytest.importorskip("jax.experimental.pallas.tpu")
  for generation, version in {"v4": "v4", "v5e": "v5e", "v5p": "v5p", "v6e": "v6e", "v7x": "7x"}.items():
    cores = pltpu.ChipVersion(version).num_physical_tensor_cores_per_chip
    theirs, ours = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion(version), 1), CHIPS[generation]
    assert ours.flops == pytest.approx(cores * theirs.bf16_ops_per_second, rel=0.01)
    # v5p: 2765 GB/s in Google's documentation, 2460 in JAX.
    assert ours.hbm_bandwidth == pytest.approx(
      cores * theirs.mem_bw_bytes_per_second, rel=0.13 if version == "v5p" else 0.03
    )
    assert 0.9 < ours.hbm / (cores * theirs.hbm_capacity_bytes) <= 1


def test_without_libtpu_the_line_that_installs_it(monkeypatch):
  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    ImportError, match=r'^compiling for a TPU needs the libtpu wheel \(no TPU\): pip install "jax\[tpu\]"'
  ):
    compile_only_devices(parse_topology("v5e:2x2"))


def test_a_grid_that_libtpu_refuses(monkeypatch):
  def refuse(**options):
    assert options == {"platform": "tpu", "topology_name": "v4:3x3x3", "chip_config_name": "megacore"}
    raise topology.jax.errors.JaxRuntimeError("INVALID_ARGUMENT: not divisible")

  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: True)
  monkeypatch.setattr(topology.topologies, "get_topology_desc", refuse)
  with pytest.raises(ValueError, match=r"^v4:3x3x3 is no grid of a slice: not divisible; grids are 2x2x1, 2x2x2, "):
    compile_only_devices(Topology("v4:3x3x3", CHIPS["v4"], "3x3x3"))


@pytest.mark.parametrize(("name", "options"), [("v5litepod-1", {"chips_per_host_bounds": [1, 1, 1]}), ("v5e:2x2", {})])
def test_a_host_of_one_chip(monkeypatch, name, options):
  def describe(**given):
    assert given == {"platform": "tpu", "topology_name": f"v5e:{topology_.grid}"} | options
    return types.SimpleNamespace(devices=[object()] * topology_.num_devices)

  topology_ = parse_topology(name)
  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: True)
  monkeypatch.setattr(topology.topologies, "get_topology_desc", describe)
  assert len(compile_only_devices(topology_)) == topology_.num_chips


@pytest.mark.parametrize(
  ("kind", "flops"),
  [("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("TPU7x", 2307e12 / 2), ("cpu", None),
   ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 NVL", None)],
)  # fmt: skip
def test_the_peak_of_a_device(kind, flops):
  assert peak_flops(kind) == flops
