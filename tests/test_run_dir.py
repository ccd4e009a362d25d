"""The run directory: its paths, commits and waiting."""

import concurrent.futures
import json
import threading
import time

import pytest

from realm_jax.index.run_dir import RunDir, commit, wait_for, write_atomically


def test_paths_are_built_and_parsed(tmp_path):
  run_dir = RunDir(tmp_path / "run")
  built = {
    "config.json": run_dir.config,
    "checkpoints": run_dir.checkpoints,
    "retriever": run_dir.retriever,
    "index": run_dir.index,
    "index/00000012": run_dir.snapshot(12),
    "index/00000012/COMMIT": run_dir.snapshot_commit(12),
    "adoptions/00000300": run_dir.adoption(300),
    "metrics.jsonl": run_dir.metrics,
    "DONE": run_dir.done,
  }
  assert {name: str(path) for name, path in built.items()} == {name: str(tmp_path / "run" / name) for name in built}


def test_a_bucket_is_a_run_directory_too():
  assert str(RunDir("gs://bucket/run").snapshot_commit(3)) == "gs://bucket/run/index/00000003/COMMIT"


def test_numbers_are_listed_in_order_and_only_what_is_committed(tmp_path):
  run_dir = RunDir(tmp_path)
  assert (run_dir.snapshot_versions(), run_dir.adoption_steps(), run_dir.checkpoint_steps()) == ([], [], [])
  for version in (10, 9, 2, 123456789):
    run_dir.snapshot(version).mkdir(parents=True)
    if version != 9:
      assert commit(run_dir.snapshot_commit(version), "{}")
  (run_dir.index / "00000011.tmp").mkdir()
  for step in (200, 0, 1000):
    assert commit(run_dir.adoption(step), "{}")
  (run_dir.checkpoints / "50").mkdir(parents=True)
  (run_dir.checkpoints / "100.orbax-checkpoint-tmp").mkdir()
  assert run_dir.snapshot_versions() == [2, 10, 123456789]
  assert run_dir.adoption_steps() == [0, 200, 1000]
  assert run_dir.checkpoint_steps() == [50]


def test_commit_creates_once(tmp_path):
  path = RunDir(tmp_path).adoption(7)
  assert commit(path, "first") is True
  assert commit(path, "second") is False
  assert path.read_text() == "first"
  assert [p.name for p in path.parent.iterdir()] == ["00000007"]


@pytest.mark.parametrize("name", ["with space", "50%20off", "a#b?c"])
def test_commit_takes_any_directory_name(tmp_path, name):
  path = RunDir(tmp_path / name).adoption(1)
  assert commit(path, "x") is True
  assert path.read_text() == "x"


def test_commit_takes_a_relative_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert commit(RunDir("runs/mine").adoption(1), "x") is True
  assert (tmp_path / "runs/mine/adoptions/00000001").read_text() == "x"


def test_one_of_eight_racing_writers_commits(tmp_path):
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for race in range(20):
      path, barrier = RunDir(tmp_path).adoption(race), threading.Barrier(8)
      contents = [f"{i}" * 20_000 for i in range(8)]

      def write(content, path=path, barrier=barrier):
        barrier.wait()
        return commit(path, content)

      won = list(pool.map(write, contents))
      assert won.count(True) == 1 and won.count(False) == 7
      assert path.read_text() == contents[won.index(True)]


def test_wait_for_returns_when_it_holds():
  answers = iter([False, False, True])
  wait_for(lambda: next(answers), 5.0, "the third answer", poll=0.001)
  assert list(answers) == []


def test_wait_for_says_what_it_waited_for():
  started = time.monotonic()
  with pytest.raises(TimeoutError, match=r"^waited 0 s for a sign of life$"):
    wait_for(lambda: False, 0.05, "a sign of life", poll=0.01)
  assert 0.05 <= time.monotonic() - started < 1


def test_wait_for_asks_once_even_without_time():
  wait_for(lambda: True, 0.0, "nothing")


def test_write_atomically_replaces_and_leaves_nothing_beside(tmp_path):
  path = RunDir(tmp_path).metrics
  write_atomically(path, "old")
  write_atomically(path, "new\n")
  assert path.read_text() == "new\n"
  assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_readers_see_the_old_content_or_the_new(tmp_path):
  path = RunDir(tmp_path).metrics
  contents = {"a" * 50_000, "b" * 50_000}
  write_atomically(path, "a" * 50_000)
  stopped = threading.Event()

  def write():
    while not stopped.is_set():
      for content in contents:
        write_atomically(path, content)

  writer = threading.Thread(target=write)
  writer.start()
  try:
    assert {path.read_text() for _ in range(300)} <= contents
  finally:
    stopped.set()
    writer.join()


def test_config_round_trip_and_its_timeout(tmp_path):
  run_dir = RunDir(tmp_path / "run")
  with pytest.raises(
    TimeoutError, match=r"^waited 0 s for config\.json in .*/run: start realm train with this --workdir"
  ):
    run_dir.read_config()
  run_dir.write_config({"b": 1, "a": {"c": [1.5, None]}})
  assert run_dir.read_config() == {"a": {"c": [1.5, None]}, "b": 1}
  assert list(json.loads(run_dir.config.read_text())) == ["a", "b"]
