"""The loop that trains every stage."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from realm_jax.config import STAGES, check_numbers, flat_fields, stored_config
from realm_jax.data.passages import PassageStore
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.index import snapshot as snapshots
from realm_jax.index.host_arrays import HostRows
from realm_jax.index.hosts import Preempted, is_first, settle
from realm_jax.index.journal import Adoption
from realm_jax.index.run_dir import RunDir
from realm_jax.training.adoption import SnapshotFollower, adoption_settings
from realm_jax.training.agreement import check_shared, open_corpus
from realm_jax.training.checkpoint import Checkpoints, Restored
from realm_jax.training.cost import peak_seconds
from realm_jax.training.exports import Exports
from realm_jax.training.joint_adoption import Follower, make_follower
from realm_jax.training.metrics import MetricsLog
from realm_jax.training.metrics_writers import MetricsWriter, TensorBoard, WeightsAndBiases
from realm_jax.training.optimizer import configured_optimizer
from realm_jax.training.preemption import Interrupted, Preemption
from realm_jax.training.profiling import Profile
from realm_jax.training.sharding import ROWS, placed, state_sharding, step_mesh
from realm_jax.training.stages import Stage, make_stage
from realm_jax.training.start import abstract_params, initial_params
from realm_jax.training.step import init_state, train_step

# What may change when a run is resumed.
_FREE_FIELDS = {
    "num_steps", "log_every", "tensorboard", "checkpoint.keep", "index.timeout", "index.keep", "index.batch_size",
    "mesh.fsdp", "mesh.tensor", "num_inference_passages",
}  # fmt: skip


def train(
  config: ConfigDict,
  run_dir: RunDir,
  *,
  profile: str | None = None,
  wandb: str | None = None,
  log: Callable[[str], None] = print,
) -> None:
  """Trains to config.num_steps in a run directory, from its newest checkpoint if it has one.

  Of a job on several hosts all call this; they share the steps, and the first one writes.

  Args:
    profile: the steps to trace, as "10:13"; see `Profile`.
    wandb: a project of Weights & Biases that gets the metrics.

  Raises:
    ImportError: TensorBoard or W&B is asked for, and not installed.
    ValueError: the run directory belongs to another config or is not shared by all hosts, or the config has a number
      that is out of bounds, or doesn't fit the corpus or the devices.
    Preempted: SIGTERM came, and the run was saved, if a step was made.
    KeyboardInterrupt: Ctrl-C came, and so was it.
  """
  from realm_jax.data.tasks import query_batches  # noqa: PLC0415 TensorFlow, which the indexer and `ask` do without

  check_numbers(config)
  started = time.monotonic()
  tracer = Profile(profile, run_dir, log=log)
  store = open_corpus(config, trains_in=run_dir)
  mesh = step_mesh(config, jax.devices())
  rows = HostRows(NamedSharding(mesh, ROWS), config.batch_size)
  stage = make_stage(config, store, store.vocabulary(), put=rows.put, fetch=rows.fetch)
  optimizer = configured_optimizer(config, stage.frozen)
  check_run_dir(config, run_dir)
  writers = _writers(config, run_dir, wandb)
  checkpoints = Checkpoints(run_dir, keep=config.checkpoint.keep, every=config.checkpoint.every, log=log)

  # The order is important. 1. Resume. 2. Claim the directory, with a config that can start. 3. Export, for without
  # parameters there is no index. 4. Wait for an index.
  state, adoption = _start_or_resume(config, checkpoints, optimizer, store.vocabulary(), mesh)
  first_step = int(state.step)
  if first_step:
    log(_where_it_goes_on(first_step, config.num_steps, run_dir))
  if is_first():
    _claim(run_dir, config, is_to_go_on=first_step < config.num_steps)
  check_shared(run_dir)
  exports, follower, preemption = None, None, Preemption()
  if "retriever" in STAGES[config.stage]:
    exports = Exports(config, run_dir, store, is_frozen="passage_tower" in stage.frozen, log=log)
    exports.write_if_due(first_step, state.params)
    if stage.needs_index:
      with preemption, preemption.interrupting():  # no step is made yet: there is nothing to save
        follower = _follow(config, run_dir, store, stage, exports, adoption, first_step, log)
  metrics_log = MetricsLog(
      run_dir, first_step=first_step, num_steps=config.num_steps, every=config.log_every, stage=config.stage,
      writers=writers,
      peak_seconds=peak_seconds(config, len(store.vocabulary()), store.passage_length, jax.devices()),
  )  # fmt: skip
  key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=NamedSharding(mesh, PartitionSpec()))()
  queries = query_batches(
    config.stage, stage.source, batch_size=config.batch_size, first_step=first_step, rows=rows.rows
  )

  def save(step: int) -> None:
    if exports:
      exports.wait()  # a run that resumes here counts on those of earlier steps
    metrics_log.flush()
    with jax.transfer_guard("allow"):  # Orbax fetches what it writes
      checkpoints.save(step, state, follower.adoption if follower else None)

  with preemption, tracer, jax.transfer_guard("disallow"):
    for step in range(first_step, config.num_steps):
      tracer.begin(step)
      if exports and step > first_step:
        exports.write_if_due(step, state.params)
      try:
        with preemption.interrupting():
          index = follower.adopt(step) if follower else None
      except (TimeoutError, Preempted, Interrupted):
        save(step)
        checkpoints.wait()
        if preemption.is_asked:
          preemption.end(_where_it_was_saved(step, config.num_steps))
        raise
      batch = stage.make_batch(next(queries), state.params, index)
      with jax.set_mesh(mesh):
        state, metrics = train_step(state, rows.put(batch), key, objective=stage.objective, optimizer=optimizer)
      settle(metrics)
      if step == first_step:
        jax.block_until_ready(metrics)
        checkpoints.expect_first((time.monotonic() - started) / 4)
      if follower:
        # Of a tower that is not trained the index is never stale, however long ago it was made.
        metrics |= {"index_age": 0.0 if "passage_tower" in stage.frozen else follower.age(step)}
      tracer.end(step + 1, metrics)
      metrics_log.add(step + 1, metrics)
      is_preempted = preemption.is_due()
      if is_preempted or step + 1 == config.num_steps or checkpoints.is_due(step + 1):
        save(step + 1)  # after the line of its last step, which a resumed run does not write again
      if is_preempted:
        checkpoints.close()
        preemption.end(_where_it_was_saved(step + 1, config.num_steps))

  metrics_log.close()
  if follower:
    follower.close()
  if exports:
    exports.write_last(config.num_steps, state.params)
  checkpoints.close()
  if is_first():
    run_dir.files.replace(run_dir.done, "done\n")


def _writers(config: ConfigDict, run_dir: RunDir, wandb: str | None) -> list[MetricsWriter]:
  """Of the first host; the others write nothing."""
  writers: list[MetricsWriter] = []
  if is_first() and config.tensorboard:
    writers.append(TensorBoard(run_dir))
  if is_first() and wandb:
    writers.append(WeightsAndBiases(wandb, run_dir, config.to_dict()))
  return writers


def check_run_dir(config: ConfigDict, run_dir: RunDir) -> None:
  """A run directory that has a config takes only changes that leave the steps made as they were."""
  if not run_dir.config.exists():
    return
  stored, now = flat_fields(stored_config(run_dir.read_config()).to_dict()), flat_fields(config.to_dict())
  different = [k for k in sorted(stored | now) if stored.get(k) != now.get(k) and k not in _FREE_FIELDS]
  if different:
    k = "stage" if "stage" in different else different[0]  # which all others follow from
    raise ValueError(
      f"{run_dir.path} belongs to a run with {k}={stored.get(k)!r}, now it is {now.get(k)!r}"
      f"{f' (and {len(different) - 1} more fields differ)' if len(different) > 1 else ''}; "
      "use the same config to resume, or another --workdir"
    )


def _where_it_goes_on(step: int, num_steps: int, run_dir: RunDir) -> str:
  if step < num_steps:
    return f"{run_dir.path} goes on from step {step} of {num_steps}"
  return f"{run_dir.path} is at step {step} already; for more of them give a larger --config.num_steps"


def _where_it_was_saved(step: int, num_steps: int) -> str:
  return f"saved at step {step} of {num_steps}; start again to go on"


def _claim(run_dir: RunDir, config: ConfigDict, *, is_to_go_on: bool) -> None:
  run_dir.write_config(config.to_dict())
  if is_to_go_on:  # it may have been done before
    run_dir.files.remove(run_dir.done)


def _follow(
    config: ConfigDict, run_dir: RunDir, store: PassageStore, stage: Stage, exports: Exports,
    adoption: Adoption | None, first_step: int, log: Callable[[str], None],
) -> Follower:  # fmt: skip
  size = config.model.retrieval_size

  def make(is_loaded: Callable[[int], bool]) -> SnapshotFollower:
    return SnapshotFollower(
        run_dir, store, adoption_settings(config.index, is_frozen="passage_tower" in stage.frozen),
        first_step=first_step, retrieval_size=size, newest_export=exports.newest_step(),
        export_digest=exports.digest, in_force=adoption, is_loaded=is_loaded, log=log,
    )  # fmt: skip

  def load(version: int, is_awaited: bool) -> snapshots.Snapshot:
    return snapshots.load(run_dir, version, store, retrieval_size=size, beside_a_loop=True, is_awaited=is_awaited)

  return make_follower(make, load, log)


def _start_or_resume(
  config: ConfigDict,
  checkpoints: Checkpoints,
  optimizer: optax.GradientTransformation,
  vocabulary: Vocabulary,
  mesh: Mesh,
) -> Restored:
  abstract = jax.eval_shape(lambda p: init_state(p, optimizer), abstract_params(config, len(vocabulary)))
  sharding = state_sharding(mesh, abstract)
  if checkpoints.newest_step() is not None:
    return checkpoints.restore(placed(abstract, sharding))
  # As one program, each device makes its own part of the optimizer's state.
  init = jax.jit(functools.partial(init_state, optimizer=optimizer), out_shardings=sharding)
  params = jax.device_get(initial_params(config, vocabulary))  # each host makes them, and places its devices' parts
  return Restored(init(jax.device_put(params, sharding.params)), None)
