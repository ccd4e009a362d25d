"""Fixtures that several tests share: a small corpus of sample passages."""

import os

# Tests compile many small programs and run each once. Before JAX is imported, which reads it then.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import pytest

from realm_jax.data.build import build_passages, train_vocabulary
from realm_jax.data.passages import PassageStore
from realm_jax.data.sample import SAMPLE_PASSAGES
from realm_jax.data.spans import RuleTagger


@pytest.fixture(scope="session")
def sample_vocabulary():
  """3000 wordpieces of the whole sample corpus."""
  return train_vocabulary(SAMPLE_PASSAGES, size=3000, lowercase=True)


@pytest.fixture(scope="session")
def sample_store(sample_vocabulary, tmp_path_factory) -> PassageStore:
  """The first 40 sample passages, none of them cut; read-only."""
  path = tmp_path_factory.mktemp("sample") / "store"
  build_passages(
    SAMPLE_PASSAGES,
    path,
    vocabulary=sample_vocabulary,
    passage_length=256,
    tagger=RuleTagger(),
    whole=True,
    num_passages=40,
  )
  return PassageStore(path)
