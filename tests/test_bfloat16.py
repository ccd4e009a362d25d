"""The sample run in bfloat16: its losses stay with those of float32."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from realm_jax.config import make_tower
from realm_jax.data.build import build_passages, train_vocabulary
from realm_jax.data.passages import PassageStore
from realm_jax.data.sample import SAMPLE_PASSAGES
from realm_jax.data.spans import RuleTagger
from realm_jax.index.embed import embed_passages
from realm_jax.index.searcher import ExactSearcher
from realm_jax.index.snapshot import Snapshot
from realm_jax.model.retriever import passage_tower_params
from realm_jax.training.optimizer import bert_optimizer
from realm_jax.training.stages import make_stage
from realm_jax.training.start import initial_params
from realm_jax.training.step import init_state, train_step

pytestmark = pytest.mark.slow
DEMO = pathlib.Path(__file__).parent.parent / "configs" / "demo.py"
NUM_STEPS = 100


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  """The demo's corpus."""
  path = tmp_path_factory.mktemp("bfloat16") / "store"
  vocabulary = train_vocabulary(SAMPLE_PASSAGES, size=6000, lowercase=True)
  build_passages(SAMPLE_PASSAGES, path, vocabulary=vocabulary, passage_length=176, tagger=RuleTagger(), whole=True)
  return PassageStore(path)


def demo_config(stage, store):
  spec = importlib.util.spec_from_file_location("demo", DEMO)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(stage)
  config.update(corpus=str(store.path), init="", num_steps=NUM_STEPS)
  return config


def train(config, dtype, store, params, batches=None, index=None):
  """(losses, parameters, batches) of NUM_STEPS updates, on given batches or on those that the parameters retrieve."""
  config = config.copy_and_resolve_references()
  config.model.dtype = dtype
  stage = make_stage(config, store, store.vocabulary())
  optimizer = bert_optimizer(
    learning_rate=config.optimizer.learning_rate,
    num_steps=config.num_steps,
    num_warmup_steps=config.optimizer.warmup_steps,
    weight_decay=config.optimizer.weight_decay,
    max_grad_norm=config.optimizer.max_grad_norm,
    corrects_bias=config.optimizer.corrects_bias,
    frozen=stage.frozen,
  )
  state = init_state(jax.tree.map(jax.numpy.array, params), optimizer)
  losses, made = [], []
  for step in range(NUM_STEPS):
    if batches is None:
      number = np.arange(step * config.batch_size, (step + 1) * config.batch_size)
      made.append(stage.make_batch(stage.source.draw(number), state.params, index))
    batch = (batches or made)[step]
    state, metrics = train_step(
      state, jax.device_put(batch), jax.random.key(0), objective=stage.objective, optimizer=optimizer
    )
    losses.append(float(metrics["loss"]))
  return np.array(losses), jax.device_get(state.params), made


def assert_losses_agree(stage, exact, rounded):
  difference = np.abs(rounded - exact) / exact
  print(
    f"\n{stage}: loss {exact[0]:.3f} -> {exact[-1]:.3f} in float32, {rounded[-1]:.3f} in bfloat16; "
    f"relative difference at most {difference.max():.1e}, {difference.mean():.1e} on average"
  )
  assert exact[-10:].mean() < 0.9 * exact[:10].mean()  # something was learnt
  assert difference.max() < 1e-2


def test_losses_in_bfloat16_stay_with_float32(store):
  vocabulary = store.vocabulary()
  config = demo_config("ict", store)
  params = jax.device_get(initial_params(config, vocabulary))
  exact, trained, batches = train(config, "float32", store, params)
  ict = exact, train(config, "bfloat16", store, params, batches)[0]

  config = demo_config("pretrain", store)
  tower = make_tower(config.model, len(vocabulary))
  emb_ND = embed_passages(tower, passage_tower_params(trained["retriever"]), store, vocabulary)
  index = Snapshot(1, {"params_step": 0}, emb_ND, ExactSearcher(emb_ND))
  params = jax.device_get(initial_params(config, vocabulary)) | {"retriever": trained["retriever"]}
  exact, _, batches = train(config, "float32", store, params, index=index)
  pretrain = exact, train(config, "bfloat16", store, params, batches)[0]

  assert_losses_agree("ict", *ict)
  assert_losses_agree("pretrain", *pretrain)
