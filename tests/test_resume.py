"""A build that is stopped anywhere goes on where it was, and ends with the same bytes."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from realm_jax.data import files, passages, shards
from realm_jax.data.build import Runner, build_passages
from realm_jax.data.shards import Settings, build_shard, cut_shards, read_columns, read_summary
from realm_jax.data.sources import Source
from realm_jax.data.spans import NoTagger
from realm_jax.data.vocabulary import Vocabulary

NUM_ARTICLES = 24
SHARD_BYTES = 400  # several shards

SLOW_BUILD = """
import sys, time
from realm_jax.data.build import Runner, build_passages
from realm_jax.data.vocabulary import Vocabulary

class SlowTagger:
  name = "none"

  def tag(self, texts):
    time.sleep(0.3)
    return [[] for _ in texts]

if __name__ == "__main__":
  directory = sys.argv[1]
  build_passages(
    f"{directory}/in.jsonl", f"{directory}/out", vocabulary=Vocabulary.load(f"{directory}/vocab.txt", lowercase=True),
    passage_length=32, tagger=SlowTagger(), runner=Runner(num_workers=int(sys.argv[2])), shard_bytes=int(sys.argv[3]),
  )
"""


@pytest.fixture
def directory(tmp_path):
  """An input and a vocabulary."""
  text = "The cat was born in 18{n:02d}. The dog number {n} ran far away. Nobody knows why it ran in 19{n:02d}."
  lines = [json.dumps({"id": n, "title": f"Cat {n}", "text": text.format(n=n)}) for n in range(NUM_ARTICLES)]
  (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
  Vocabulary.train(lines, size=200, lowercase=True).save(tmp_path / "vocab.txt")
  (tmp_path / "build.py").write_text(SLOW_BUILD)
  return tmp_path


def build(directory, name="out", **options):
  vocabulary = Vocabulary.load(directory / "vocab.txt", lowercase=True)
  options = {"passage_length": 32, "tagger": NoTagger(), "shard_bytes": SHARD_BYTES} | options
  return build_passages(directory / "in.jsonl", directory / name, vocabulary=vocabulary, **options)


def contents(store) -> dict[str, bytes]:
  return {p.name: p.read_bytes() for p in store.iterdir()}


def finished_shards(directory, name="out") -> set[str]:
  return {p.name for p in directory.glob(f".{name}.writing/shards-*/[0-9]*.npz")}


def count_writes(monkeypatch) -> list[str]:
  written = []

  def write_whole(path, content):
    written.append(path.name)
    files.write_whole(path, content)

  monkeypatch.setattr(shards, "write_whole", write_whole)
  return written


def test_killed_by_force_and_started_again(directory, monkeypatch):
  build(directory, "undisturbed")
  arguments = [sys.executable, str(directory / "build.py"), str(directory), "2", str(SHARD_BYTES)]
  process = subprocess.Popen(arguments, env=os.environ | {"PYTHONPATH": os.getcwd()})
  deadline = time.monotonic() + 120
  while len(finished_shards(directory)) < 2 and time.monotonic() < deadline and process.poll() is None:
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  time.sleep(0.5)  # orphaned workers end with the shard that they have
  done = finished_shards(directory)
  assert 2 <= len(done) < 6 and not (directory / "out").exists()
  written = count_writes(monkeypatch)
  build(directory)
  assert written and not done & set(written)
  assert contents(directory / "out") == contents(directory / "undisturbed")
  assert not (directory / ".out.writing").exists()


def test_workers_and_shard_size_change_nothing(directory):
  build(directory, "one")
  build(directory, "two", runner=Runner(num_workers=2), shard_bytes=900)
  assert contents(directory / "one") == contents(directory / "two")


@pytest.mark.parametrize("failing_write", [1, 4])
def test_a_full_disk_while_shards_are_built(directory, monkeypatch, failing_write):
  build(directory, "undisturbed")
  written = count_writes(monkeypatch)

  def full(path, content):
    written.append(path.name)
    if len(written) == failing_write:
      path.with_name(f".{path.name}.half").write_bytes(content[:100])
      raise OSError(errno.ENOSPC, "No space left on device")
    files.write_whole(path, content)

  with monkeypatch.context() as patch:
    patch.setattr(shards, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
      build(directory)
  assert not (directory / "out").exists() and len(finished_shards(directory)) == failing_write - 1
  build(directory)
  assert contents(directory / "out") == contents(directory / "undisturbed")


@pytest.mark.parametrize("failing_write", [2, 40, "last"])
def test_a_full_disk_while_they_are_joined(directory, monkeypatch, failing_write):
  write, calls = passages._File.write, []

  def count(self, data):
    calls.append(len(data))
    write(self, data)

  with monkeypatch.context() as patch:
    patch.setattr(passages._File, "write", count)
    build(directory, "undisturbed")
  failing_write = len(calls) if failing_write == "last" else failing_write
  calls.clear()

  def full(self, data):
    calls.append(len(data))
    if len(calls) == failing_write:
      raise OSError(errno.ENOSPC, "No space left on device")
    write(self, data)

  with monkeypatch.context() as patch:
    patch.setattr(passages._File, "write", full)
    with pytest.raises(OSError, match="No space left"):
      build(directory)
  assert len(calls) == failing_write and not (directory / "out").exists()
  done, written = finished_shards(directory), count_writes(monkeypatch)
  build(directory)
  assert len(done) > 5 and written == []
  assert contents(directory / "out") == contents(directory / "undisturbed")


def test_another_input_or_setting_takes_nothing_over(directory, monkeypatch):
  def stop(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(passages._File, "write", stop)
    build(directory)
  done, written = finished_shards(directory), count_writes(monkeypatch)
  lines = (directory / "in.jsonl").read_text().splitlines()
  lines[7] = lines[7].replace("cat", "cow")
  (directory / "in.jsonl").write_text("\n".join(lines) + "\n")
  build(directory)
  assert len(written) == 1  # the shard of line 8; the others have the same records
  build(directory, "fresh")
  assert contents(directory / "out") == contents(directory / "fresh")
  written.clear()
  build(directory, "longer", passage_length=33)
  assert len(written) == len(done)


def test_a_damaged_shard_is_built_again(directory, monkeypatch):
  build(directory, "undisturbed")
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(passages._File, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    build(directory)
  (path,) = directory.glob(".out.writing/shards-*/00000-00002-*")
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0xFF
  path.write_bytes(data)
  with pytest.raises(OSError, match="00000-00002-.* was damaged .* and is removed; run the same command again"):
    build(directory)
  build(directory)
  assert contents(directory / "out") == contents(directory / "undisturbed")


def test_two_builds_of_one_output_at_once(directory):
  process = subprocess.Popen(
    [sys.executable, str(directory / "build.py"), str(directory), "1", "1"],
    env=os.environ | {"PYTHONPATH": os.getcwd()},
  )
  try:
    deadline = time.monotonic() + 60
    while not finished_shards(directory) and time.monotonic() < deadline:
      time.sleep(0.02)
    with pytest.raises(RuntimeError, match="another process builds in .*; wait for it, or choose another --output"):
      build(directory)
  finally:
    process.kill()
    process.wait()
  build(directory)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_a_worker_raises_is_raised(directory, num_workers):
  with pytest.raises(ValueError, match="passage_length 4 leaves no room"):
    build(directory, passage_length=4, runner=Runner(num_workers=num_workers))
  assert not (directory / ".out.writing").exists()


class Deadly:
  """Ends its process."""

  name = "deadly"

  def tag(self, texts):
    os._exit(9)


def test_a_worker_that_dies_is_named(directory):
  with pytest.raises(RuntimeError, match=r"a worker process ended with status 9 .*; run the same command again"):
    build(directory, tagger=Deadly(), runner=Runner(num_workers=2))


def test_a_shard_says_what_is_in_it(directory):
  lines = (directory / "in.jsonl").read_text().splitlines()
  (directory / "in.jsonl").write_text("\n".join([lines[0], "{", lines[1], '{"id": "x", "text": "\u0301"}', "{"]))
  settings = Settings(Vocabulary.load(directory / "vocab.txt", lowercase=True), 32, NoTagger())
  (shard,) = cut_shards(3, Source(str(directory / "in.jsonl"), "jsonl"), 10_000)
  name = build_shard(shard, settings, str(directory / "shards"))
  assert name == shard.name and name.startswith("00003-00000-")
  summary = read_summary(directory / "shards" / name)
  columns = read_columns(directory / "shards" / name)
  assert (summary.ids, summary.numbers) == (["0", "1", "x"], [1, 3, 4])
  assert summary.bad == {"no valid JSON": [2, [2, 5]]}
  assert summary.left_out == {"a text without a wordpiece": 1}
  assert summary.num_passages == len(columns["body_length"]) >= 2
  assert columns["token_count"].sum() == len(columns["token"])
