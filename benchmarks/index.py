"""Measures a large index: built, published, and adopted by a trainer that goes on training on the same machine.

  python benchmarks/index.py --num_passages=1000000

Embeddings are clustered random vectors, as trained ones are: centres of norm 1, and passages around them. Recall@8 is
the share of the exact eight best that ScaNN finds. The step is a loop of matrix products of about 50 ms, on all cores
or on all but --spare_cores. Its times while a snapshot is loaded and adopted are set against its median before that;
so are those beside a process that shares nothing with it and only hashes, with a low priority.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl import app, flags, logging

from realm_jax.index.run_dir import RunDir
from realm_jax.index.searcher import ExactSearcher, ScannSearcher
from realm_jax.index.snapshot import load, publish
from realm_jax.training.adoption import AdoptionSettings, SnapshotFollower

_NUM_PASSAGES = flags.DEFINE_integer("num_passages", 1_000_000, "N.", 1)
_SIZE = flags.DEFINE_integer("size", 128, "D.", 1)
_NUM_QUERIES = flags.DEFINE_integer("num_queries", 1024, "Queries.", 1)
_SCANN = flags.DEFINE_string("scann", "{}", "Settings that are not to be chosen from N, as JSON.")
_SPARE_CORES = flags.DEFINE_integer("spare_cores", 0, "Cores that the step leaves to others.", 0)
_DIRECTORY = flags.DEFINE_string("directory", None, "Where to write [a temporary directory].")

_BUILD = ScannSearcher.build
_HASHING = "import hashlib, os; os.nice(10)\nwhile True: hashlib.sha1(bytes(1 << 24))"


class Corpus:
  """As much of a corpus as a snapshot names."""

  content_digest, passage_length, path = "benchmark", 288, pathlib.Path("benchmark")
  description = {"vocabulary_digest": "benchmark"}

  def __len__(self):
    return _NUM_PASSAGES.value


def clustered(num: int, size: int, seed: int) -> np.ndarray:
  draws = np.random.default_rng(seed)
  centres = np.random.default_rng(0).normal(size=(max(1, _NUM_PASSAGES.value // 200), size)).astype(np.float32)
  noise = draws.normal(size=(num, size)).astype(np.float32)
  return (centres[draws.integers(len(centres), size=num)] + 0.7 * noise).astype(ml_dtypes.bfloat16)


@jax.jit
def step(x):
  for _ in range(6):
    x = jnp.tanh(x @ x) * 0.1
  return x


def timed_steps(x, until) -> list[float]:
  seconds = []
  while not until(len(seconds)):
    started = time.perf_counter()
    x = jax.block_until_ready(step(x))
    seconds.append(time.perf_counter() - started)
  return seconds


def start_backend() -> None:
  """With the threads, for the steps, that are not to be spared: XLA's pool keeps the cores that it was started on."""
  if _SPARE_CORES.value:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[_SPARE_CORES.value :])
    jax.block_until_ready(step(jnp.eye(256)))
    os.sched_setaffinity(0, cores)


def peak_memory() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure_publishing(run_dir: RunDir, emb_ND: np.ndarray, options: dict) -> dict:
  """Publishes snapshot 1."""
  build_s: list[float] = []

  def build(*arguments):
    started = time.perf_counter()
    built = _BUILD(*arguments)
    build_s.append(time.perf_counter() - started)
    return built

  with mock.patch.object(ScannSearcher, "build", build):
    started = time.perf_counter()
    publish(run_dir, emb_ND, Corpus(), params_step=0, params_digest="0", **options)
  publish_s = time.perf_counter() - started - build_s[0]
  return {"build_s": build_s[0], "publish_s": publish_s, "peak_mb_publishing": peak_memory()}


def measure_search(run_dir: RunDir, emb_ND: np.ndarray, query_BD: np.ndarray) -> dict:
  """Loads snapshot 1, and sets its searcher against exact search."""
  started = time.perf_counter()
  snapshot = load(run_dir, 1, Corpus())
  result = {"load_s": time.perf_counter() - started, "settings": snapshot.manifest["searcher_settings"]}
  found = {}
  for name, searcher in {"exact": ExactSearcher(emb_ND), "scann": snapshot.searcher}.items():
    found[name] = searcher.search(query_BD, 8)[1]  # compiled, and warm
    seconds = []
    for _ in range(5):
      started = time.perf_counter()
      searcher.search(query_BD, 8)
      seconds.append(time.perf_counter() - started)
    result[f"{name}_queries_per_s"] = _NUM_QUERIES.value / statistics.median(seconds)
  hits = [len(set(a) & set(b)) for a, b in zip(found["exact"], found["scann"])]
  return result | {"recall_at_8": sum(hits) / (8 * len(hits))}


def measure_adoption(run_dir: RunDir) -> dict:
  """Trains on snapshot 1 while snapshot 2 comes: the times of the steps."""
  (run_dir.snapshot(2)).rename(run_dir.path / "later")
  x = jnp.eye(_step_size()) * 0.5
  lines: list[str] = []
  follower = SnapshotFollower(run_dir, Corpus(), AdoptionSettings(1000), first_step=10, log=lines.append)
  follower.adopt(11)
  timed_steps(x, lambda n: n == 20)
  seconds = {"before": timed_steps(x, lambda n: n == 300)}
  hashing = subprocess.Popen([sys.executable, "-c", _HASHING])
  time.sleep(1)
  seconds["beside_hashing"] = timed_steps(x, lambda n: n == 300)
  hashing.kill()
  (run_dir.path / "later").rename(run_dir.snapshot(2))
  started = time.perf_counter()
  seconds["while_loading"] = timed_steps(x, lambda n: follower._ready is not None)
  result = {"load_beside_steps_s": time.perf_counter() - started}
  started = time.perf_counter()
  assert follower.adopt(12).version == 2
  result["swap_ms"] = 1000 * (time.perf_counter() - started)
  seconds["after"] = timed_steps(x, lambda n: n == 300)
  follower.close()
  median = statistics.median(seconds["before"])
  result["step_ms"] = 1000 * median
  for name, values in seconds.items():
    ratio = sorted(s / median for s in values)
    result[f"step_ratio_{name}"] = {
      "median": statistics.median(ratio), "p95": ratio[int(0.95 * len(ratio))], "most": ratio[-1],
      "over_1.2": sum(r > 1.2 for r in ratio) / len(ratio), "steps": len(ratio),
    }  # fmt: skip
  result["peak_mb"] = peak_memory()
  status = pathlib.Path(f"/proc/{follower.snapshot.searcher._process.pid}/status")  # of what reads and searches
  if status.exists():
    (peak,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    result["peak_mb_searching"] = int(peak.split()[1]) // 1024
  return result


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.ERROR)  # Orbax tells of every file
  start_backend()
  result = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "num_passages": _NUM_PASSAGES.value}
  run_dir = RunDir(_DIRECTORY.value or tempfile.mkdtemp(prefix="realm-index-"))
  emb_ND = clustered(_NUM_PASSAGES.value, _SIZE.value, 1)
  query_BD = clustered(_NUM_QUERIES.value, _SIZE.value, 2).astype(np.float32)
  options = {"searcher": "scann", "scann": json.loads(_SCANN.value)}
  result |= measure_publishing(run_dir, emb_ND, options)
  result |= measure_search(run_dir, emb_ND, query_BD)
  emb_ND[:] = clustered(_NUM_PASSAGES.value, _SIZE.value, 3)
  publish(run_dir, emb_ND, Corpus(), params_step=1, params_digest="1", **options)
  del emb_ND
  result |= measure_adoption(run_dir)
  print(json.dumps(result, indent=1, default=lambda x: round(x, 3)))


def _step_size() -> int:
  """A matrix of which the step takes about 50 ms here."""
  for size in range(256, 4096, 128):
    x = jnp.eye(size)
    jax.block_until_ready(step(x))
    started = time.perf_counter()
    jax.block_until_ready(step(x))
    if time.perf_counter() - started > 0.05:
      return size
  return 4096


if __name__ == "__main__":
  sys.exit(app.run(main))
