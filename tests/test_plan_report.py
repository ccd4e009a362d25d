"""What `realm plan` prints: a whole report, word for word, and the advice where a step doesn't fit."""

import types

import pytest

from realm_jax import cli
from realm_jax.config import paper_config
from realm_jax.training import abstract_step, planning, topology
from realm_jax.training.abstract_step import CorpusSize, OutOfMemory
from realm_jax.training.collectives import Collective
from realm_jax.training.cost import step_time, step_work
from realm_jax.training.plan_report import advice, describe
from realm_jax.training.planning import Largest, Memory, Plan, Step
from realm_jax.training.topology import parse_topology


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  """What the verb sets for its own process is taken back."""
  for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE"):
    monkeypatch.setenv(name, "cpu")


WIKIPEDIA = CorpusSize(13_353_718, 288, 30_522)


def make(largest=(40, 41), fits=True, num_microbatches=1, mesh=None, **model):
  config = paper_config("pretrain")
  config.num_microbatches = num_microbatches
  config.mesh.update(mesh or {})
  config.model.update(**model)
  slice_ = parse_topology("v5e-64")
  memory = Memory(878_000_000, 1_757_000_000, 460_000, 0, 2.93e9, 142_000_000)
  work = step_work(config, 30_522, 288)
  collectives = [Collective("all-reduce", 125_000_004, 125_000_000, 64), Collective("all-gather", 5000, 4000, 64)]
  compiled = work.compiled / 64 * 1.02
  sent = sum(c.num_bytes_sent for c in collectives)
  flops = compiled + work.kernel / 64
  step = Step(flops, compiled, 238e9, collectives, step_time(slice_.chip, flops, 238e9, sent))
  batch = 8 * config.mesh.tensor
  return Plan(
    config, slice_, WIKIPEDIA, batch, memory, slice_.chip.hbm, work, step if fits else None, Largest(*largest)
  )


REPORT = """\
pretrain on v5e-64: 64 chips, 512 queries a step
mesh: data 64 x fsdp 1 x tensor 1; a device has 8 queries, in microbatches of 8
attention: splash
Compiled, not run: the times are estimates, at the peaks of the data sheet.

memory of a chip
  parameters      0.88 GB
  optimizer       1.76 GB
  batch           0.00 GB
  index           0.00 GB  13,353,718 passages searched on the hosts (ScaNN): at least 6.84 GB of each's memory
  activations     2.93 GB  and gradients: what lives only during a step
  program         0.14 GB
  total           5.71 GB  of 16.91 GB: fits

a step, on each chip
  arithmetic     174.0 ms  34.3 TFLOP, 3.9 of it in attention kernels; 197 TFLOP/s
  memory         290.6 ms  238.00 GB read and written; 819 GB/s
  interconnect     1.2 ms  0.25 GB sent; 200 GB/s
  estimate       290.6 ms  bound by memory; 16.1 hours for 200,000 steps
  of the arithmetic 24.0 TFLOP are needed: an MFU of 42%
  (the compiler counts 2.0% more than the matrix products of the config)

collectives: 2 operations
  all-gather         other         0.00 GB in 1, the largest 1000 bytes
  all-gather         parameters    0.00 GB in 1, the largest 4000 bytes
  all-reduce         gradients     0.12 GB in 1, the largest 125.0 MB
  all-reduce         other         0.00 GB in 1, the largest 4 bytes

largest batch: 40 queries a device fit, 2,560 in all; 41 don't (compiled at O0)"""


def test_a_report():
  plan = make(dtype="bfloat16", attention="splash", attention_dropout_rate=0.0, remat="layer")
  assert describe(plan) == REPORT
  assert describe(plan._replace(largest=Largest(40, None))).endswith(
    "\nlargest batch: 40 queries a device fit, 2,560 in all; more were not tried (compiled at O0)"
  )
  assert describe(plan._replace(largest=None)) == REPORT.rpartition("\n\nlargest")[0]
  *head, memory = describe(plan._replace(optimization_level="O0")).partition("\n\nmemory")
  assert head[0].endswith("sheet.\nCompiled at O0: a job compiles at O2, whose memory traffic can be a quarter less.")
  assert REPORT.endswith(memory)


def test_too_much_is_an_answer_with_advice():
  plan = make(fits=False, largest=(3, 4))
  text = describe(plan._replace(memory=Memory(878_000_000, 1_757_000_000, 460_000, 0, 34e9, 0)))
  assert "  total          36.64 GB  of 16.91 GB: DOES NOT FIT\n" in text
  assert "a step, on each chip" not in text
  assert text.endswith(
    """
It does not fit. What makes it smaller:
  --config.model.dtype=bfloat16: activations of half the size, products several times as fast
  --config.model.attention=splash --config.model.attention_dropout_rate=0: no attention weights in memory
  --config.num_microbatches=2: activations of 4 queries at a time, for the same gradient but for dropout
  --config.mesh.fsdp=64: each device keeps a part of the parameters and of the optimizer's state, and gathers them \
where they are used
  --config.model.remat=layer: keeps the layers' inputs only, for up to a third more arithmetic
  --config.batch_size=192: 3 queries a device fit as it is (compiled at O0)
  --topology=...: a slice of more chips, or of chips with more memory"""
  )


@pytest.mark.parametrize(
  ("model", "line"),
  [
    ({}, "attention: naive"),
    ({"attention": "splash", "attention_dropout_rate": 0.0}, "attention: splash"),
    ({"attention": "splash"}, "attention: naive, as splash knows no dropout of attention weights"),
    ({"attention": "xla", "dropout_rate": 0.0}, "attention: xla"),
  ],
)
def test_the_attention_that_was_compiled_is_told(model, line):
  assert line in describe(make(**model)).splitlines()


def test_a_mesh_is_told():
  plan = make(num_microbatches=2, mesh={"fsdp": 4, "tensor": 2}, largest=(24, 26))
  text = describe(plan)
  assert "\nmesh: data 8 x fsdp 4 x tensor 2; a device has 16 queries, in microbatches of 8\n" in text
  assert text.endswith("\nlargest batch: 24 queries a device fit, 768 in all; 26 don't (compiled at O0)")


DONE = {"dtype": "bfloat16", "attention": "splash", "attention_dropout_rate": 0.0, "remat": "layer"}


@pytest.mark.parametrize(
  ("changes", "flags"),
  [
    ({}, []),
    ({"dtype": "float32"}, ["model.dtype=bfloat16"]),
    ({"attention_dropout_rate": -1.0}, ["model.attention=splash"]),  # it is naive with dropout
    ({"num_microbatches": 2}, ["num_microbatches=4"]),
    ({"num_microbatches": 1, "mesh": {"fsdp": 8, "tensor": 2}}, ["num_microbatches=2", "mesh.fsdp=32"]),
    ({"num_microbatches": 5}, ["num_microbatches=8"]),  # the next that divides 8 queries
    ({"mesh": {"fsdp": 1}}, ["mesh.fsdp=64"]),
    ({"remat": "none"}, ["model.remat=layer"]),
    ({"remat": "dots"}, ["model.remat=layer"]),
    ({"largest": (3, 4)}, ["batch_size=192"]),
  ],
)
def test_advice_is_what_can_be_done_and_is_not_yet(changes, flags):
  """A microbatch of one query can't be halved, nor the parameters be split over more than all devices."""
  plan = make(**{"largest": (0, 1), "num_microbatches": 8, "mesh": {"fsdp": 64}} | DONE | changes)
  assert [line.split("=")[0] for line in advice(plan)] == [f"--config.{flag}".split("=")[0] for flag in flags] + [
    "--topology"
  ]
  assert all(f"--config.{flag}" in line for flag, line in zip(flags, advice(plan)))


def test_advice_on_parameters_is_for_those_that_count():
  """Where they take less than a tenth of the memory, or the hidden size can't be split so, other things help."""
  plan = make(largest=(0, 1), num_microbatches=8, **DONE)
  small = plan.memory.__class__(10**9, 10**8, 0, 0, 3e10, 0)
  assert len(advice(plan._replace(memory=small))) == 1
  plan.config.model.hidden_size = 48
  assert advice(plan)[0].startswith("--config.mesh.fsdp=16: ")


def test_an_index_on_the_chips_is_told():
  plan = make()
  text = describe(plan._replace(corpus=WIKIPEDIA._replace(num_passages=50_000)))
  assert "  index           0.00 GB  on the first chip of each host (the exact searcher)\n" in text


@pytest.mark.parametrize(
  ("more", "num_queries", "level", "hint"),
  [
    ([], 2, None, ", for minutes (fewer with --optimization_level=O0)"),
    (["--config.num_microbatches=2", "--config.mesh.tensor=2", "--optimization_level=O1"], 4, "O1", ""),
  ],
)
def test_the_verb_answers_out_of_memory(more, num_queries, level, hint, monkeypatch, capsys):
  """From flags to advice, with a compiler that finds no room for more than 16 queries; the sizes are the flags'."""
  devices = [object()] * 8
  compiled, levels = [], []

  def lower(config, corpus, given):
    assert given == devices and corpus == CorpusSize(13_353_718, 100, 30_522)
    compiled.append(config.batch_size)
    state = abstract_step.TrainState(None, (), ())
    return abstract_step.AbstractStep(None, state, (), None)

  def compile_step(step, optimization_level):
    levels.append(optimization_level)
    num_bytes = compiled[-1] * 1e9
    if compiled[-1] > 16:
      raise OutOfMemory("RESOURCE_EXHAUSTED", num_bytes)
    stats = types.SimpleNamespace(temp_size_in_bytes=num_bytes, generated_code_size_in_bytes=0)
    return types.SimpleNamespace(
      memory_analysis=lambda: stats, cost_analysis=lambda: {"flops": 1e12}, as_text=lambda: "HloModule step"
    )

  monkeypatch.setattr(topology, "compile_only_devices", lambda topology: devices)
  monkeypatch.setattr(planning, "lower_step", lower)
  monkeypatch.setattr(planning, "compile_step", compile_step)
  arguments = ["--config=configs/pretrain.py", "--config.batch_size=64", "--topology=v5e:2x4", "--passage_length=100"]
  assert cli.run(["plan", *arguments, *more]) == 0
  out, err = capsys.readouterr()
  assert compiled == [64, 16, 24] and levels == [level, "O0", "O0"]
  assert err.startswith(f"compiling for v5e:2x4, 64 queries{hint} ...\n")
  assert (
    "  activations    64.00 GB" in out
    and f"--config.batch_size=16: {num_queries} queries a device fit as it is (compiled at O0)" in out
  )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ["--topology=v5e-64", "--config=configs/pretrain.py", "--config.mesh.fsdp=6"],
      "mesh.fsdp=6 x mesh.tensor=1 does not divide 64 devices; set them so that their product is one of 1, 2, 4, 8, ",
    ),
    (
      ["--topology=v5e-64", "--config=configs/pretrain.py", "--config.model.attention=cudnn"],
      "model.attention=cudnn needs a GPU; for TPUs, also in realm plan, set --config.model.attention=splash",
    ),
    (["--topology=v9-8", "--config=configs/pretrain.py"], "unknown topology 'v9-8'; name a slice, "),
    (["--topology=v5e-64"], "give --config=FILE.py and --topology=SLICE, and nothing else"),
    (["--topology=v5e-64", "--config=configs/pretrain.py", "more"], "give --config=FILE.py and --topology=SLICE"),
    (
      ["--topology=v5e-64", "--config=configs/pretrain.py", "--config.corpus=/nonexistent"],
      "no corpus at /nonexistent",
    ),
  ],
)
def test_what_is_wrong_is_one_line(arguments, message, capsys, monkeypatch):
  tpu = types.SimpleNamespace(platform="tpu")
  monkeypatch.setattr(topology, "compile_only_devices", lambda topology: [tpu] * topology.num_devices)
  assert cli.run(["plan", *arguments]) == 1
  *progress, line, hint = capsys.readouterr().err.splitlines()
  assert progress in ([], ["compiling for v5e-64, 512 queries, for minutes (fewer with --optimization_level=O0) ..."])
  assert line.startswith("realm plan: ") and message in line and hint == "(REALM_DEBUG=1 shows where)"
