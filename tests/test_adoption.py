"""Which snapshot is in force at which step, also after a crash."""

import errno
import json
import pathlib
import threading
import time
import weakref

import ml_dtypes
import numpy as np
import pytest

from realm_jax.config import paper_config
from realm_jax.index import journal as journals
from realm_jax.index.deletion import delete_old
from realm_jax.index.journal import Adoption
from realm_jax.index.run_dir import RunDir, wait_for
from realm_jax.index.seal import unsealed
from realm_jax.index.snapshot import Slice, UnusableSnapshot, is_refused, load, newest_published, publish, read_manifest
from realm_jax.training.adoption import AdoptionSettings, SnapshotFollower, adoption_settings


@pytest.fixture
def run_dir(tmp_path):
  return RunDir(tmp_path / "run")


EMBEDDING_DIGESTS = {}


def publish_steps(run_dir, store, *steps, **options):
  for step in steps:
    emb_ND = np.full((len(store), 4), step, ml_dtypes.bfloat16)
    version = publish(run_dir, emb_ND, store, params_step=step, params_digest=f"digest{step}", **options)
    EMBEDDING_DIGESTS[step] = read_manifest(run_dir, version)["embedding_digest"]


class Following:
  """A follower that is closed at the end, with what it logged."""

  def __init__(self, run_dir, store, *, first_step=0, every=10, lag=None, timeout=0.0, ages=(0, 0), **options):
    self.lines = []
    settings = AdoptionSettings(every, lag, timeout, *ages)
    self.follower = SnapshotFollower(run_dir, store, settings, first_step=first_step, log=self.lines.append, **options)

  def __enter__(self):
    return self

  def __exit__(self, *exc):
    self.follower.close()

  def versions(self, *steps):
    return [self.follower.adopt(step).version for step in steps]

  def adopt_soon(self, step, version):
    """Adopts at a step as soon as the version is loaded."""
    wait_for(lambda: self.follower.adopt(step).version == version, 20, f"version {version}", poll=0.02)


def journal(run_dir):
  return [
    unsealed(json.loads(run_dir.adoption(step).read_text()), f"adoptions/{step}") for step in run_dir.adoption_steps()
  ]


def entry(step, version, params_step):
  return {
    "step": step,
    "version": version,
    "params_digest": f"digest{params_step}",
    "embedding_digest": EMBEDDING_DIGESTS[params_step],
  }


def make_adoption(step, version, params_step):
  return Adoption(**entry(step, version, params_step))


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


def test_a_directory_that_cant_be_reached_for_a_while_is_looked_at_again(run_dir, sample_store, monkeypatch):
  publish_steps(run_dir, sample_store, 0)
  with Following(run_dir, sample_store) as following:
    with monkeypatch.context() as outage:
      outage.setattr(run_dir.files, "names", lambda directory: 1 / 0)
      following.versions(10)
      wait_for(lambda: "tried again" in following.lines[-1], 20, "a line")
      time.sleep(1.1)  # two more looks
    line = f"{run_dir.index} can't be looked at, and is tried again: division by zero"
    assert following.lines.count(line) == 1  # not one each time
    publish_steps(run_dir, sample_store, 10)
    following.adopt_soon(20, version=2)


def make_journal(run_dir, store):
  """Versions 1 to 5; 1, 2 and 3 were adopted at the steps 0, 3 and 7."""
  publish_steps(run_dir, store, 0, 2, 6, 8, 9)
  for adopted in (make_adoption(0, 1, 0), make_adoption(3, 2, 2), make_adoption(7, 3, 6)):
    assert journals.record(run_dir, adopted)


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
    following.adopt_soon(9, 5)


LOST = "step 3: snapshot 2, adopted here before, is lost: "


@pytest.mark.parametrize("how", ["deleted", "another", "damaged"])
def test_a_run_outlives_the_loss_of_a_journalled_snapshot(run_dir, sample_store, how):
  make_journal(run_dir, sample_store)
  if how == "deleted":
    run_dir.snapshot(2).rmtree()
  elif how == "another":
    journals.correct(run_dir, make_adoption(3, 2, 2)._replace(embedding_digest="0" * 32))
  else:
    run_dir.snapshot_commit(2).write_text("{")
  with Following(run_dir, sample_store, first_step=5) as following:
    assert following.versions(5, 6, 7) == [1, 1, 3]  # the version before, then on with the journal
    assert following.lines[0].startswith(LOST) and following.lines[0].endswith(
      ". The run goes on with another one; its bits are no longer those of the life before"
    )
  assert journal(run_dir) == [entry(0, 1, 0), entry(3, 1, 0), entry(7, 3, 6)]
  with Following(run_dir, sample_store, first_step=5) as following:  # told once
    assert following.versions(5) == [1] and following.lines == []


def test_the_first_snapshot_lost_means_the_next_one(run_dir, sample_store):
  make_journal(run_dir, sample_store)
  for version in (1, 2):
    run_dir.snapshot(version).rmtree()
  with Following(run_dir, sample_store, first_step=8) as following:
    assert following.versions(8) == [3]


def test_a_damaged_entry_is_restored_from_the_checkpoint_or_left_out(run_dir, sample_store):
  make_journal(run_dir, sample_store)
  before = journal(run_dir)
  run_dir.adoption(3).write_text("{")
  with Following(run_dir, sample_store, first_step=5, in_force=make_adoption(3, 2, 2)) as following:
    assert following.versions(5, 7) == [2, 3] and following.lines == []
  assert journal(run_dir) == before
  run_dir.adoption(3).write_text("{")
  with Following(run_dir, sample_store, first_step=5) as following:
    assert following.versions(5, 7) == [1, 3]
    assert following.lines[0].endswith("and left out: from step 3 on the bits are no longer those of the life before")
  assert journal(run_dir) == [before[0], before[2]]


def test_a_version_marked_for_deletion_is_replayed_but_not_adopted(run_dir, sample_store):
  make_journal(run_dir, sample_store)
  for version in (2, 5):
    run_dir.files.create(run_dir.snapshot_deleting(version), "")
  with Following(run_dir, sample_store, first_step=5) as following:
    assert following.versions(5, 7) == [2, 3]
    following.adopt_soon(11, 4)  # not 5, which is about to go


def test_what_is_loaded_is_claimed_before_it_is_looked_at_again(run_dir, sample_store, monkeypatch):
  publish_steps(run_dir, sample_store, 0)
  with Following(run_dir, sample_store) as following:
    assert following.versions(20) == [1]
    claim = journals.claim

    def indexer_deletes_first(run_dir, version):
      publish_steps(run_dir, sample_store, 20)
      assert delete_old(run_dir, keep=1) == [2]
      claim(run_dir, version)

    with monkeypatch.context() as patched:
      patched.setattr(journals, "claim", indexer_deletes_first)
      publish_steps(run_dir, sample_store, 10)
      wait_for(lambda: run_dir.snapshot_versions() == [1, 3], 20, "the deletion", poll=0.02)
    following.adopt_soon(21, 3)
    publish_steps(run_dir, sample_store, 30, 40)
    following.adopt_soon(41, 5)
    assert delete_old(run_dir, keep=1) == [4]  # 1 and 3 are in the journal
    assert run_dir.snapshot_versions() == [1, 3, 5]


def test_until_the_life_before_has_been_repeated_nothing_else_is_adopted(run_dir, sample_store):
  publish_steps(run_dir, sample_store, 0)
  journals.record(run_dir, make_adoption(0, 1, 0))
  publish_steps(run_dir, sample_store, 10, 20)
  # The life before came to step 20 without adopting another one: what it exported there is then true of this one.
  with Following(run_dir, sample_store, first_step=12, newest_export=20) as following:
    time.sleep(1.2)
    assert following.versions(12, 15, 19) == [1, 1, 1]
    following.adopt_soon(20, 3)


def test_parameters_of_later_steps_and_older_parameters_are_not_adopted(run_dir, sample_store):
  publish_steps(run_dir, sample_store, 0, 30)
  with Following(run_dir, sample_store) as following:
    assert following.versions(0, 29) == [1, 1]  # 30 is of a life that had come further
    following.adopt_soon(30, 2)
    emb_ND = np.zeros((len(sample_store), 4), ml_dtypes.bfloat16)
    publish(run_dir, emb_ND, sample_store, params_step=20, params_digest="", damaged=frozenset({1, 2}))
    time.sleep(1.2)
    assert following.versions(31) == [2]
    publish_steps(run_dir, sample_store, 31)
    following.adopt_soon(32, 4)


def test_a_snapshot_of_other_parameters_than_were_exported_is_left_out(run_dir, sample_store):
  publish_steps(run_dir, sample_store, 0)
  digests = {0: "digest0", 10: "mine"}
  with Following(run_dir, sample_store, export_digest=digests.get) as following:
    publish_steps(run_dir, sample_store, 10)
    following.follower.adopt(10)
    wait_for(lambda: is_refused(run_dir, 2), 20, "the refusal", poll=0.02)
    assert following.lines[1] == "snapshot 2 is left out: it is of other parameters than were exported at its step"
    assert newest_published(run_dir).params_step == 0  # so that it is made again
    publish_steps(run_dir, sample_store, 20)  # of which no export is known any more
    following.adopt_soon(21, 3)


def test_at_most_two_are_in_memory(run_dir, sample_store):
  publish_steps(run_dir, sample_store, 0)
  live = weakref.WeakSet()
  with Following(run_dir, sample_store) as following:
    live.add(following.follower.snapshot.searcher)
    for version, step in enumerate((10, 20, 30), 2):
      publish_steps(run_dir, sample_store, step)
      following.follower.adopt(step)
      wait_for(lambda: following.follower._ready is not None, 20, f"version {version}", poll=0.02)
      live.add(following.follower._ready.searcher)
      time.sleep(0.6)  # another look
      assert len(live) == 2
      following.adopt_soon(step + 1, version)
      assert len(live) <= 2
      wait_for(lambda: len(live) == 1, 20, "the old one to go", poll=0.02)


def test_age_is_warned_of_and_limited(run_dir, sample_store):
  publish_steps(run_dir, sample_store, 0)
  with Following(run_dir, sample_store, ages=(30, 100)) as following:
    following.versions(0, 30)
    assert len(following.lines) == 1
    following.versions(31, 32, 60)
    assert following.lines[1:] == [
      f"step 31: the index is 31 steps old; is realm refresh_index --workdir={run_dir.path} running, and fast enough "
      "for index.export_every=10?"
    ]
    following.versions(61)  # doubled
    assert len(following.lines) == 3
    with pytest.raises(TimeoutError) as error:
      following.follower.adopt(100)
    assert str(error.value) == (
      f"waited 0 s for a snapshot younger than index.max_age=100 steps in {run_dir.index}: start realm refresh_index "
      f"--workdir={run_dir.path}, then this again, or raise index.max_age"
    )
  with Following(run_dir, sample_store, ages=(0, 100), timeout=20) as following:
    indexer = threading.Timer(0.3, publish_steps, (run_dir, sample_store, 90))
    indexer.start()
    assert following.versions(99, 100) == [1, 2]  # waited for
    indexer.join()
  assert journal(run_dir) == [entry(0, 1, 0), entry(100, 2, 90)]


def test_the_age_of_slices_is_their_mean(run_dir, sample_store):
  half = len(sample_store) // 2
  publish_steps(run_dir, sample_store, 40, slices=[Slice(0, half, 40), Slice(half, len(sample_store), 0)])
  with Following(run_dir, sample_store, first_step=60) as following:
    assert following.follower.age(60) == 40
    assert following.lines[-1] == "step 60: snapshot 1 adopted, 40 steps old"


def test_settings_of_the_config():
  index = paper_config("pretrain").index
  assert adoption_settings(index, is_frozen=False) == AdoptionSettings(500, None, 3600.0, 5000, 0)
  with index.unlocked():
    index.update(sync=True, warn_age=7, max_age=2000)
    assert adoption_settings(index, is_frozen=False) == AdoptionSettings(500, 500, 3600.0, 7, 2000)
    assert adoption_settings(index, is_frozen=True) == AdoptionSettings(500, None, 3600.0, 0, 0)
    index.refresh = "inline"
    assert adoption_settings(index, is_frozen=False) == AdoptionSettings(500, 0, 0.0, 7, 2000, is_inline=True)
    index.max_age = 500
    with pytest.raises(ValueError, match="^index.max_age=500, but parameters are exported every 500 steps; set it to"):
      adoption_settings(index, is_frozen=False)
    index.refresh = "thread"
    with pytest.raises(ValueError, match="^index.refresh='thread', expected process or inline$"):
      adoption_settings(index, is_frozen=False)


def test_sync_adopts_at_multiples_only_and_waits_for_the_one_before(run_dir, sample_store):
  publish_steps(run_dir, sample_store, 0)
  with Following(run_dir, sample_store, lag=10, timeout=0.1) as following:
    publish_steps(run_dir, sample_store, 10, 20)
    assert following.versions(0, 5, 9, 10, 11, 19) == [1] * 6
    assert following.versions(20, 21, 29) == [2] * 3  # not 3, which is there too
    assert following.versions(30, 39) == [3] * 2
    with pytest.raises(TimeoutError) as error:
      following.follower.adopt(40)
    assert str(error.value) == (
      f"waited 0 s for the snapshot of step 30 in {run_dir.index}: "
      f"is realm refresh_index --workdir={run_dir.path} running?"
    )
  with Following(run_dir, sample_store, lag=10, timeout=20, first_step=25) as following:
    assert following.versions(25, 29, 30, 31) == [2, 2, 3, 3]  # from the journal
    indexer = threading.Timer(0.3, publish_steps, (run_dir, sample_store, 30))
    indexer.start()
    assert following.versions(40) == [4]
    indexer.join()
  assert journal(run_dir) == [entry(0, 1, 0), entry(20, 2, 10), entry(30, 3, 20), entry(40, 4, 30)]


def test_where_the_one_that_is_due_was_lost_the_next_takes_its_place(run_dir, sample_store):
  """Its export was damaged: the indexer left it out, and went on."""
  publish_steps(run_dir, sample_store, 0)
  with Following(run_dir, sample_store, lag=10, timeout=0.1) as following:
    with pytest.raises(TimeoutError):
      following.follower.adopt(20)
    publish_steps(run_dir, sample_store, 20)
    assert following.versions(20, 30) == [2, 2]  # so that nothing is due at 30
    assert following.lines[1].startswith("step 20: there is no snapshot of step 10; that of step 20 takes its place")
  assert journal(run_dir) == [entry(0, 1, 0), entry(20, 2, 20)]


def test_what_a_disk_cannot_read_is_damaged_and_what_a_bucket_cannot_is_tried_again(run_dir, sample_store, monkeypatch):
  publish_steps(run_dir, sample_store, 0, 10)

  def read_data(directory, manifest):
    raise OSError(errno.EIO, "Input/output error")

  monkeypatch.setattr("realm_jax.index.snapshot.read_data", read_data)
  with pytest.raises(UnusableSnapshot, match=r"Input/output error; delete .* and run realm refresh_index"):
    load(run_dir, 2, sample_store)
  run_dir.is_bucket = True
  with pytest.raises(OSError, match="Input/output error"):
    load(run_dir, 2, sample_store)
  lines = []
  with pytest.raises(TimeoutError):
    SnapshotFollower(run_dir, sample_store, AdoptionSettings(10, timeout=0.5), first_step=10, log=lines.append)
  assert len([line for line in lines if "can't be read, and is tried again" in line]) == 1  # not at every look


def test_inline_adopts_what_was_published_at_the_same_step(run_dir, sample_store):
  publish_steps(run_dir, sample_store, 0)
  with Following(run_dir, sample_store, lag=0) as following:
    assert following.versions(0, 9) == [1, 1]
    publish_steps(run_dir, sample_store, 10)
    assert following.versions(10, 11) == [2, 2] and following.follower.age(10) == 0
  with Following(run_dir, sample_store, lag=0, first_step=10) as following:
    assert following.versions(10, 11) == [2, 2]


def test_sync_begins_with_the_oldest_snapshot(run_dir, sample_store):
  publish_steps(run_dir, sample_store, 0, 10)
  with Following(run_dir, sample_store, lag=10) as following:
    assert following.versions(0, 10) == [1, 1]


@pytest.mark.parametrize("damage", ["array", "commit"])
def test_a_damaged_snapshot_is_left_out_and_the_run_goes_on(run_dir, sample_store, damage):
  publish_steps(run_dir, sample_store, 0)
  with Following(run_dir, sample_store) as following:
    following.versions(10)
    publish_damaged(run_dir, sample_store, damage)
    wait_for(lambda: len(following.lines) == 2, 20, "the log", poll=0.02)
    assert following.lines[1].startswith("snapshot 2 is left out: ") and "is damaged" in following.lines[1]
    remedy = f"delete {run_dir.snapshot(2)} and run realm refresh_index --once --workdir={run_dir.path}"
    assert following.lines[1].endswith(remedy)
    wait_for(lambda: newest_published(run_dir).params_step == 0, 20, "it no longer counts as published", poll=0.02)
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
    following.versions(11)
    publish_steps(run_dir, sample_store, 10)
    wait_for(lambda: following.follower._ready is not None, 20, "version 2", poll=0.02)
    journals.record(run_dir, make_adoption(12, 2, 10))
    with pytest.raises(
      RuntimeError, match=r"/adoptions/00000012 exists: another trainer works in .*; stop one of them$"
    ):
      following.follower.adopt(12)
    assert following.follower.version == 1
