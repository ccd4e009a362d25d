"""The loop that trains every stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from realm_jax.config import STAGES, flat_fields, stored_config
from realm_jax.data.passages import PassageStore
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.index.run_dir import RunDir
from realm_jax.training.abstract_step import step_mesh
from realm_jax.training.adoption import SnapshotFollower, adoption_settings
from realm_jax.training.checkpoint import Checkpoints, Restored
from realm_jax.training.exports import Exports
from realm_jax.training.metrics import MetricsLog
from realm_jax.training.optimizer import configured_optimizer
from realm_jax.training.stages import Stage, make_stage
from realm_jax.training.start import abstract_params, initial_params
from realm_jax.training.step import init_state, train_step

# What may change when a run is resumed.
_FREE_FIELDS = {
    "num_steps", "log_every", "tensorboard", "checkpoint.keep", "index.timeout", "index.keep", "index.batch_size",
}  # fmt: skip


def train(config: ConfigDict, run_dir: RunDir, *, log: Callable[[str], None] = print) -> None:
  """Trains to config.num_steps in a run directory, from its newest checkpoint if it has one.

  Raises:
    ValueError: the run directory belongs to another config, or the config doesn't fit the corpus.
  """
  from realm_jax.data.tasks import query_batches  # noqa: PLC0415 TensorFlow, which the indexer and `ask` do without

  started = time.monotonic()
  if jax.process_count() > 1:
    raise ValueError(
      f"{jax.process_count()} hosts, but training runs on the devices of one host as yet; start it on one of them"
    )
  mesh = step_mesh(config, jax.local_devices())
  split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
  store = PassageStore(config.corpus)
  store.verify()
  vocabulary = store.vocabulary()
  stage = make_stage(config, store, vocabulary)
  optimizer = make_optimizer(config, stage)
  check_run_dir(config, run_dir)
  checkpoints = Checkpoints(run_dir, keep=config.checkpoint.keep, every=config.checkpoint.every, log=log)

  # The order is important. 1. Resume. 2. Claim the directory, with a config that can start. 3. Export, for without
  # parameters there is no index. 4. Wait for an index.
  state, adoption = _start_or_resume(config, checkpoints, optimizer, vocabulary, everywhere)
  first_step = int(state.step)
  run_dir.write_config(config.to_dict())
  if first_step < config.num_steps:
    run_dir.files.remove(run_dir.done)  # it was done, and is to go on
  is_frozen = "passage_tower" in stage.frozen
  exports = None
  if "retriever" in STAGES[config.stage]:
    exports = Exports(config, run_dir, store, is_frozen=is_frozen, log=log)
  if exports:
    exports.write_if_due(first_step, state.params)
  follower = None
  if stage.needs_index and exports:
    follower = SnapshotFollower(
        run_dir, store, adoption_settings(config.index, is_frozen=is_frozen), first_step=first_step,
        retrieval_size=config.model.retrieval_size, newest_export=exports.newest_step(), export_digest=exports.digest,
        in_force=adoption, log=log,
    )  # fmt: skip
  metrics_log = MetricsLog(
      run_dir, first_step=first_step, num_steps=config.num_steps, every=config.log_every, stage=config.stage,
      tensorboard=config.tensorboard,
  )  # fmt: skip
  key = jax.device_put(jax.random.key(config.seed), everywhere)
  queries = query_batches(config.stage, stage.source, batch_size=config.batch_size, first_step=first_step)

  def save(step: int) -> None:
    if exports:
      exports.wait()  # a run that resumes here counts on those of earlier steps
    metrics_log.flush()
    checkpoints.save(step, state, follower.adoption if follower else None)

  for step in range(first_step, config.num_steps):
    if exports and step > first_step:
      exports.write_if_due(step, state.params)
    try:
      index = follower.adopt(step) if follower else None
    except TimeoutError:
      save(step)
      checkpoints.wait()
      raise
    batch = stage.make_batch(next(queries), state.params, index)
    with jax.set_mesh(mesh):
      state, metrics = train_step(
        state, jax.device_put(batch, split), key, objective=stage.objective, optimizer=optimizer
      )
    if step == first_step:
      jax.block_until_ready(metrics)
      checkpoints.expect_first((time.monotonic() - started) / 4)
    if follower:
      metrics |= {"index_age": follower.age(step)}
    metrics_log.add(step + 1, metrics, num_tokens=count_tokens(batch))
    if step + 1 == config.num_steps or checkpoints.is_due(step + 1):
      save(step + 1)  # after the line of its last step, which a resumed run does not write again

  metrics_log.close()
  if follower:
    follower.close()
  if exports:
    exports.write_last(config.num_steps, state.params)
  checkpoints.close()
  run_dir.files.replace(run_dir.done, "done\n")


def check_run_dir(config: ConfigDict, run_dir: RunDir) -> None:
  """A run directory that has a config takes only changes that leave the steps made as they were."""
  if not run_dir.config.exists():
    return
  stored, now = flat_fields(stored_config(run_dir.read_config()).to_dict()), flat_fields(config.to_dict())
  different = [k for k in sorted(stored | now) if stored.get(k) != now.get(k) and k not in _FREE_FIELDS]
  if different:
    k = different[0]
    raise ValueError(
      f"{run_dir.path} belongs to a run with {k}={stored.get(k)!r}, now it is {now.get(k)!r}"
      f"{f' (and {len(different) - 1} more fields differ)' if len(different) > 1 else ''}; "
      "use the same config to resume, or another --workdir"
    )


def count_tokens(batch: Any) -> int:
  """Tokens that the step reads, padding left out."""
  return int(sum(np.count_nonzero(part.is_token) for part in batch if hasattr(part, "is_token")))


def make_optimizer(config: ConfigDict, stage: Stage) -> optax.GradientTransformation:
  """The optimizer that a config describes for its stage."""
  return configured_optimizer(config, stage.frozen)


def _start_or_resume(
  config, checkpoints: Checkpoints, optimizer, vocabulary: Vocabulary, sharding: NamedSharding
) -> Restored:
  if checkpoints.newest_step() is None:
    params = jax.device_put(initial_params(config, vocabulary), sharding)
    return Restored(jax.device_put(init_state(params, optimizer), sharding), None)
  abstract = jax.eval_shape(lambda p: init_state(p, optimizer), abstract_params(config, len(vocabulary)))
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)
  return checkpoints.restore(abstract)
