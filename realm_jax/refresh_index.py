"""The indexer: embeds all passages with the trainer's newest parameters and publishes index snapshots.

  realm refresh_index --workdir=runs/pretrain          beside realm train, until that is done
  realm refresh_index --workdir=runs/ict --once        once, for a run that needs no index to train
  realm refresh_index --workdir=runs/new --once --reuse=runs/qa      the same model, over documents that have changed

It reads what to do from the run's config.json, and ends when the trainer is done, or when nothing came for a while. On
several hosts all are started, with --multihost or the address of the first one: they share the work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

import tqdm
from absl import flags
from ml_collections import ConfigDict

from realm_jax import cli, multihost
from realm_jax.config import make_tower, stored_config
from realm_jax.data.passages import PassageStore
from realm_jax.index.hosts import decided_by_first, embed_together, is_first, tell_text
from realm_jax.index.refresh import Embed, Refresher, abstract_tower_params, embedder, follow, refresh_settings
from realm_jax.index.reuse import Known, known_embeddings
from realm_jax.index.run_dir import RunDir
from realm_jax.training.agreement import open_corpus


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", None, "The run directory.", required=True, flag_values=values)
  flags.DEFINE_bool("once", False, "Publish the newest parameters and end.", flag_values=values)
  flags.DEFINE_float(
    "timeout", None, "Seconds to wait for the trainer [the config's; none with --once].", 0.0, flag_values=values
  )
  flags.DEFINE_string(
    "reuse", None, "A run whose index has embeddings of the same parameters: only what it lacks is embedded.",
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_bool("quiet", False, "Show no progress bars.", flag_values=values)
  multihost.define_flags(values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  if positional:
    raise ValueError(f"unexpected {positional[0]!r}")
  with multihost.joined(values):
    refresh(values)


def refresh(values: flags.FlagValues) -> None:
  """What the flags ask for; of a job on several hosts all call this, and the first one publishes."""
  run_dir = RunDir(values.workdir)
  timeout = values.timeout
  if timeout is None and values.once:
    timeout = 0.0  # it is for a scheduler, which comes again: what is not there yet is not waited for
  config = _wait_for_config(run_dir, timeout=600.0 if timeout is None else timeout)
  store = open_corpus(config)
  tower, settings = make_tower(config.model, store.description["vocabulary_size"]), refresh_settings(config.index)
  abstract_params = abstract_tower_params(tower, store.passage_length)
  is_quiet = values.quiet or not is_first()

  def show(batches: Iterable[int]) -> Iterable[int]:
    return tqdm.tqdm(batches, desc="embedding", leave=False, mininterval=1.0, disable=is_quiet)

  def work(embed: Embed) -> int:
    refresher = Refresher(run_dir, store, settings, embed, log=tqdm.tqdm.write)
    return follow(
      refresher,
      run_dir,
      abstract_params,
      once=values.once,
      in_order=config.index.sync,
      timeout=config.index.timeout if timeout is None else timeout,
      log=tqdm.tqdm.write,
    )

  known = _reused(RunDir(values.reuse), store) if values.reuse else None
  num_published = embed_together(work, embedder(tower, store, settings, show, known=known), abstract_params)
  if num_published is not None:
    print(f"{num_published} snapshots published in {run_dir.index}{'' if num_published else ', which is up to date'}")


def _reused(run_dir: RunDir, store: PassageStore) -> Known:
  known = known_embeddings(run_dir, PassageStore(stored_config(run_dir.read_config()).corpus), store)
  if is_first():
    print(f"{known.num_known:,} of {len(store):,} passages are in the index of {run_dir.path}", flush=True)
  return known


def _wait_for_config(run_dir: RunDir, *, timeout: float) -> ConfigDict:
  """What the trainer stored; the first host waits for it, and tells the others."""

  if is_first() and run_dir.files.read(run_dir.config) is None and timeout > 0:
    print(f"waiting for {run_dir.config}: realm train writes it", flush=True)
  decided_by_first(lambda: len(run_dir.read_config(timeout=timeout)))
  found = run_dir.read_config() if is_first() else {}
  return stored_config(json.loads(tell_text(json.dumps(found))))


if __name__ == "__main__":
  sys.exit(cli.run(["refresh_index", *sys.argv[1:]]))
