"""Plans: what a step needs, compiled for CPUs; the largest batch; and the paper's setting, compiled for TPUs."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from realm_jax.batch import QueryBatch
from realm_jax.config import STAGES, paper_config
from realm_jax.data.passages import PassageStore
from realm_jax.index.retrieve import BatchAssembler
from realm_jax.index.snapshot import Snapshot
from realm_jax.training import abstract_step
from realm_jax.training.abstract_step import CorpusSize, OutOfMemory, abstract_batch, compile_step, step_mesh
from realm_jax.training.planning import Memory, find_largest_batch, is_searched_on_chip

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def eight_devices():
  """What tests/eight_devices.py finds in a process that has as many."""
  quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  result = subprocess.run(
    [sys.executable, str(ROOT / "tests" / "eight_devices.py")],
    env=os.environ
    | {
      "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {quick}",
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(ROOT),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout)


def test_the_compilers_count_is_ours(eight_devices):
  """Within 3 %: the compiler counts element-wise operations too."""
  assert 1 <= eight_devices["step"]["flops_ratio"] < 1.03


def test_memory_by_kind(eight_devices):
  """Parameters and two moments of them, float32, whole on each device; an eighth of the batch."""
  step = eight_devices["step"]
  config = paper_config("pretrain")
  num_tokens = 16 * (16 + 2 * 64 + 2 * config.max_masks * 0 + 2 * 64)
  assert step["optimizer"] == pytest.approx(2 * step["parameters"], abs=100)
  assert step["batch"] == (num_tokens * (4 + 4 + 1) + 16 * config.max_masks * 12) // 8


def test_only_gradients_are_sent(eight_devices):
  """Each parameter's, once or, of the tower that queries and passages share, twice; all else is small: position
  embeddings of 16 of 64 positions are reduced before they are part of a gradient."""
  step = eight_devices["step"]
  assert list(step["other_bytes"]) == ["all-reduce"] and step["group_sizes"] == [8]
  assert step["parameters"] * 0.95 < step["moved_parameters"] < 2 * step["parameters"]
  assert step["largest_other"] <= 3 * 64 * 768 * 4


@pytest.mark.parametrize("name", ["in parts", "ict in parts"])
def test_in_microbatches_gradients_are_sent_once(eight_devices, name):
  """Each parameter's, behind the last part, those of a shared tower too; what is in a loop counts twice here."""
  step = eight_devices[name]
  assert step["moved_parameters"] == pytest.approx(step["parameters"], rel=0.01)
  assert step["largest_other"] < 1e6


def test_what_a_mesh_of_three_axes_sends(eight_devices):
  """2 x 2 x 2: parameters and gradients, 182 MB of 204, and a layer's activations, added up over the two devices that
  share it: forward twice, backward for queries, keys, values and the perceptron. A device has 4 queries of 16 tokens,
  their 2 passages of 64 and 2 joint inputs of 64. That is 20.05 of the 20.34 MB that are added up, the rest are the
  heads'; all else, 1.76 MB, are rows of masked words and poolers, 0.49 MB in one operation at the most."""
  step, whole = eight_devices["cube"], eight_devices["step"]
  assert step["group_sizes"] == [2, 4, 8]
  assert whole["parameters"] / 4 < step["parameters"] < whole["parameters"] / 2  # embeddings are split in 2 only
  assert step["moved_parameters"] == pytest.approx(182.3e6, rel=0.01)
  layer = 4 * (16 + 2 * 64 + 2 * 64) * 768 * 4
  added = step["other_bytes"].pop("all-reduce")
  assert 6 * layer < added < 6.2 * layer
  assert step["largest_other"] <= 3 * layer
  assert sum(step["other_bytes"].values()) < layer


def test_collectives_of_a_known_program(eight_devices):
  """x is [1, 5] on each of 4 x 2 devices."""
  assert eight_devices["collectives"] == [
    ["all-gather", 80, 0, 4, 60], ["all-reduce", 20, 20, 2, 20], ["collective-permute", 20, 20, 8, 20],
    ["reduce-scatter", 240, 0, 4, 180],
  ]  # fmt: skip


def test_splash_attention_over_a_mesh_is_that_of_one_device(eight_devices):
  error, spec = eight_devices["splash"]
  assert error < 1e-6
  assert spec == ["('data', 'fsdp')", "None", "tensor"]


def test_abstract_batches_are_those_of_the_assembler(sample_store: PassageStore, sample_vocabulary):
  """Shapes and types, for every stage, of batches that were made."""
  config = {stage: paper_config(stage) for stage in STAGES}
  for stage in config.values():
    stage.update(batch_size=4, query_length=32, joint_length=96, num_passages=3, beam_size=6, num_hard_negatives=2)
  config["both towers"] = config["finetune"].copy_and_resolve_references()
  config["both towers"].update(trains_passage_tower=True, reads_null_passage=True)
  rng, n = np.random.default_rng(0), 4
  queries = QueryBatch(
    rng.integers(5, 100, (n, 32)).astype(np.int32), np.full(n, 32, np.int32), np.arange(n, dtype=np.int32),
    np.zeros((n, 2), np.int32), np.zeros(n, bool), np.ones((n, 10), np.int32), np.ones((n, 10), np.int32),
    np.ones((n, 10), np.float32), np.zeros(n, np.int32), np.array([[-1, 2, 3]] * n, np.int32),
  )  # fmt: skip
  assembler = BatchAssembler(sample_store, sample_vocabulary, joint_length=96)
  retrieved_id_BR = np.stack([rng.permutation(len(sample_store))[:6] for _ in range(n)]).astype(np.int32)
  index = Snapshot(1, {}, np.zeros((len(sample_store), 128), np.float32), None)
  made = {
    "ict": assembler.ict_batch(queries),
    "mlm": assembler.reading_batch(queries),
    "pretrain": assembler.masked_batch(queries, retrieved_id_BR, 3),
    "finetune": assembler.question_batch(queries, [["the"]] * n, retrieved_id_BR, index, 3),
    "both towers": assembler.question_batch(
      queries, [["the"]] * n, retrieved_id_BR, index, 3, trains_passage_tower=True, reads_null_passage=True
    ),
  }
  corpus = CorpusSize(len(sample_store), sample_store.passage_length, len(sample_vocabulary))
  for stage, batch in made.items():
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract_batch(config[stage], corpus)) == expected


def test_devices_that_do_not_divide_the_batch():
  config = paper_config("pretrain")
  config.batch_size = 100
  with pytest.raises(ValueError) as error:
    step_mesh(config, [object()] * 64)
  assert str(error.value) == (
    "batch_size=100 can't be split evenly over 64 devices; set --config.batch_size=128 or another multiple of 64"
  )


GB = 10**9


def memory(activations):
  return Memory(GB, 2 * GB, 0, 0, activations, 0)


@pytest.mark.parametrize(
  ("batch", "fixed", "compiled", "fits"),
  [
    (8, 1.0, [24, 25], 24),  # gradients as large as the parameters: the first guess is right
    (8, 1.7, [20, 22, 23], 22),  # the first line is too steep, the second one is that of the memory
    (8, 0.0, [32, 26, 27], 26),  # too flat
    (64, 1.0, [24, 25], 24),  # the config's own doesn't fit
    (1, 12.0, [2, 3], 2),
    (5, 12.7, [4, 1], 0),
  ],
)
def test_the_largest_batch_is_where_one_query_more_does_not_fit(batch, fixed, compiled, fits):
  """Half a GB a query beside what is fixed and the 3 GB of the state, in 16 GB."""
  measured = []

  def measure(candidate):
    measured.append(candidate)
    return memory(int(GB * (fixed + candidate / 2)))

  own = memory(int(GB * (fixed + batch / 2)))
  assert find_largest_batch(batch, own, 16 * GB, measure) == (fits, fits + 1)
  assert measured == compiled


def test_of_many_queries_the_last_few_are_not_looked_for():
  compiled = []

  def measure(candidate):
    compiled.append(candidate)
    return memory(GB + candidate * (GB / 100 + candidate * 100))  # bent a little

  assert find_largest_batch(16, measure(16), 16 * GB, measure) == (1185, 1199)
  assert compiled == [16, 1199, 1185]


def test_a_batch_that_does_not_count():
  """The search ends also where it finds no limit."""
  assert find_largest_batch(4, memory(GB), 16 * GB, lambda batch: memory(GB)) == (256, None)
  assert find_largest_batch(4, memory(GB), 3 * GB, lambda batch: memory(GB)) == (0, 1)


def test_out_of_memory_is_read_from_the_compilers_words():
  class Lowered:
    def __init__(self, message):
      self.message = message

    def compile(self, compiler_options=None):
      raise jax.errors.JaxRuntimeError(self.message)

  def compile_with(message):
    return compile_step(abstract_step.AbstractStep(None, None, None, Lowered(message)))

  for message, num_bytes in (
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (34.50G) exceeds "
      "available HBM (30.75G).",
      34.5 * 2**30,
    ),
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 900.5M of 15.75G hbm.\nmore", 900.5 * 2**20),
  ):
    with pytest.raises(OutOfMemory) as error:
      compile_with(message)
    assert error.value.num_bytes == num_bytes and "\n" not in str(error.value)
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    compile_with("INTERNAL: a bug")


def test_a_step_is_compiled_as_a_job_does_or_at_a_level():
  """The levels are known to the compiler by the numbers that JAX's own setting gives it."""

  class Lowered:
    def compile(self, compiler_options=None):
      return compiler_options

  step = abstract_step.AbstractStep(None, None, None, Lowered())
  assert compile_step(step) is None
  assert compile_step(step, "O1") == {"optimization_level": 19}
  # The compiler itself takes them: a wrong name or type of an option is an error.
  lowered = jax.jit(lambda x: x + 1).lower(1.0)
  assert compile_step(step._replace(lowered=lowered), "O0")(1.0) == 2


def test_where_the_index_is():
  """The exact searcher holds it on the host's first device; ScaNN, the default for so many, on the host."""
  config, wikipedia = paper_config("pretrain"), CorpusSize(13_353_718, 288, 30_522)
  assert not is_searched_on_chip(config, wikipedia)
  assert is_searched_on_chip(config, wikipedia._replace(num_passages=50_000))
  config.index.searcher = "exact"
  assert is_searched_on_chip(config, wikipedia)
  assert not is_searched_on_chip(paper_config("ict"), wikipedia._replace(num_passages=50_000))


def test_memory_adds_up():
  assert memory(5).total == 3 * GB + 5
  assert list(dataclasses.asdict(memory(0))) == ["parameters", "optimizer", "batch", "index", "activations", "program"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install "jax[tpu]"')
@pytest.mark.parametrize(("slice_name", "level"), [("v5e-64", None), ("v4-64", "O0")])
def test_the_papers_setting_on_tpus(slice_name, level):
  """BERT-base, 512 queries, 8 passages of 288 of 13,353,718 searched on the hosts. v5e-64: 675 seconds of CPU time, 7
  minutes on 2 idle cores; v4-64 is compiled with less effort, in 212 seconds of CPU time."""
  code = f"""
from realm_jax.config import paper_config
from realm_jax.training.abstract_step import CorpusSize
from realm_jax.training.plan_report import describe
from realm_jax.training.planning import make_plan
from realm_jax.training.topology import compile_only_devices, parse_topology
config = paper_config("pretrain")
config.model.update(dtype="bfloat16", attention="splash", attention_dropout_rate=0.0, remat="layer")
topology = parse_topology("{slice_name}")
corpus = CorpusSize(13_353_718, 288, 30_522)
plan = make_plan(config, topology, corpus, compile_only_devices(topology), finds_largest=False,
  optimization_level={level!r})
print(describe(plan))
assert plan.step is not None and plan.memory.total < plan.available
assert max(c.num_bytes - c.num_parameter_bytes for c in plan.step.collectives) < 4e6
assert abs(plan.step.compiled_flops * topology.num_chips / plan.work.compiled - 1) < 0.03
"""
  # In a process of its own: libtpu reads its environment once.
  environment = os.environ | {
    "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  }  # fmt: skip
  result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
  print(result.stdout)
  assert result.returncode == 0, result.stderr
