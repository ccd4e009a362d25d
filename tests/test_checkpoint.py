"""Checkpoints: what is saved comes back bit for bit, what is damaged is passed over."""

import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from realm_jax.index.digest import tree_digest
from realm_jax.index.journal import Adoption
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir
from realm_jax.training.checkpoint import Checkpoints, NotResumable
from realm_jax.training.step import TrainState, init_state

OPTIMIZER = optax.adam(0.1)


def make_state(step):
  params = {"retriever": {"kernel": np.random.default_rng(step).normal(size=(64, 48)).astype(np.float32)}}
  state = init_state(jax.tree.map(jnp.asarray, params), OPTIMIZER)
  return state._replace(step=jnp.asarray(step, jnp.int32))


def adoption(step):
  return Adoption(step - 3, step // 10, "params", "embeddings")


def abstract():
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), make_state(0))


@pytest.fixture
def run_dir(tmp_path):
  """Checkpoints of the steps 10, 20 and 30."""
  run_dir = RunDir(tmp_path / "run")
  checkpoints = Checkpoints(run_dir, keep=3)
  for step in (10, 20, 30):
    checkpoints.save(step, make_state(step), adoption(step))
  checkpoints.close()
  return run_dir


def restore(run_dir, lines=None):
  checkpoints = Checkpoints(run_dir, keep=3, log=[].append if lines is None else lines.append)
  try:
    return checkpoints.restore(abstract())
  finally:
    checkpoints.close()


def arrays(run_dir, step):
  """The largest file of a checkpoint."""
  files = [p for p in pathlib.Path(run_dir.checkpoints / str(step) / "state").rglob("*") if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(bytes(content))


def test_the_newest_comes_back(run_dir):
  state, adopted = restore(run_dir)
  assert isinstance(state, TrainState) and int(state.step) == 30 and adopted == adoption(30)
  assert tree_digest(state) == tree_digest(make_state(30))


DAMAGES = {
  "a flipped bit": lambda run_dir, step: flip(arrays(run_dir, step)),
  "a cut file": lambda run_dir, step: arrays(run_dir, step).write_bytes(arrays(run_dir, step).read_bytes()[:4000]),
  "a missing file": lambda run_dir, step: arrays(run_dir, step).unlink(),
  "missing arrays": lambda run_dir, step: (run_dir.checkpoints / str(step) / "state").rmtree(),
  "a missing meta": lambda run_dir, step: (run_dir.checkpoints / str(step) / "meta").rmtree(),
  "a changed meta": lambda run_dir, step: flip(run_dir.checkpoints / str(step) / "meta" / "metadata"),
  "a checkpoint of another step": lambda run_dir, step: (
    (run_dir.checkpoints / str(step)).rmtree(),
    shutil.copytree(run_dir.checkpoints / "10", run_dir.checkpoints / str(step)),
  ),
  "arrays of another step": lambda run_dir, step: (
    (run_dir.checkpoints / str(step) / "state").rmtree(),
    shutil.copytree(run_dir.checkpoints / "10" / "state", run_dir.checkpoints / str(step) / "state"),
  ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_set_aside_and_the_one_before_is_taken(run_dir, damage, capsys):
  damage(run_dir, 30)
  # Evaluation passes over it, unless what is damaged is the optimizer's, and moves nothing.
  step, params = restore_params(run_dir)
  assert tree_digest(params) == tree_digest(jax.device_get(make_state(step).params))
  assert (f"{run_dir.path}: checkpoint 30 is damaged (" in capsys.readouterr().err) == (step == 20)
  lines = []
  state, adopted = restore(run_dir, lines)
  assert int(state.step) == 20 and adopted == adoption(20)
  assert tree_digest(state) == tree_digest(make_state(20))
  aside = run_dir.damaged / "checkpoints-30-0"
  assert lines[0].startswith("checkpoint 30 is damaged (") and lines[0].endswith(
    f") and was moved to {aside}; going on from 20"
  )
  assert aside.exists() and run_dir.checkpoint_steps() == [10, 20]
  checkpoints = Checkpoints(run_dir, keep=3)
  checkpoints.save(25, make_state(25), adoption(25))  # Orbax would not save below an existing step
  checkpoints.close()
  assert int(restore(run_dir).state.step) == 25


def test_where_all_are_damaged_nothing_is_moved(run_dir):
  for step in (10, 20, 30):
    flip(arrays(run_dir, step))
  with pytest.raises(
    ValueError, match=r"^no checkpoint in .*/checkpoints can be restored \(30: .*; 20: .*; 10: .*\); "
  ):
    restore(run_dir)
  with pytest.raises(ValueError, match=r"^no checkpoint in .*/checkpoints can be read: checkpoint 30 is damaged \("):
    restore_params(run_dir)
  assert run_dir.checkpoint_steps() == [10, 20, 30] and not run_dir.damaged.exists()


def test_another_models_shapes_are_no_damage_of_this_one(run_dir):
  other = abstract()
  other.params["retriever"]["kernel"] = jax.ShapeDtypeStruct((64, 50), np.float32)
  checkpoints = Checkpoints(run_dir, keep=3)
  with pytest.raises(ValueError, match="can be restored"):
    checkpoints.restore(other)
  checkpoints.close()
  assert run_dir.checkpoint_steps() == [10, 20, 30]


def test_parameters_alone_can_be_read_but_not_resumed(tmp_path):
  run_dir = RunDir(tmp_path)
  checkpoints = Checkpoints(run_dir, keep=1)
  params = jax.device_get(make_state(7).params)
  checkpoints.save_params(0, params)
  with pytest.raises(NotResumable, match=rf"checkpoint .*/0 has no optimizer state: .*--config.init={tmp_path}, in"):
    checkpoints.restore(abstract())
  checkpoints.close()
  step, found = restore_params(run_dir)
  assert step == 0 and tree_digest(found) == tree_digest(params)


@pytest.mark.parametrize("where", ["params", "opt_state"])
def test_a_state_that_is_not_finite_is_not_saved(run_dir, where):
  state = make_state(40)
  part = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.nan) if x.dtype == np.float32 else x, getattr(state, where))
  checkpoints = Checkpoints(run_dir, keep=3)
  with pytest.raises(FloatingPointError, match="of step 40 are not finite: .* The newest checkpoint is 30; start from"):
    checkpoints.save(40, state._replace(**{where: part}), None)
  checkpoints.close()
  assert int(restore(run_dir).state.step) == 30


def test_when_a_save_is_due(tmp_path):
  checkpoints = Checkpoints(RunDir(tmp_path), keep=3, every=10)
  assert [step for step in range(1, 31) if checkpoints.is_due(step)] == [10, 20, 30]
  checkpoints.expect_first(0.2)  # the first after a start comes by time
  assert not checkpoints.is_due(3)
  time.sleep(0.21)
  assert checkpoints.is_due(3)
  checkpoints.save(3, make_state(3), None)
  assert not checkpoints.is_due(4) and checkpoints.is_due(10)
  checkpoints.close()
