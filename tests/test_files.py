"""The operations of the hand-over: whole or not at all, and first come first served."""

import concurrent.futures
import threading

import pytest
from etils import epath

from realm_jax.index.files import Files
from realm_jax.index.run_dir import RunDir

FILES = Files()


def test_create_creates_once(tmp_path):
  path = RunDir(tmp_path).adoption(7)
  assert FILES.create(path, "first") is True
  assert FILES.create(path, "second") is False
  assert path.read_text() == "first"
  assert [p.name for p in path.parent.iterdir()] == ["00000007"]


@pytest.mark.parametrize("name", ["with space", "50%20off", "a#b?c"])
def test_create_takes_any_directory_name(tmp_path, name):
  path = RunDir(tmp_path / name).adoption(1)
  assert FILES.create(path, "x") is True
  assert path.read_text() == "x"


def test_create_takes_a_relative_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert FILES.create(RunDir("runs/mine").adoption(1), "x") is True
  assert (tmp_path / "runs/mine/adoptions/00000001").read_text() == "x"


def test_one_of_eight_racing_writers_creates(tmp_path):
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for race in range(20):
      path, barrier = RunDir(tmp_path).adoption(race), threading.Barrier(8)
      contents = [f"{i}" * 20_000 for i in range(8)]

      def write(content, path=path, barrier=barrier):
        barrier.wait()
        return FILES.create(path, content)

      won = list(pool.map(write, contents))
      assert won.count(True) == 1 and won.count(False) == 7
      assert path.read_text() == contents[won.index(True)]


def test_replace_replaces_and_leaves_nothing_beside(tmp_path):
  path = RunDir(tmp_path).metrics
  FILES.replace(path, "old")
  FILES.replace(path, "new\n")
  assert path.read_text() == "new\n"
  assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_readers_see_the_old_content_or_the_new(tmp_path):
  path = RunDir(tmp_path).metrics
  contents = {"a" * 50_000, "b" * 50_000}
  FILES.replace(path, "a" * 50_000)
  stopped = threading.Event()

  def write():
    while not stopped.is_set():
      for content in contents:
        FILES.replace(path, content)

  writer = threading.Thread(target=write)
  writer.start()
  try:
    assert {path.read_text() for _ in range(300)} <= contents
  finally:
    stopped.set()
    writer.join()


def test_read_names_and_remove(tmp_path):
  directory = epath.Path(tmp_path)
  assert FILES.read(directory / "absent") is None and FILES.read(directory / "no" / "where") is None
  assert FILES.names(directory / "nowhere") == []
  FILES.replace(directory / "b", "")
  FILES.replace(directory / "a", "text")
  (directory / "c" / "d").mkdir(parents=True)
  assert FILES.names(directory) == ["a", "b", "c"]
  assert (FILES.read(directory / "a"), FILES.read(directory / "b")) == (b"text", b"")
  for name in ("a", "c", "c", "absent"):
    FILES.remove_tree(directory / name)
  FILES.remove(directory / "b")
  FILES.remove(directory / "b")
  assert FILES.names(directory) == []


def test_two_may_delete_a_directory_at_once(tmp_path):
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for race in range(20):
      directory = epath.Path(tmp_path) / str(race)
      for name in ("a/b", "a/c", "d"):
        (directory / name).mkdir(parents=True)
        (directory / name / "file").write_text("")
      list(pool.map(FILES.remove_tree, [directory, directory]))
      assert not directory.exists()
