r"""Will it fit, and how fast can it be: compiles a config's step for a TPU slice, on any machine and without a TPU.

  realm plan --config=configs/pretrain.py --topology=v5e:8x8
  realm plan --config=configs/pretrain.py --topology=v4-64 --config.model.dtype=bfloat16 --config.model.remat=layer
  realm plan --config=configs/pretrain.py --topology=v4-64 --optimization_level=O0

Needs the libtpu wheel (pip install "jax[tpu]") and minutes (fewer with --optimization_level=O0), not the corpus:
without --config.corpus it takes the sizes of the paper's. Prints what a chip holds, by kind, what it computes, reads
and sends in a step, an estimate of the time that this takes, and the largest batch that fits; advice, if the step
doesn't.
"""

from __future__ import annotations

import os
import sys

from absl import flags
from ml_collections import config_flags

from realm_jax import cli


def define_flags(values: flags.FlagValues) -> None:
  config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True, flag_values=values)
  flags.DEFINE_string(
    "topology", None, "A slice, as v5e-64, or a grid of chips, as v5e:8x8.", required=True, flag_values=values
  )
  flags.DEFINE_bool(
    "largest", True, "Find the largest batch that fits: compiles up to six times more, at O0.", flag_values=values
  )
  flags.DEFINE_enum(
    "optimization_level",
    None,
    ["O0", "O1", "O2", "O3"],
    "How much the compiler does for a fast program. A job compiles with O2, the default; O0 is planned in a "
    "quarter of the time, with the same arithmetic, about the same memory, and more memory traffic.",
    flag_values=values,
  )
  flags.DEFINE_integer(
    "num_passages", 13_353_718, "Passages, where config.corpus is not given.", lower_bound=1, flag_values=values
  )
  flags.DEFINE_integer("passage_length", 288, "Tokens of a passage, likewise.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("vocab_size", 30_522, "Wordpieces, likewise.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  # Before JAX and libtpu are loaded: no TPU is looked for, and what a machine without one lacks is not complained of.
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # beside another plan: libtpu's lock is for TPUs
  from realm_jax.config import check_numbers  # noqa: PLC0415 as above
  from realm_jax.data.passages import PassageStore  # noqa: PLC0415
  from realm_jax.training.abstract_step import CorpusSize  # noqa: PLC0415
  from realm_jax.training.plan_report import describe  # noqa: PLC0415
  from realm_jax.training.planning import make_plan  # noqa: PLC0415
  from realm_jax.training.topology import compile_only_devices, parse_topology  # noqa: PLC0415

  if positional or values.config is None:
    raise ValueError("give --config=FILE.py and --topology=SLICE, and nothing else")
  check_numbers(values.config)
  corpus = CorpusSize(values.num_passages, values.passage_length, values.vocab_size)
  if values.config.corpus:
    store = PassageStore(values.config.corpus)
    corpus = CorpusSize(len(store), store.passage_length, store.description["vocabulary_size"])
  topology = parse_topology(values.topology)
  devices = compile_only_devices(topology)
  plan = make_plan(
    values.config,
    topology,
    corpus,
    devices,
    finds_largest=values.largest,
    optimization_level=values.optimization_level,
    log=lambda x: print(x, file=sys.stderr),
  )
  print(describe(plan))


if __name__ == "__main__":
  sys.exit(cli.run(["plan", *sys.argv[1:]]))
