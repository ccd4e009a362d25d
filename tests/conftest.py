"""Fixtures that several tests share: a small corpus of sample passages, the command line, exact products."""

import os
import signal

# Tests compile many small programs and run each once. Before JAX is imported, which reads it then.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax
import pytest

from realm_jax import cli
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


@pytest.fixture
def realm(capsys, monkeypatch):
  """Runs a command line: its exit status, and what it printed."""
  monkeypatch.delenv("REALM_DEBUG", raising=False)

  def run(*arguments):
    capsys.readouterr()
    status = cli.run([*map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err

  return run


@pytest.fixture
def exact_products():
  """Float32 products on any device, for comparisons with NumPy."""
  with jax.default_matmul_precision("highest"):
    yield


@pytest.fixture
def ctrl_c():
  """Ctrl-C as in a terminal, here and in processes that are started: what a shell runs in its background ignores it."""
  previous = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, previous)
