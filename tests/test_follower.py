"""Which checkpoint and index of a growing run are taken into use, and what is left out."""

import pathlib
import shutil

import pytest
from tiny_runs import write_run

from realm_jax.index.run_dir import RunDir
from realm_jax.serving.follower import RunFollower
from realm_jax.serving.open_qa import OpenQA


@pytest.fixture(scope="module")
def finished(sample_store, tmp_path_factory):
  """Checkpoints 10 and 20, each with the snapshot of its own passage tower: versions 1 and 2."""
  return write_run(tmp_path_factory.mktemp("follower") / "run", sample_store)


@pytest.fixture
def growing(finished, tmp_path):
  """The run as it was at step 10; `grow` brings what came then."""
  run_dir = RunDir(shutil.copytree(finished.path, tmp_path / "run"))
  shutil.rmtree(run_dir.snapshot(2))
  shutil.rmtree(run_dir.checkpoints / "20")

  def grow(what):
    path = {"index": finished.snapshot(2), "checkpoint": finished.checkpoints / "20"}[what]
    shutil.copytree(path, run_dir.path / path.relative_to(finished.path))

  return run_dir, grow


@pytest.fixture
def follow(growing):
  """A follower of the run, what it is held by, and what it has said."""
  said = []
  return RunFollower(growing[0].path, None, said.append), OpenQA.load(growing[0].path), said


def test_a_newer_checkpoint_comes_with_its_index(growing, follow, monkeypatch):
  (_, grow), (follower, now, said) = growing, follow
  assert (now.step, now.snapshot.version) == (10, 1)
  assert follower.look(now) is None and said == []
  grow("checkpoint")
  assert follower.look(now) is None  # whose passages are not embedded yet
  assert len(said) == 1 and said[0].startswith("what is new is left out: the newest snapshot of ")
  assert follower.look(now) is None and len(said) == 1
  grow("index")
  newer = follower.look(now)
  assert (newer.step, newer.snapshot.version, newer.snapshot.params_step) == (20, 2, 20)
  assert said[1:] == ["checkpoint 20 with index 2 is taken into use"]
  assert newer.answer(["Who?"]) == OpenQA.load(growing[0].path).answer(["Who?"])
  monkeypatch.setattr(OpenQA, "load", None)  # nothing has changed: nothing is loaded
  assert follower.look(newer) is None and len(said) == 2


def test_a_damaged_snapshot_is_left_out_with_a_line(growing, follow, capsys):
  (run_dir, grow), (follower, now, said) = growing, follow
  grow("index")
  path = next(
    p for p in pathlib.Path(run_dir.snapshot(2)).glob("*/embeddings/**/*") if p.is_file() and p.stat().st_size > 100
  )
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  grow("checkpoint")
  assert follower.look(now) is None and follower.look(now) is None
  (line,) = said
  assert line.startswith("what is new is left out: ") and "is damaged; delete " in line
  assert "snapshot 2 is left out: " in capsys.readouterr().err


def test_a_damaged_snapshot_before_which_a_whole_one_stands(growing, sample_store, capsys):
  """An index of the same parameters, published again, and damaged: the one before serves."""
  run_dir, _ = growing
  shutil.copytree(run_dir.snapshot(1), run_dir.snapshot(2))  # its seal is that of another place
  assert OpenQA.load(run_dir.path).snapshot.version == 1
  assert "snapshot 2 is left out: " in capsys.readouterr().err


def test_a_run_that_can_not_be_read_is_tried_again(growing, follow, monkeypatch):
  (_, grow), (follower, now, said) = growing, follow
  load = OpenQA.load

  def gone(*_, **__):
    raise FileNotFoundError("deleted meanwhile")

  grow("index")
  grow("checkpoint")
  monkeypatch.setattr(OpenQA, "load", gone)
  assert follower.look(now) is None and follower.look(now) is None
  assert said == ["the run can't be looked at, and is tried again: deleted meanwhile"]
  monkeypatch.setattr(OpenQA, "load", load)
  assert follower.look(now).step == 20


def test_a_step_that_was_chosen_stays(growing):
  run_dir, grow = growing
  said = []
  follower, now = RunFollower(run_dir.path, "10", said.append), OpenQA.load(run_dir.path, "10")
  grow("checkpoint")
  grow("index")
  assert follower.look(now) is None and said == []
