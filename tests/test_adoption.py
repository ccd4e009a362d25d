"""Which snapshot is in force at which step, also after a crash."""

import json
import pathlib
import threading
import time

import ml_dtypes
import numpy as np
import pytest

from realm_jax.index.run_dir import RunDir, wait_for
from realm_jax.index.snapshot import SnapshotError, publish, read_manifest
from realm_jax.training.adoption import SnapshotFollower


@pytest.fixture
def run_dir(tmp_path):
  return RunDir(tmp_path / "run")


def publish_steps(run_dir, store, *steps):
  for step in steps:
    emb_ND = np.full((len(store), 4), step, ml_dtypes.bfloat16)
    publish(run_dir, emb_ND, store, params_step=step, params_digest=f"digest{step}")


class Following:
  """A follower that is closed at the end, with what it logged."""

  def __init__(self, run_dir, store, *, first_step=0, sync_every=None, timeout=0.0):
    self.lines = []
    self.follower = SnapshotFollower(
      run_dir, store, first_step=first_step, sync_every=sync_every, timeout=timeout, log=self.lines.append
    )

  def __enter__(self):
    return self

  def __exit__(self, *exc):
    self.follower.close()

  def versions(self, *steps):
    return [self.follower.adopt(step).version for step in steps]

  def adopt_soon(self, step, version):
    """Adopts at a step as soon as the version is loaded."""
    wait_for(
      lambda: self.follower._ready is not None and self.follower._ready.version == version,
      20,
      f"version {version}",
      poll=0.02,
    )
    assert self.versions(step) == [version]


def journal(run_dir):
  return [json.loads(run_dir.adoption(step).read_text()) for step in run_dir.adoption_steps()]


def entry(step, version, params_step):
  return {"step": step, "version": version, "params_digest": f"digest{params_step}"}


def test_the_first_snapshot_is_waited_for(run_dir, sample_store):
  indexer = threading.Timer(0.5, publish_steps, (run_dir, sample_store, 0))
  indexer.start()
  started = time.monotonic()
  with Following(run_dir, sample_store, timeout=30) as following:
    assert time.monotonic() - started >= 0.5
    assert following.follower.version == 1 and following.versions(0, 1) == [1, 1]
    assert following.lines == [
      f"waiting for the first snapshot: run  realm refresh_index --workdir={run_dir.path}  beside this",
      "step 0: snapshot 1 adopted, 0 steps old",
    ]
  assert journal(run_dir) == [entry(0, 1, 0)]
  indexer.join()


def test_without_an_indexer_the_wait_ends(run_dir, sample_store):
  with pytest.raises(TimeoutError) as error:
    Following(run_dir, sample_store, timeout=0.1)
  assert str(error.value) == (
    f"waited 0 s for a snapshot in {run_dir.index}: is realm refresh_index --workdir={run_dir.path} running?"
  )
  assert journal(run_dir) == []


def test_newer_snapshots_are_adopted_when_ready_and_journalled(run_dir, sample_store):
  publish_steps(run_dir, sample_store, 0)
  with Following(run_dir, sample_store) as following:
    assert following.versions(0) == [1]
    publish_steps(run_dir, sample_store, 20)
    following.adopt_soon(33, 2)
    assert following.follower.age(40) == 20
    assert following.follower.snapshot.passage_emb_ND[0, 0] == 20
    assert following.lines[-1] == "step 33: snapshot 2 adopted, 13 steps old"
  assert journal(run_dir) == [entry(0, 1, 0), entry(33, 2, 20)]


def make_journal(run_dir, store):
  """Versions 1 to 5; 1, 2 and 3 were adopted at the steps 0, 3 and 7."""
  publish_steps(run_dir, store, 0, 2, 6, 8, 9)
  run_dir.adoptions.mkdir(parents=True)
  for adopted in (entry(0, 1, 0), entry(3, 2, 2), entry(7, 3, 6)):
    run_dir.adoption(adopted["step"]).write_text(json.dumps(adopted))


@pytest.mark.parametrize(
  ("first_step", "versions"),
  [(0, [1, 1, 1, 2, 2, 2, 2, 3]), (2, [1, 2, 2, 2, 2, 3]), (3, [2, 2, 2, 2, 3]), (6, [2, 3])],
)
def test_a_resumed_run_adopts_the_same_versions_at_the_same_steps(run_dir, sample_store, first_step, versions):
  make_journal(run_dir, sample_store)
  before = journal(run_dir)
  with Following(run_dir, sample_store, first_step=first_step) as following:
    time.sleep(0.6)  # long enough to load a newer one, if it looked for any
    assert following.versions(*range(first_step, 8)) == versions
    assert journal(run_dir) == before
    following.adopt_soon(11, 5)  # the journal has ended
  assert journal(run_dir) == [*before, entry(11, 5, 9)]


def test_a_resumed_run_without_replay_follows_at_once(run_dir, sample_store):
  make_journal(run_dir, sample_store)
  with Following(run_dir, sample_store, first_step=7) as following:
    assert following.versions(7) == [3]
    following.adopt_soon(8, 5)


def test_a_journalled_snapshot_that_is_gone_or_another_is_refused(run_dir, sample_store):
  make_journal(run_dir, sample_store)
  run_dir.adoption(3).write_text(json.dumps(entry(3, 2, 77)))
  with pytest.raises(SnapshotError, match=r"^snapshot 2 in .*/index is not the one that was adopted at step 3$"):
    Following(run_dir, sample_store, first_step=5)
  run_dir.snapshot_commit(2).unlink()
  with pytest.raises(SnapshotError, match=r"^snapshot 2 is not in .*/index"):
    Following(run_dir, sample_store, first_step=5)


def test_sync_adopts_at_multiples_only_and_waits_for_the_one_before(run_dir, sample_store):
  publish_steps(run_dir, sample_store, 0)
  with Following(run_dir, sample_store, sync_every=10, timeout=0.1) as following:
    publish_steps(run_dir, sample_store, 10, 20)
    assert following.versions(0, 5, 9, 10, 11, 19) == [1] * 6
    assert following.versions(20, 21, 29) == [2] * 3  # not 3, which is there too
    assert following.versions(30, 39) == [3] * 2
    with pytest.raises(TimeoutError) as error:
      following.follower.adopt(40)
    assert str(error.value) == (
      f"waited 0 s for the snapshot of step 30 in {run_dir.index} (index.sync): "
      f"is realm refresh_index --workdir={run_dir.path} running?"
    )
  with Following(run_dir, sample_store, sync_every=10, timeout=20, first_step=25) as following:
    assert following.versions(25, 29, 30, 31) == [2, 2, 3, 3]  # from the journal
    indexer = threading.Timer(0.3, publish_steps, (run_dir, sample_store, 30))
    indexer.start()
    assert following.versions(40) == [4]
    indexer.join()
  assert journal(run_dir) == [entry(0, 1, 0), entry(20, 2, 10), entry(30, 3, 20), entry(40, 4, 30)]


def test_sync_begins_with_the_oldest_snapshot(run_dir, sample_store):
  publish_steps(run_dir, sample_store, 0, 10)
  with Following(run_dir, sample_store, sync_every=10) as following:
    assert following.versions(0, 10) == [1, 1]


@pytest.mark.parametrize("damage", ["array", "commit"])
def test_a_damaged_snapshot_is_left_out_and_the_run_goes_on(run_dir, sample_store, damage):
  publish_steps(run_dir, sample_store, 0)
  with Following(run_dir, sample_store) as following:
    publish_damaged(run_dir, sample_store, damage)
    wait_for(lambda: len(following.lines) == 3, 20, "the log", poll=0.02)
    assert following.lines[2].startswith("snapshot 2 is left out: ") and "is damaged" in following.lines[2]
    assert "delete snapshot 2 and run realm refresh_index --once" in following.lines[2]
    assert following.versions(11, 12) == [1, 1]
    publish_steps(run_dir, sample_store, 20)
    following.adopt_soon(21, 3)
  assert journal(run_dir) == [entry(0, 1, 0), entry(21, 3, 20)]


def publish_damaged(run_dir, store, damage):
  """Version 2, damaged before anybody can have seen it whole."""
  other = RunDir(run_dir.path.parent / "other")
  publish_steps(other, store, 0, 10)
  if damage == "commit":
    path = other.snapshot_commit(2)
    path.write_text(path.read_text().replace("digest10", "digest11"))
  else:
    data = other.snapshot(2) / read_manifest(other, 2)["writer"]
    path = max((p for p in pathlib.Path(data).rglob("embeddings/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
  other.snapshot(2).rename(run_dir.snapshot(2))


def test_two_trainers_in_one_directory_are_noticed(run_dir, sample_store):
  publish_steps(run_dir, sample_store, 0)
  with Following(run_dir, sample_store) as following:
    publish_steps(run_dir, sample_store, 10)
    wait_for(lambda: following.follower._ready is not None, 20, "version 2", poll=0.02)
    run_dir.adoption(12).write_text(json.dumps(entry(12, 2, 10)))
    with pytest.raises(
      RuntimeError, match=r"/adoptions/00000012 exists: another trainer works in .*; stop one of them$"
    ):
      following.follower.adopt(12)
    assert following.follower.version == 1
