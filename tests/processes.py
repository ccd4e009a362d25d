"""Runs the verbs as processes, in small: what tests of several processes share."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from realm_jax.data.sample import SAMPLE_PASSAGES
from realm_jax.index.run_dir import RunDir

ROOT = pathlib.Path(__file__).parents[1]
SMALL = [
    "--config.model.hidden_size=16", "--config.model.num_layers=1", "--config.model.num_heads=2",
    "--config.model.mlp_size=32", "--config.model.retrieval_size=16", "--config.model.span_hidden_size=8",
    "--config.model.dropout_rate=0.1", "--config.batch_size=4", "--config.query_length=32", "--config.joint_length=96",
    "--config.log_every=1", "--config.checkpoint.every=4", "--config.index.timeout=120.0",
]  # fmt: skip


# The processes compile the same programs again and again.
CACHE = {
  "JAX_PLATFORMS": "cpu",
  "JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(prefix="realm-test-cache-"),
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}


def realm(*arguments, wait=True, env=None, timeout=240):
  """The output of a verb; with wait=False, its process."""
  command = [sys.executable, "-m", "realm_jax.cli", *map(str, arguments)]
  process = subprocess.Popen(
    command, cwd=ROOT, env=os.environ | CACHE | (env or {}), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )
  if not wait:
    return process
  output, _ = process.communicate(timeout=timeout)
  assert process.returncode == 0, output
  return output


def train(stage, corpus, workdir, *flags, **options):
  return realm(
      "train", f"--config=configs/demo.py:{stage}", f"--config.corpus={corpus}", f"--workdir={workdir}",
      *SMALL, *flags, **options,
  )  # fmt: skip


def build_corpus(directory):
  """180 passages of the sample encyclopedia."""
  lines = SAMPLE_PASSAGES.read_text(encoding="utf-8").splitlines(keepends=True)[:40]
  (directory / "articles.jsonl").write_text("".join(lines), encoding="utf-8")
  realm("build_corpus", f"--input={directory}/articles.jsonl", f"--output={directory}/corpus", "--passage_length=64",
        "--vocab_size=1000")  # fmt: skip
  return directory / "corpus"


def lines_of(run):
  """The lines of metrics.jsonl."""
  run_dir = RunDir(run)
  return [json.loads(line) for line in (run_dir.files.read(run_dir.metrics) or b"").splitlines()]
