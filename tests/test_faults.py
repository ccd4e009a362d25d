"""Kills, damage and full disks in short; `python -m tests.faults` has the long form."""

import contextlib
import errno
import pathlib
import subprocess

import faults
import processes
import pytest

from realm_jax.index import snapshot, snapshot_data
from realm_jax.index.digest import tree_digest
from realm_jax.index.files import Files
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  return tmp_path_factory.mktemp("faults")


def test_processes_are_killed_and_the_bits_are_the_same(directory):
  counted = faults.kill("both", 4, seed=2, num_steps=24, directory=directory)
  assert counted["kills"] == 4


def test_damage_is_noticed(directory):
  counted = faults.corrupt({"flips": 60, "cuts": 20, "swaps": 20}, seed=3, directory=directory)
  assert sum(counted.values()) == 100
  assert sum(n for name, n in counted.items() if name.endswith("detected")) > 50


@pytest.fixture
def small_disk(tmp_path):
  """6 MB, of which what is too much is refused by the kernel; it can be made read-only."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip("this user may not mount a small file system")
  yield disk
  subprocess.run(["umount", "--lazy", str(disk)], check=True)


def train(corpus, run, num_steps):
  flags = ["--config.init=", f"--config.num_steps={num_steps}", "--config.checkpoint.keep=2"]
  process = processes.train("ict", corpus, run, *flags, wait=False)
  output, _ = process.communicate(timeout=200)
  return process.returncode, output


def leftovers(run):
  return [str(p) for p in pathlib.Path(run).rglob("*") if "tmp" in p.name or p.name.startswith(".")]


def test_a_full_and_a_read_only_disk(directory, small_disk):
  corpus, run = directory / "corpus", small_disk / "run"
  if not corpus.exists():
    processes.build_corpus(directory)
  assert train(corpus, run, 8)[0] == 0
  before = restore_params(RunDir(run))
  filler = small_disk / "filler"
  with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
    while True:
      file.write(b"x" * 1024)
  status, output = train(corpus, run, 24)
  assert status == 1 and "No space left on device" in output
  assert f"{len(processes.lines_of(run))}" in {"8", "9", "10", "11", "12"}  # it ends within one save
  step, params = restore_params(RunDir(run))
  assert (step, tree_digest(params)) == (before[0], tree_digest(before[1])) and step == 8
  filler.unlink()
  subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
  status, output = train(corpus, run, 24)
  assert status == 1 and "Read-only file system" in output
  assert tree_digest(restore_params(RunDir(run))[1]) == tree_digest(params)
  subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
  status, output = train(corpus, run, 24)
  assert status == 0, output
  assert leftovers(run) == []
  whole = directory / "whole"
  assert train(corpus, whole, 24)[0] == 0
  # The calm run has another number of steps in its first life, and so another schedule: the same steps are there.
  assert [line["step"] for line in processes.lines_of(run)] == list(range(1, 25))
  assert RunDir(run).checkpoint_steps()[-1] == RunDir(whole).checkpoint_steps()[-1] == 24


def test_an_indexer_whose_disk_fails_leaves_what_was_published(tmp_path, sample_store, monkeypatch):
  import ml_dtypes  # noqa: PLC0415
  import numpy as np  # noqa: PLC0415

  run_dir = RunDir(tmp_path)
  emb_ND = np.ones((len(sample_store), 4), ml_dtypes.bfloat16)
  snapshot.publish(run_dir, emb_ND, sample_store, params_step=0, params_digest="")

  def fail(*arguments):
    raise OSError(errno.EIO, "Input/output error")

  for target, name in [(snapshot, "write_data"), (Files, "create"), (snapshot_data, "file_digests")]:
    with monkeypatch.context() as patched:
      patched.setattr(target, name, fail)
      with pytest.raises(OSError, match="Input/output error"):
        snapshot.publish(run_dir, emb_ND, sample_store, params_step=1, params_digest="")
    assert run_dir.snapshot_versions() == [1]
    assert snapshot.load(run_dir, 1, sample_store).params_step == 0
  assert snapshot.publish(run_dir, emb_ND, sample_store, params_step=1, params_digest="") == 2
