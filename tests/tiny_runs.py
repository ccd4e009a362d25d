"""Runs that were never trained, written in a second: what tests of the verbs that look at runs share."""

import jax
import numpy as np

from realm_jax.config import paper_config
from realm_jax.index.digest import tree_digest
from realm_jax.index.journal import Adoption, record
from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import publish, read_manifest
from realm_jax.index.tower_export import TowerWriter
from realm_jax.model.retriever import passage_tower_params
from realm_jax.training.checkpoint import Checkpoints
from realm_jax.training.start import initial_params

D = 8


def tiny_config(stage, store):
  config = paper_config(stage)
  config.model.update(hidden_size=16, num_layers=1, num_heads=2, mlp_size=32, retrieval_size=D, span_hidden_size=8)
  config.update(corpus=str(store.path), num_steps=20, query_length=32, joint_length=256)
  return config


def write_run(path, store, stage="finetune", steps=(10, 20), done=True):
  """A run with a checkpoint, an export and a snapshot for each of the steps, each adopted where it was made.

  Embeddings are random, other ones at each step, so that ranks differ.
  """
  run_dir, config = RunDir(path), tiny_config(stage, store)
  run_dir.write_config(config.to_dict())
  params = initial_params(config, store.vocabulary())
  checkpoints, towers = Checkpoints(run_dir, keep=3), TowerWriter(run_dir)
  for step in steps:
    params = jax.tree.map(lambda x: x * np.float32(1.1), params)
    tower = passage_tower_params(params["retriever"])
    checkpoints.save_params(step, params)
    towers.write(step, tower)
    emb_ND = np.random.default_rng(step).normal(size=(len(store), D))
    version = publish(run_dir, emb_ND, store, params_step=step, params_digest=tree_digest(tower))
    record(run_dir, Adoption(step, version, tree_digest(tower), read_manifest(run_dir, version)["embedding_digest"]))
  checkpoints.close()
  towers.close()
  run_dir.metrics.write_text('{"step": 15, "loss": 2.5}\n{"step": 20, "loss": 1.25, "index_age": 0.0}\n{"step"')
  if done:
    run_dir.done.write_text("done\n")
  return run_dir
