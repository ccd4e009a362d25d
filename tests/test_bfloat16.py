"""The sample run's losses in bfloat16, step for step those of float32.

At the same parameters, those of the float32 run, and in a run with updates of its own: over 100 steps of ICT from
realm-tiny on a CPU, two runs differed by at most 6.2e-3 of the loss in a step, 1.8e-3 on average. From random weights
they drift apart as runs with other seeds do (up to 28 %): a small BERT then amplifies any difference.
"""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from realm_jax.config import make_tower
from realm_jax.data.build import build_passages
from realm_jax.data.passages import PassageStore
from realm_jax.data.sample import SAMPLE_PASSAGES
from realm_jax.data.spans import RuleTagger
from realm_jax.index.embed import embed_passages
from realm_jax.index.searcher import ExactSearcher
from realm_jax.index.snapshot import Snapshot
from realm_jax.model.retriever import passage_tower_params
from realm_jax.training.optimizer import configured_optimizer
from realm_jax.training.stages import make_stage
from realm_jax.training.start import initial_params
from realm_jax.training.step import init_state, train_step
from realm_jax.weights.source import locate
from realm_jax.weights.vocabulary_file import read_vocabulary

pytestmark = pytest.mark.slow
DEMO = pathlib.Path(__file__).parent.parent / "configs" / "demo.py"
NUM_STEPS = 100


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  """The demo's corpus."""
  path = tmp_path_factory.mktemp("bfloat16") / "store"
  vocabulary = read_vocabulary(locate("realm-tiny"))
  build_passages(SAMPLE_PASSAGES, path, vocabulary=vocabulary, passage_length=176, tagger=RuleTagger(), whole=True)
  return PassageStore(path)


def demo_config(stage, store):
  spec = importlib.util.spec_from_file_location("demo", DEMO)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(stage)
  config.update(corpus=str(store.path), init="realm-tiny", num_steps=NUM_STEPS)
  return config


def train(config, store, params, index=None):
  """(float32 losses, bfloat16 losses, parameters) of NUM_STEPS updates in float32."""
  stage = make_stage(config, store, store.vocabulary())
  rounded_config = config.copy_and_resolve_references()
  rounded_config.model.dtype = "bfloat16"
  rounded_loss = jax.jit(make_stage(rounded_config, store, store.vocabulary()).objective)
  optimizer = configured_optimizer(config, stage.frozen)
  state, key = init_state(jax.device_put(params), optimizer), jax.random.key(0)
  exact, rounded = [], []
  for step in range(NUM_STEPS):
    number = np.arange(step * config.batch_size, (step + 1) * config.batch_size)
    batch = jax.device_put(stage.make_batch(stage.source.draw(number), state.params, index))
    rounded.append(float(rounded_loss(state.params, batch, key)[0]))
    state, metrics = train_step(state, batch, key, objective=stage.objective, optimizer=optimizer)
    exact.append(float(metrics["loss"]))
  return np.array(exact), np.array(rounded), jax.device_get(state.params)


def assert_losses_agree(stage, exact, rounded):
  difference = np.abs(rounded - exact) / exact
  print(
    f"\n{stage}: loss {exact[0]:.3f} -> {exact[-1]:.3f} in float32; that of bfloat16 differs by at most "
    f"{difference.max():.1e} of it, by {difference.mean():.1e} on average",
    flush=True,
  )
  assert exact[-10:].mean() < exact[:10].mean()  # something was learnt
  assert difference.max() < 1e-2


def test_losses_in_bfloat16_stay_with_float32(store):
  vocabulary = store.vocabulary()
  config = demo_config("ict", store)
  exact, rounded, trained = train(config, store, jax.device_get(initial_params(config, vocabulary)))
  assert_losses_agree("ict", exact, rounded)

  config = demo_config("pretrain", store)
  tower = make_tower(config.model, len(vocabulary))
  emb_ND = embed_passages(tower, passage_tower_params(trained["retriever"]), store, vocabulary)
  index = Snapshot(1, {"params_step": 0}, emb_ND, ExactSearcher(emb_ND))
  params = jax.device_get(initial_params(config, vocabulary)) | {"retriever": trained["retriever"]}
  exact, rounded, _ = train(config, store, params, index)
  assert_losses_agree("pretrain", exact, rounded)


def test_a_run_of_its_own_in_bfloat16_stays_with_float32(store):
  config = demo_config("ict", store)
  params = jax.device_get(initial_params(config, store.vocabulary()))
  exact = train(config, store, params)[0]
  config.model.dtype = "bfloat16"
  assert_losses_agree("ict, two runs", exact, train(config, store, params)[0])
