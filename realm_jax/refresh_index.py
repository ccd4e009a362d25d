"""The indexer: embeds all passages with the trainer's newest parameters and publishes index snapshots.

  realm refresh_index --workdir=runs/pretrain          beside realm train, until that is done
  realm refresh_index --workdir=runs/ict --once        once, for a run that needs no index to train

It reads what to do from the run's config.json, and ends when the trainer is done, or when nothing came for a while.
"""

from __future__ import annotations

import sys

import tqdm
from absl import flags

from realm_jax import cli
from realm_jax.config import make_tower, stored_config
from realm_jax.data.passages import PassageStore
from realm_jax.index.refresh import Refresher, abstract_tower_params, follow, refresh_settings
from realm_jax.index.run_dir import RunDir


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", None, "The run directory.", required=True, flag_values=values)
  flags.DEFINE_bool("once", False, "Publish the newest parameters and end.", flag_values=values)
  flags.DEFINE_float(
    "timeout", None, "Seconds to wait for the trainer [the config's; none with --once].", 0.0, flag_values=values
  )
  flags.DEFINE_bool("quiet", False, "Show no progress bars.", flag_values=values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  if positional:
    raise ValueError(f"unexpected {positional[0]!r}")
  run_dir = RunDir(values.workdir)
  timeout = values.timeout
  if timeout is None and values.once:
    timeout = 0.0  # it is for a scheduler, which comes again: what is not there yet is not waited for
  config = stored_config(run_dir.read_config(timeout=600.0 if timeout is None else timeout))
  store = PassageStore(config.corpus)
  store.verify()
  log = tqdm.tqdm.write
  tower = make_tower(config.model, store.description["vocabulary_size"])
  refresher = Refresher(
    run_dir,
    tower,
    store,
    refresh_settings(config.index),
    log=log,
    progress=lambda batches: tqdm.tqdm(batches, desc="embedding", leave=False, mininterval=1.0, disable=values.quiet),
  )
  num_published = follow(
    refresher,
    run_dir,
    abstract_tower_params(tower, store.passage_length),
    once=values.once,
    in_order=config.index.sync,
    timeout=config.index.timeout if timeout is None else timeout,
    log=log,
  )
  print(f"{num_published} snapshots published in {run_dir.index}")


if __name__ == "__main__":
  sys.exit(cli.run(["refresh_index", *sys.argv[1:]]))
