"""The arithmetic of a step against a count of every matrix product in its trace, and against numbers by hand."""

import math
import types

import jax
import numpy as np
import pytest

from realm_jax.config import STAGES, paper_config
from realm_jax.training.abstract_step import CorpusSize, abstract_batch
from realm_jax.training.cost import peak_seconds, step_time, step_work
from realm_jax.training.stages import make_objective
from realm_jax.training.start import abstract_params
from realm_jax.training.topology import CHIPS

CORPUS = CorpusSize(num_passages=50, passage_length=40, vocab_size=101)


def small_config(stage, **model):
  config = paper_config(stage)
  config.update(batch_size=3, num_passages=2, beam_size=7, query_length=16, joint_length=48, max_masks=4)
  config.num_hard_negatives = 2
  config.model.update(hidden_size=24, num_layers=2, num_heads=3, mlp_size=52, max_length=48, **model)
  config.model.update(retrieval_size=5, span_hidden_size=6, max_span_width=3, dropout_rate=0.0)
  return config


def product_flops(jaxpr):
  """2 x output x contracted size of every dot_general, inner programs included."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      contracted = eqn.params["dimension_numbers"][0][0]
      lhs = eqn.invars[0].aval.shape
      total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracted)
    for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
      total += product_flops(inner) if hasattr(inner, "eqns") else 0
  return total


@pytest.mark.parametrize("stage", [*STAGES, "finetune, both towers"])
@pytest.mark.parametrize("remat", ["none", "layer", "dots"])
def test_every_product_of_the_trace_is_counted(stage, remat):
  stage, both_towers, _ = stage.partition(", both towers")
  config = small_config(stage, remat=remat)
  config.trains_passage_tower = config.reads_null_passage = bool(both_towers)
  objective, params = make_objective(config, CORPUS.vocab_size), abstract_params(config, CORPUS.vocab_size)
  batch, key = abstract_batch(config, CORPUS), jax.eval_shape(lambda: jax.random.key(0))
  jaxpr = jax.make_jaxpr(jax.grad(objective, has_aux=True))(params, batch, key).jaxpr
  work = step_work(config, CORPUS.vocab_size, CORPUS.passage_length)
  assert (work.repeated > 0) == (remat != "none")
  # What is not needed: the span candidates' and the scores' gradients to what is frozen or is no parameter.
  assert work.compiled == pytest.approx(product_flops(jaxpr), rel=5e-3)


def test_the_papers_step():
  """1.54 PFLOP: a layer of BERT-base is 24 E^2 a token and 4 L E for the attention, three times that in training."""
  config = paper_config("pretrain")
  work = step_work(config, 30_522, 288)

  def encoder(num_sequences, length):
    return 3 * 12 * num_sequences * length * (24 * 768**2 + 4 * length * 768)

  encoders = encoder(512, 96) + encoder(4096, 288) + encoder(4096, 384)
  words = 3 * 40_960 * (2 * 768**2 + 2 * 768 * 30_522)
  assert work.needed == pytest.approx(encoders + words, rel=1e-4)
  assert work.needed == pytest.approx(1.54e15, rel=2e-3)
  assert (work.repeated, work.kernel, work.compiled) == (0, 0, work.needed)


def test_a_kernel_takes_the_attention_from_the_compiler():
  config = small_config("pretrain", attention="splash")
  naive = step_work(small_config("pretrain"), 101, 40)
  work = step_work(config, 101, 40)
  assert naive.kernel == 0 and work.needed == naive.needed
  assert work.compiled == naive.compiled - naive.attention
  # 3 queries of 16, 6 passages of 40 and 6 joint inputs of 48 are blocks of 128: 4 L^2 E forward, 14 L^2 E backward.
  assert work.kernel == (4 + 14) * 15 * 2 * 128**2 * 24
  config.model.dropout_rate = 0.1  # of the attention weights too: the naive form is taken
  assert step_work(config, 101, 40) == naive._replace(kernel=0)
  config.model.attention_dropout_rate = 0.0
  assert step_work(config, 101, 40).kernel == work.kernel
  config.model.remat = "layer"
  assert step_work(config, 101, 40).kernel == (8 + 14) * 15 * 2 * 128**2 * 24


def test_time_is_that_of_what_takes_longest():
  chip = CHIPS["v5e"]
  times = step_time(
    chip, flops=chip.flops / 10, num_bytes=chip.hbm_bandwidth / 5, num_bytes_sent=chip.ici_bandwidth / 100
  )
  np.testing.assert_allclose(times, (0.1, 0.2, 0.01))
  assert (times.bound, times.seconds) == ("memory", times.memory)
  assert step_time(chip, 1e15, 0, 0).bound == "arithmetic" and step_time(chip, 0, 0, 1e12).bound == "interconnect"


def test_a_step_at_the_peak_of_its_devices():
  config = small_config("pretrain")
  chips = [types.SimpleNamespace(device_kind="TPU v5 lite")] * 8
  assert peak_seconds(config, 101, 40, chips) == step_work(config, 101, 40).needed / (8 * 197e12)
  assert peak_seconds(config, 101, 40, jax.devices("cpu")) is None
