"""The real indexer and the real adoption, in memory, under a scheduler that pauses and kills them at any operation.

  python -m tests.protocol_simulation 17        repeats a seed, with what happened

Files are a dictionary; time is a number that passes while everybody sleeps; each process has a clock of its own, up to
an hour off. Parameters are digests of all that they were trained with, embeddings are digests of parameters. In some
worlds the trainer has index.sync; in some, snapshots and exports rot, or a trainer that starts again computes other
bits than the one before: then it must get to its end, with an index of its last parameters.
"""

from __future__ import annotations

import collections
import contextlib
import json
import pathlib
import random
import sys
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import xxhash

from realm_jax.index import refresh, run_dir, snapshot
from realm_jax.index.files import Files
from realm_jax.index.journal import read_journal
from realm_jax.index.refresh import Refresher, RefreshSettings, follow
from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import SnapshotError
from realm_jax.index.tower_export import DamagedExport, Export
from realm_jax.training import adoption
from realm_jax.training.adoption import AdoptionSettings, SnapshotFollower

NUM_STEPS, EXPORT_EVERY, NUM_PASSAGES = 12, 3, 8
TIMEOUT = 3600.0
ROTTEN = b"rotten"


class Killed(BaseException):
  """The process was killed at this operation."""


class Process:
  """A thread that runs only when the scheduler says so, from one operation to the next."""

  def __init__(self, world: World, name: str, main: Callable[[], None]):
    self.world, self.name, self.main = world, name, main
    self.wake_at = 0.0
    self.clock_error = world.draws.uniform(-3600, 3600)
    self.is_killed = self.has_ended = False
    self.error: BaseException | None = None
    self.turn = threading.Semaphore(0)
    self.thread = threading.Thread(target=self._run, daemon=True)

  def _run(self) -> None:
    self.turn.acquire()
    try:
      if not self.is_killed:
        self.main()
    except Killed:
      pass
    except BaseException as error:  # noqa: BLE001 it is looked at by the scheduler
      self.error = error
    self.has_ended = True
    self.world.back.release()

  def point(self, seconds: float = 0.0) -> None:
    """Gives up control: anything may happen before the next operation."""
    self.wake_at = self.world.now + seconds
    self.world.back.release()
    self.turn.acquire()
    if self.is_killed:
      raise Killed


class World:
  """A run directory, a clock and the processes that share them."""

  def __init__(self, seed: int, *, verbose: bool = False):
    self.draws = random.Random(seed)
    self.now = 0.0
    self.contents: dict[str, bytes] = {}
    self.back = threading.Semaphore(0)
    self.processes: dict[str, Process] = {}
    self.current: Process | None = None
    self.run_dir = RunDir("/run", files=MemoryFiles(self))
    self.log: list[str] = []
    self.verbose = verbose
    self.num_kills = self.num_pauses = self.num_operations = 0
    self.exported: dict[int, str] = {}  # what each step's export was when it was last made
    self.is_sync = self.draws.random() < 0.3
    self.has_rotten = False
    self.rots = self.draws.choice([0, 0, 0, 3])
    self.drifts = self.draws.random() < 0.2

  @property
  def is_faithful(self) -> bool:
    """Whether all lives of the trainer must make the same bits."""
    return not self.has_rotten and not self.drifts

  def say(self, text: str) -> None:
    line = f"{self.now:9.1f} {self.current.name if self.current else '-'}: {text}"
    self.log.append(line)
    if self.verbose:
      print(line)

  def run(self) -> None:
    """Until the trainer is done and an indexer has seen it; processes that ended otherwise are started again."""
    mains = {"trainer": self.train, "indexer": self.index}
    if self.draws.random() < 0.5:
      mains["second indexer"] = self.index
    kills = self.draws.choice([0, 1, 3, 10])
    for name, main in mains.items():
      self._start(name, main)
    while self.processes:
      self.num_operations += 1
      assert self.num_operations < 100_000, "no progress"
      awake = [p for p in self.processes.values() if p.wake_at <= self.now]
      if not awake:
        self.now = min(p.wake_at for p in self.processes.values())
        continue
      process = self.current = self.draws.choice(awake)
      chance = self.draws.random()
      if kills and chance < 0.01:
        kills -= 1
        self.num_kills += 1
        process.is_killed = True
        self.say("is killed")
      elif self.rots and chance > 0.99:
        self.rot()
      elif chance < 0.02:
        self.num_pauses += 1
        process.wake_at = self.now + self.draws.choice([1, 60, 5000, 20_000])
        continue
      process.turn.release()
      self.back.acquire()
      if process.has_ended:
        process.thread.join()
        del self.processes[process.name]
        if process.error is not None and not isinstance(process.error, TimeoutError):
          raise process.error
        if process.is_killed or process.error:
          self.check_resumable()
          self._start(process.name, process.main)
          self.processes[process.name].wake_at = self.now + self.draws.choice([0, 10, 4000])
    self.current = None
    self.check_end()

  def _start(self, name: str, main: Callable[[], None]) -> None:
    process = self.processes[name] = Process(self, name, main)
    process.thread.start()

  def rot(self) -> None:
    """A bit changes in something that is whole, and will be of use."""
    committed = [
      name for name in self.contents if "/piece" in name and f"{name.rsplit('/', 2)[0]}/COMMIT" in self.contents
    ]
    exports = [str(self.run_dir.retriever / str(step)) for step in self.exported]
    names = [name for name in committed + exports if self.contents.get(name, ROTTEN) != ROTTEN]
    if names and str(self.run_dir.done) not in self.contents:
      self.rots, self.has_rotten = self.rots - 1, True
      name = self.draws.choice(names)
      self.contents[name] = ROTTEN
      self.say(f"{name} rots")

  # The processes

  def index(self) -> None:
    settings = RefreshSettings(searcher="exact", keep=2 if self.is_sync else 1)
    store: Any = Store()
    refresher = Refresher(self.run_dir, store, settings, self.embed, log=self.say)
    follow(refresher, self.run_dir, None, once=False, timeout=TIMEOUT, in_order=self.is_sync, log=self.say)

  def embed(self, params, begin, end):
    self.current.point(self.draws.choice([1, 10, 1000]))
    return embedding(params)

  def train(self) -> None:
    """training/loop.py, as far as the hand-over goes."""
    files = self.run_dir.files
    steps = self.run_dir.checkpoint_steps()
    step, params, in_force = 0, "start", None
    arithmetic = self.draws.random() if self.drifts else None
    if steps:
      step, params, in_force = json.loads(files.read(self.run_dir.checkpoints / str(steps[-1])))
      in_force = adoption.Adoption(*in_force) if in_force else None
    self.export(step, params)
    settings = AdoptionSettings(EXPORT_EVERY, EXPORT_EVERY if self.is_sync else None, TIMEOUT)
    follower = SnapshotFollower(
        self.run_dir, Store(), settings, first_step=step, in_force=in_force,
        newest_export=max(self.run_dir.export_steps(), default=None), log=self.say,
        export_digest=lambda s: self.exported.get(s),
    )  # fmt: skip
    while step < NUM_STEPS:
      self.export(step, params)
      for _ in range(0 if self.is_sync else self.draws.choice([0, 1, 1, 2])):
        follower.look()  # the thread that loads, between two of the loop's operations
      used = follower.adopt(step)
      params = trained(params, step, used.manifest["embedding_digest"], arithmetic)
      step += 1
      self.current.point(self.draws.choice([0.1, 1, 30]))
      if self.draws.random() < 0.3 or step == NUM_STEPS:
        self.say(f"saves {step}")
        files.replace(self.run_dir.checkpoints / str(step), json.dumps([step, params, follower.adoption]))
        for old in self.run_dir.checkpoint_steps()[:-2]:
          files.remove(self.run_dir.checkpoints / str(old))
    self.export(step, params, is_last=True)
    files.replace(self.run_dir.done, "done")

  def export(self, step: int, params: str, *, is_last: bool = False) -> None:
    if step % EXPORT_EVERY and not is_last:
      return
    if self.is_faithful:
      assert self.exported.get(step, params) == params, f"step {step} was exported with other bits before"
    path, steps = self.run_dir.retriever / str(step), self.run_dir.export_steps()
    if step in steps:
      before = self.run_dir.files.read(path)
      if before == params.encode():
        return
      self.run_dir.files.remove(path)
      if before != ROTTEN:
        snapshot.refuse_since(self.run_dir, step)
    elif step < max(steps, default=0):
      return  # it was there, and has been deleted as an old one
    self.run_dir.files.replace(path, params)
    self.exported[step] = params
    for old in self.run_dir.export_steps()[:-3]:
      self.run_dir.files.remove(self.run_dir.retriever / str(old))

  # The properties

  def check_resumable(self) -> None:
    """What a trainer would adopt again is there, and is what it was."""
    if self.has_rotten:
      return
    process, self.current = self.current, None
    entries, damaged = read_journal(self.run_dir)
    assert not damaged
    oldest = min(self.run_dir.checkpoint_steps(), default=0)
    in_force = max((s for s in entries if s <= oldest), default=0)
    for step, entry in entries.items():
      if step >= in_force:
        found = snapshot.load(self.run_dir, entry.version, Store(), embedding_digest=entry.embedding_digest)
        assert found.manifest["params_digest"] == entry.params_digest
    self.current = process

  def check_no_rubbish(self) -> None:
    for version in self.run_dir.snapshot_numbers():
      names = set(self.run_dir.files.names(self.run_dir.snapshot(version))) - {"DELETING", "REFUSED"}
      assert names == {"COMMIT", snapshot.read_manifest(self.run_dir, version)["writer"]}, (version, names)

  def check_end(self) -> None:
    self.check_resumable()
    self.check_no_rubbish()
    versions = [v for v in self.run_dir.snapshot_versions() if not snapshot.is_refused(self.run_dir, v)]
    newest = snapshot.load(self.run_dir, versions[-1], Store())
    assert newest.params_step == NUM_STEPS
    assert newest.manifest["params_digest"] == self.exported[NUM_STEPS]
    if not self.is_faithful:
      return
    entries = read_journal(self.run_dir).entries
    if self.is_sync:
      assert sorted(entries) == [0, *range(2 * EXPORT_EVERY, NUM_STEPS, EXPORT_EVERY)]
    adopted = [entries[s].version for s in sorted(entries)]
    assert adopted == sorted(adopted)
    params_steps = [read["params_step"] for read in (snapshot.read_manifest(self.run_dir, v) for v in versions)]
    assert params_steps == sorted(params_steps)
    # Parameters follow from the journal alone.
    params = "start"
    digests = {}
    for step in range(NUM_STEPS):
      in_force = max(s for s in entries if s <= step)
      params = trained(params, step, entries[in_force].embedding_digest)
      digests[step + 1] = params
    assert self.exported == {0: "start"} | {s: digests[s] for s in self.exported if s}


def trained(params: str, step: int, embedding_digest: str, arithmetic: float | None = None) -> str:
  return digest([params, step, embedding_digest, arithmetic])


def digest(content: Any) -> str:
  return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())


class MemoryFiles(Files):
  def __init__(self, world: World):
    self._world = world

  def _point(self) -> None:
    if self._world.current is not None:  # not for what the checks read
      self._world.current.point(self._world.draws.choice([0, 0, 0.01, 1]))

  def read(self, path):
    self._point()
    return self._world.contents.get(str(path))

  def create(self, path, content):
    self._point()
    if str(path) in self._world.contents:
      return False
    self._world.contents[str(path)] = content.encode()
    return True

  def replace(self, path, content):
    self._point()
    self._world.contents[str(path)] = content.encode()

  def remove(self, path):
    self._point()
    self._world.contents.pop(str(path), None)

  def names(self, directory):
    self._point()
    prefix = f"{directory}/"
    return sorted({name[len(prefix) :].split("/")[0] for name in self._world.contents if name.startswith(prefix)})

  def remove_tree(self, path):
    while names := [n for n in self._world.contents if n == str(path) or n.startswith(f"{path}/")]:
      self._point()
      self._world.contents.pop(self._world.draws.choice(names), None)


class Store:
  """A corpus, as far as the hand-over looks at it."""

  content_digest, passage_length, path = "corpus", 8, pathlib.Path("/corpus")
  description = {"vocabulary_digest": "vocabulary"}

  def __len__(self):
    return NUM_PASSAGES

  def vocabulary(self):
    return None

  def id(self, i):
    return str(i)


def embedding(params: str) -> np.ndarray:
  seed = int(xxhash.xxh3_64_hexdigest(params.encode()), 16)
  return np.random.default_rng(seed).normal(size=(NUM_PASSAGES, 2)).astype(ml_dtypes.bfloat16)


class Time:
  """Each process's own clock."""

  def __init__(self, world: World):
    self._world = world

  def monotonic(self) -> float:
    current = self._world.current
    return self._world.now + (current.clock_error if current else 0.0)

  def sleep(self, seconds: float) -> None:
    self._world.current.point(seconds)


def in_memory(world: World) -> contextlib.ExitStack:
  """Puts the world in the place of disks, devices and clocks."""
  files = world.run_dir.files

  def write_data(directory, emb_ND, searcher):
    pieces = {f"piece{i}": np.ascontiguousarray(half).tobytes().hex() for i, half in enumerate(np.split(emb_ND, 2))}
    for name, piece in pieces.items():
      files.replace(directory / name, piece)
    return {name: digest(piece) for name, piece in pieces.items()}

  def read_data(directory, manifest):
    pieces = []
    for name, wanted in manifest["file_digest"].items():
      piece = files.read(directory / name)
      if piece is None or digest(piece.decode()) != wanted:
        raise SnapshotError(f"{directory / name} is missing or damaged")
      pieces.append(bytes.fromhex(piece.decode()))
    return np.frombuffer(b"".join(pieces), ml_dtypes.bfloat16).reshape(NUM_PASSAGES, 2), None

  def read_export(run_dir, step, abstract_params):
    params = files.read(run_dir.retriever / str(step))
    if params is None:
      raise FileNotFoundError(step)
    if params == ROTTEN:
      raise DamagedExport(f"step {step} is rotten")
    return Export(step, params.decode(), params.decode())

  stack = contextlib.ExitStack()
  for target, name, fake in [
    (snapshot, "write_data", write_data),
    (snapshot, "read_data", read_data),
    (refresh, "read_export", read_export),
    (refresh, "is_finite", lambda params: True),
    (refresh, "time", Time(world)),
    (run_dir, "time", Time(world)),
    (adoption, "threading", mock.Mock(Event=threading.Event, Thread=mock.Mock())),  # `look` is called by the trainer
  ]:
    stack.enter_context(mock.patch.object(target, name, fake))
  return stack


def simulate(seed: int, *, verbose: bool = False) -> collections.Counter:
  """One world; raises AssertionError, or what a process raised, with the seed."""
  world = World(seed, verbose=verbose)
  with in_memory(world):
    try:
      world.run()
    except BaseException as error:
      raise AssertionError(
        f"seed {seed}: {error!r}; repeat with: python -m tests.protocol_simulation {seed}"
      ) from error
    finally:
      for process in world.processes.values():
        process.is_killed = True
        process.turn.release()
  return collections.Counter(
    operations=world.num_operations, kills=world.num_kills, pauses=world.num_pauses,
    adoptions=sum("adopted," in line for line in world.log),
    snapshots=sum(": snapshot " in line and "passages with" in line for line in world.log),
  )  # fmt: skip


if __name__ == "__main__":
  print(simulate(int(sys.argv[1]), verbose=True))
