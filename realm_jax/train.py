"""Trains: warm start (ict, mlm), pre-training (pretrain) or question answering (finetune), by the config's stage.

  realm train --config=configs/ict.py --config.corpus=corpora/mine --workdir=runs/ict

Any field of the config can be set as --config.a.b=value. A run that was stopped goes on from its newest checkpoint when
it is started again; Ctrl-C saves one first. pretrain and finetune wait for an index: run
realm refresh_index --workdir=...  beside them. --config.tensorboard=True, --wandb and --profile show more of a run:
docs/inspect.md.
"""

from __future__ import annotations

import sys

from absl import flags
from ml_collections import config_flags

from realm_jax import cli, multihost
from realm_jax.index.run_dir import RunDir


def define_flags(values: flags.FlagValues) -> None:
  config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True, flag_values=values)
  flags.DEFINE_string("workdir", None, "The run directory.", required=True, flag_values=values)
  flags.DEFINE_string("profile", None, "Trace these steps: 10:13, the three after the 10th.", flag_values=values)
  flags.DEFINE_string("wandb", None, "A project of Weights & Biases that gets the metrics.", flag_values=values)
  multihost.define_flags(values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  from realm_jax.index.hosts import is_first  # noqa: PLC0415 after the flags, so that --help is quick
  from realm_jax.training.loop import train  # noqa: PLC0415

  if positional or values.config is None:
    raise ValueError("give --config=FILE.py and --workdir=DIR, and nothing else")
  with multihost.joined(values):
    train(
        values.config, RunDir(values.workdir), profile=values.profile, wandb=values.wandb,
        log=print if is_first() else lambda line: None,
    )  # fmt: skip


if __name__ == "__main__":
  sys.exit(cli.run(["train", *sys.argv[1:]]))
