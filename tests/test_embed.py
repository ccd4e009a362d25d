"""Embedding on several devices and by length gives each passage what it has alone."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
from flax.core import FrozenDict

from realm_jax.batch import Packed
from realm_jax.data.passages import PassageStore
from realm_jax.index.embed import _padded_length, embed_passages
from realm_jax.model.retriever import Tower

ROOT = pathlib.Path(__file__).parents[1]


def make_tower(store):
  bert = FrozenDict(
    vocab_size=store.description["vocabulary_size"], hidden_size=16, num_layers=1, num_heads=2, mlp_size=32,
    max_length=store.passage_length,
  )  # fmt: skip
  tower = Tower(bert, retrieval_size=8)
  row = np.zeros((1, 8), np.int32)
  params = tower.init(jax.random.key(0), Packed(row, row, row == 0))["params"]
  return tower, jax.tree.map(lambda x: x * 20 if x.ndim > 1 else x, params)


def embed(path, begin=0, end=None):
  store = PassageStore(path)
  tower, params = make_tower(store)
  return embed_passages(
    tower, params, store, store.vocabulary(), np.arange(begin, len(store) if end is None else end), batch_size=12
  )


def test_passages_are_padded_to_multiples_of_32_at_most_to_p(sample_store):
  n = len(sample_store)
  length_N = sample_store.title_length_N.astype(int) + sample_store.body_length_N + 3
  padded_N = _padded_length(sample_store, np.arange(n))
  assert (padded_N >= np.minimum(length_N, sample_store.passage_length)).all()
  assert (padded_N - length_N < 32).all() and set(padded_N % 32) <= {0}
  assert len(set(padded_N.tolist())) > 2  # the sample has passages of several lengths


def test_a_range_has_the_embeddings_of_the_whole(sample_store):
  whole, part = embed(sample_store.path), embed(sample_store.path, 7, 29)
  np.testing.assert_allclose(part.astype(np.float32), whole[7:29].astype(np.float32), rtol=1e-2, atol=1e-2)
  assert part.shape == (22, 8)


def test_four_devices_share_the_work(sample_store, tmp_path):
  code = (
    f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import jax, numpy as np; from test_embed import embed; "
    f"assert jax.local_device_count() == 4; np.save({str(tmp_path / 'emb.npy')!r}, "
    f"embed({str(sample_store.path)!r}).view(np.uint16))"
  )
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags})
  here = embed(sample_store.path)
  there = np.load(tmp_path / "emb.npy").view(here.dtype)
  np.testing.assert_allclose(there.astype(np.float32), here.astype(np.float32), rtol=1e-2, atol=1e-2)
