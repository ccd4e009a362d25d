"""Which snapshots are deleted, which never, and what is left of crashed writers."""

import json

import ml_dtypes
import numpy as np
import pytest

from realm_jax.index import deletion, journal
from realm_jax.index.deletion import delete_old
from realm_jax.index.files import Files
from realm_jax.index.journal import Adoption
from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import load, publish


def publish_one(run_dir, store, step):
  emb_ND = np.full((len(store), 4), step, ml_dtypes.bfloat16)
  return publish(run_dir, emb_ND, store, params_step=step, params_digest="")


@pytest.fixture
def run_dir(tmp_path, sample_store):
  """Versions 1 to 8."""
  run_dir = RunDir(tmp_path)
  for step in range(0, 80, 10):
    publish_one(run_dir, sample_store, step)
  return run_dir


def adopt(run_dir, adopted):
  for step, version in adopted.items():
    assert journal.record(run_dir, Adoption(step, version, "", ""))


def test_the_newest_and_those_in_use_are_kept(run_dir, sample_store):
  adopt(run_dir, {0: 1, 20: 3, 40: 5})
  (run_dir.checkpoints / "30").mkdir(parents=True)
  assert delete_old(run_dir, keep=2) == [1, 2, 4, 6]
  assert run_dir.snapshot_versions() == [3, 5, 7, 8]
  assert run_dir.files.names(run_dir.index) == [f"{v:08d}" for v in (3, 5, 7, 8)]
  assert delete_old(run_dir, keep=2) == []
  assert load(run_dir, 5, sample_store).params_step == 40
  assert publish_one(run_dir, sample_store, 80) == 9


def test_a_claimed_version_is_spared_until_another_is_claimed(run_dir):
  journal.claim(run_dir, 2)
  assert delete_old(run_dir, keep=2) == [1, 3, 4, 5, 6]
  journal.claim(run_dir, 7)
  assert delete_old(run_dir, keep=2) == [2]


def test_a_claim_between_the_mark_and_the_deletion_is_seen(run_dir, monkeypatch):
  create = Files.create

  def claimed_before_the_mark(self, path, content):
    if path == run_dir.snapshot_deleting(2):
      journal.claim(run_dir, 2)  # the trainer did not see a mark: it begins to load
    return create(self, path, content)

  with monkeypatch.context() as patched:
    patched.setattr(Files, "create", claimed_before_the_mark)
    assert delete_old(run_dir, keep=2) == [1, 3, 4, 5, 6]
  assert run_dir.snapshot_versions() == [2, 7, 8]
  # The mark stays: nobody begins to use it any more, and it goes when it is not needed.
  assert run_dir.files.read(run_dir.snapshot_deleting(2)) is not None
  journal.claim(run_dir, 8)
  assert delete_old(run_dir, keep=2) == [2]


def test_an_indexer_that_died_while_deleting_is_made_up_for(run_dir, monkeypatch):
  def die(self, path):
    raise KeyboardInterrupt

  for operation in ("remove", "remove_tree"):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
      patched.setattr(Files, operation, die)
      delete_old(run_dir, keep=2)
  assert run_dir.files.names(run_dir.snapshot(1)) != []
  assert delete_old(run_dir, keep=2) == [2, 3, 4, 5, 6]  # 1 lost its COMMIT: it is rubbish
  assert run_dir.files.names(run_dir.index) == ["00000007", "00000008"]


@pytest.mark.parametrize("damaged", ["00000020", "CLAIM"])
def test_nothing_is_deleted_while_it_is_unknown_what_is_in_use(run_dir, damaged):
  adopt(run_dir, {0: 1, 20: 3})
  (run_dir.adoptions / damaged).write_text("{")
  assert delete_old(run_dir, keep=2) == []
  assert run_dir.snapshot_versions() == list(range(1, 9))


def test_rubbish_of_other_writers_goes_and_work_in_progress_stays(run_dir, sample_store):
  (run_dir.snapshot(8) / "loser" / "embeddings").mkdir(parents=True)  # COMMIT names another writer
  run_dir.snapshot_commit(6).unlink()  # never came to its commit
  (run_dir.snapshot(9) / "writing" / "embeddings").mkdir(parents=True)
  journal.claim(run_dir, 7)
  assert delete_old(run_dir, keep=1) == [1, 2, 3, 4, 5]
  assert run_dir.files.names(run_dir.index) == ["00000007", "00000008", "00000009"]
  assert "loser" not in run_dir.files.names(run_dir.snapshot(8))
  assert run_dir.files.names(run_dir.snapshot(9)) == ["writing"]
  assert load(run_dir, 8, sample_store).version == 8


def test_a_damaged_commit_is_left_for_people(run_dir):
  run_dir.snapshot_commit(8).write_text(json.dumps({}))
  deletion.delete_old(run_dir, keep=3)
  assert run_dir.snapshot_versions() == [6, 7, 8]
  assert len(run_dir.files.names(run_dir.snapshot(8))) == 2
