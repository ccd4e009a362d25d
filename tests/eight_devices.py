"""Run by test_planning.py in a process with 8 CPU devices: prints what it finds there as JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from realm_jax.config import paper_config
from realm_jax.model import splash
from realm_jax.training import planning
from realm_jax.training.abstract_step import CorpusSize
from realm_jax.training.collectives import find_collectives
from realm_jax.training.topology import CHIPS, Topology

CORPUS = CorpusSize(num_passages=1000, passage_length=64, vocab_size=3000)


def small_config(stage, **model):
  """Wide, for its depth: so element-wise operations count little beside products, as at BERT's sizes."""
  config = paper_config(stage)
  config.update(batch_size=16, num_passages=2, beam_size=8, query_length=16, joint_length=64)
  config.model.update(hidden_size=768, num_layers=1, num_heads=12, mlp_size=3072, max_length=64)
  config.model.update(dropout_rate=0.0, embedding_dropout_rate=0.0, **model)
  return config


def measured(stage="pretrain", num_microbatches=1, **mesh):
  """The compiler's count over our own, and the collectives of a step on 8 devices."""
  config = small_config(stage)
  config.num_microbatches = num_microbatches
  config.mesh.update(mesh)
  topology = Topology("8 devices", CHIPS["v5e"], "2x4")
  plan = planning.make_plan(config, topology, CORPUS, jax.devices(), finds_largest=False, log=lambda line: None)
  other_bytes = {c.kind: 0 for c in plan.step.collectives}
  for c in plan.step.collectives:
    other_bytes[c.kind] += c.num_bytes - c.num_parameter_bytes
  return {
    "flops_ratio": plan.step.compiled_flops * 8 / plan.work.compiled,
    "parameters": plan.memory.parameters,
    "optimizer": plan.memory.optimizer,
    "batch": plan.memory.batch,
    "moved_parameters": sum(c.num_parameter_bytes for c in plan.step.collectives),
    "other_bytes": other_bytes,
    "largest_other": max(c.num_bytes - c.num_parameter_bytes for c in plan.step.collectives),
    "group_sizes": sorted({c.group_size for c in plan.step.collectives}),
  }


def splash_error():
  """Of attention over a mesh of rows and heads, context and gradients, against one device; and how it was split."""
  rng = np.random.default_rng(0)
  inputs = tuple(rng.normal(size=(8, 40, 4, 8)).astype(np.float32) for _ in range(3))
  is_token = np.arange(40) < rng.integers(1, 41, (8, 1))

  @jax.jit
  def run(query, key, value):
    context, vjp = jax.vjp(lambda *x: splash.attend(*x, is_token, interpret=True), query, key, value)
    return context, vjp(jnp.cos(context))

  alone = run(*inputs)
  mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh):
    split = run(*inputs)
  error = max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(split)))
  return error, [str(part) for part in split[0].sharding.spec]


def known_collectives():
  """A program whose collectives are known: a gather, a sum over pairs of devices, a scattered sum, a shift."""
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
  spec = jax.P("a")

  def body(x):
    gathered = jax.lax.all_gather(x, "a", tiled=True)
    summed = jax.lax.psum(x, "b")
    scattered = jax.lax.psum_scatter(jnp.tile(gathered, (1, 3)), "a", tiled=True)
    shifted = jax.lax.ppermute(x, "a", [(i, (i + 1) % 4) for i in range(4)])
    return gathered.sum() + summed + scattered.sum() + shifted

  mapped = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
  compiled = jax.jit(mapped).lower(jax.ShapeDtypeStruct((4, 5), jnp.float32)).compile()
  found = find_collectives(compiled.as_text(), 8, lambda shape: shape == (1, 5))
  return sorted((*c[:4], c.num_bytes_sent) for c in found)


if __name__ == "__main__":
  assert jax.device_count() == 8
  print(
    json.dumps(
      {
        "step": measured(),
        "cube": measured(fsdp=2, tensor=2),
        "in parts": measured(num_microbatches=2),
        "ict in parts": measured("ict", num_microbatches=2),
        "splash": splash_error(),
        "collectives": known_collectives(),
      }
    )
  )
