"""One optimizer step: its count, and dropout keys that depend on (key, step) alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from realm_jax.training.step import TrainState, init_state, train_step

OPTIMIZER = optax.sgd(1.0)


def noisy_objective(params, batch, key):
  """The parameter times a random number, which is so its gradient."""
  noise = jax.random.uniform(key)
  return params["w"] * noise, {"noise": noise}


def start():
  return init_state({"w": jnp.float32(3)}, OPTIMIZER)


def make_steps(state, num_steps, seed=0):
  """The noise of each step, and the state after them."""
  noise = []
  for _ in range(num_steps):
    state, metrics = train_step(state, None, jax.random.key(seed), objective=noisy_objective, optimizer=OPTIMIZER)
    np.testing.assert_allclose(metrics["grad_norm"], metrics["noise"])
    noise.append(float(metrics["noise"]))
  return noise, state


def test_each_step_has_dropout_of_its_own():
  noise, state = make_steps(start(), 4)
  assert len(set(noise)) == 4
  assert noise == [float(jax.random.uniform(jax.random.fold_in(jax.random.key(0), step))) for step in range(4)]
  assert state.step == 4
  np.testing.assert_allclose(state.params["w"], 3 - sum(noise), rtol=1e-6)
  assert not set(noise) & set(make_steps(start(), 4, seed=1)[0])


def test_a_resumed_run_meets_the_same_dropout():
  noise, end = make_steps(start(), 4)
  _, half = make_steps(start(), 2)
  rest, resumed = make_steps(TrainState(*jax.device_get(half)), 2)
  assert rest == noise[2:]
  assert resumed.params["w"] == end.params["w"]
