"""A snapshot that another process reads and searches."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from etils import epath

from realm_jax.index.run_dir import wait_for
from realm_jax.index.searcher import ScannSearcher, scann_settings
from realm_jax.index.snapshot_data import SnapshotError, digest_of, read_data, write_data
from realm_jax.index.snapshot_process import SnapshotProcess, _nameless_file

pytest.importorskip("scann")

_N, _D = 500, 16


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A directory and its manifest."""
  directory = epath.Path(tmp_path_factory.mktemp("snapshot")) / "data"
  emb_ND = np.random.default_rng(0).normal(size=(_N, _D)).astype(ml_dtypes.bfloat16)
  settings = scann_settings(_N)
  manifest = {
    "num_passages": _N,
    "retrieval_size": _D,
    "embedding_digest": digest_of(emb_ND),
    "searcher": "scann",
    "searcher_settings": settings,
  }
  built = ScannSearcher.build(emb_ND.astype(np.float32), settings)
  return directory, manifest | {"file_digest": write_data(directory, emb_ND, built)}


@pytest.mark.parametrize("manner", ["at_once", "steps_back", pytest.param("rests", marks=pytest.mark.slow)])
def test_another_process_answers_the_same(written, manner):
  directory, manifest = written
  emb_ND, here = read_data(directory, manifest)
  apart = SnapshotProcess(str(directory), manifest, manner=manner)
  assert apart.passage_emb_ND.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(apart.passage_emb_ND, emb_ND)
  query_BD = emb_ND[:5].astype(np.float32)
  for k in (1, 8, _N):
    (score, passage_id), (wanted_score, wanted_id) = apart.search(query_BD, k), here.search(query_BD, k)
    np.testing.assert_array_equal(passage_id, wanted_id)
    np.testing.assert_allclose(score, wanted_score, rtol=0, atol=1e-5)
  with pytest.raises(ValueError, match="asked for 501 of 500 passages"):
    apart.search(query_BD, 501)
  with pytest.raises(ValueError, match="a query embedding is not finite"):
    apart.search(np.full((1, _D), np.nan, np.float32), 3)
  apart._process.kill()
  with pytest.raises(RuntimeError, match="the process that holds ScaNN's index ended with status -9"):
    apart.search(query_BD, 3)


def test_it_reads_with_a_low_priority_and_searches_with_its_owner_s(written):
  directory, manifest = written
  apart = SnapshotProcess(str(directory), manifest, manner="steps_back")
  pid = apart._process.pid
  here = os.getpriority(os.PRIO_PROCESS, 0)
  # What reading has started, ScaNN's and TensorStore's threads, is still there.
  nice = {int(thread): os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")}
  assert nice.pop(pid) == here
  assert max(nice.values(), default=10) >= 10
  process = apart._process
  del apart
  assert process.wait(timeout=10) == -9  # it does not outlive what it answers for


def state(pid):
  """R, S or T, which stands still; None if it is gone."""
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
  except OSError:
    return None


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="looks into /proc")
def test_reading_rests_most_of_the_time_and_ends_with_its_owner(written):
  directory, manifest = written
  with _nameless_file() as file:
    server = subprocess.Popen(
      [sys.executable, "-m", "realm_jax.index.snapshot_server", str(directory), str(file.fileno()), "rests"],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[file.fileno()],
    )  # fmt: skip
  server.stdin.write(json.dumps(manifest).encode() + b"\n")
  server.stdin.flush()
  wait_for(lambda: state(server.pid) == "T", 30, "it to stand still", poll=0.001)
  seen = collections.Counter()
  for _ in range(200):
    seen[state(server.pid)] += 1
    time.sleep(0.002)
  assert seen["T"] > 100 and seen["T"] < 200, seen
  (pacer,) = pathlib.Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
  for end in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    os.kill(int(pacer), end)  # none of which may leave a process that stands still for ever
  server.stdin.close()  # as when the trainer is killed
  assert server.wait(timeout=30) == 1
  wait_for(lambda: state(int(pacer)) in (None, "Z"), 30, "the pacer to end")  # Z where nobody takes up orphans


def test_what_is_wrong_comes_back_as_it_would_here(written, tmp_path):
  directory, manifest = written
  name = next(iter(manifest["file_digest"]))
  with pytest.raises(SnapshotError, match=f"{name} is damaged"):
    SnapshotProcess(str(directory), manifest | {"file_digest": manifest["file_digest"] | {name: "0" * 32}})
  with pytest.raises(SnapshotError, match="is missing"):
    SnapshotProcess(str(tmp_path / "absent"), manifest)
  with pytest.raises(RuntimeError, match="ended with status 1"):
    SnapshotProcess(str(directory), {"num_passages": _N, "retrieval_size": _D})  # no manifest that was ever written
