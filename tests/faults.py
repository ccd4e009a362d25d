"""Kills processes and damages files, and checks that no run is lost and nothing wrong is used.

  python -m tests.faults kill --victim=trainer --number=200 --seed=1     or indexer, both
  python -m tests.faults corrupt --flips=1000 --cuts=200 --swaps=200 --seed=1

A failure prints the command that repeats it. Everything is written below a temporary directory. Full and read-only
disks: tests/test_faults.py.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # as pytest has it

import jax
import numpy as np
import orbax.checkpoint as ocp
import processes
import tqdm

from realm_jax.config import make_tower, stored_config
from realm_jax.data.passages import PassageStore
from realm_jax.index import snapshot as snapshots
from realm_jax.index.digest import tree_digest
from realm_jax.index.params import restore_params
from realm_jax.index.refresh import abstract_tower_params
from realm_jax.index.run_dir import RunDir
from realm_jax.index.tower_export import read_export

EXPORT_EVERY = 4
FLAGS = [
    "--config.init=", f"--config.index.export_every={EXPORT_EVERY}", "--config.index.sync=True",
    "--config.num_passages=3", "--config.checkpoint.every=10", "--config.checkpoint.keep=2", "--config.index.keep=2",
    "--config.index.timeout=3600.0",
]  # fmt: skip


class Outcome(NamedTuple):
  """All that must be the same, bit for bit, whatever happened on the way."""

  state: str  # parameters, optimizer and step
  journal: dict[str, bytes]
  losses: list[tuple[int, float]]
  rubbish: list[str]


def outcome(run: pathlib.Path, num_steps: int) -> Outcome:
  with ocp.PyTreeCheckpointer() as checkpointer:
    state = checkpointer.restore(run / "checkpoints" / str(num_steps) / "state")
  journal = {p.name: p.read_bytes() for p in sorted((run / "adoptions").iterdir()) if p.name.isdigit()}
  lines = [(line["step"], line["loss"]) for line in processes.lines_of(run)]
  return Outcome(tree_digest(jax.tree.map(np.asarray, state)), journal, lines, rubbish(run))


def rubbish(run: pathlib.Path) -> list[str]:
  """What nobody needs and nobody would delete."""
  found = [p for p in run.rglob("*") if "tmp" in p.name or p.name.startswith(".") or p.name.endswith("__lock")]
  for version in (run / "index").iterdir():
    commit = version / "COMMIT"
    writers = {p.name for p in version.iterdir() if p.is_dir()}
    if not commit.exists() or writers != {json.loads(commit.read_text())["writer"]}:
      found.append(version)
  return [str(p.relative_to(run)) for p in found]


class Job:
  """A process that is started again when it is killed."""

  def __init__(self, start: Callable[[], subprocess.Popen]):
    self._start = start
    self.process = start()

  def kill(self) -> None:
    self.process.send_signal(signal.SIGKILL)
    self.process.communicate()

  def restart(self) -> None:
    self.__init__(self._start)


def jobs(corpus: pathlib.Path, run: pathlib.Path, num_steps: int) -> dict[str, Job]:
  flags = [*FLAGS, f"--config.num_steps={num_steps}"]
  return {
    "trainer": Job(lambda: processes.train("pretrain", corpus, run, *flags, wait=False)),
    "indexer": Job(lambda: processes.realm("refresh_index", f"--workdir={run}", "--quiet", wait=False)),
  }


def complete(corpus, run, num_steps, *, victims=(), lifetime=None, budget=0, seed=0, report=lambda: None) -> int:
  """Runs trainer and indexer to the end, killing victims after random lives; returns the number of kills."""
  draws = random.Random(seed)
  alive = jobs(corpus, run, num_steps)
  everyone = list(alive.values())
  deaths = {name: time.monotonic() + draws.expovariate(1 / lifetime[name]) for name in victims}
  num_kills = 0
  deadline = time.monotonic() + 3600
  try:
    while alive:
      if time.monotonic() > deadline:
        raise RuntimeError(f"no progress in an hour; the run is in {run}")
      for name, job in list(alive.items()):
        if (status := job.process.poll()) is not None:
          text = job.process.communicate()[0]
          if status != 0:
            raise RuntimeError(f"{name} ended with status {status}; the run is in {run}\n{text}")
          del alive[name]
        elif name in deaths and num_kills < budget and time.monotonic() >= deaths[name]:
          job.kill()
          job.restart()
          deaths[name] = time.monotonic() + draws.expovariate(1 / lifetime[name])
          num_kills += 1
          report()
      time.sleep(0.02)
  finally:
    for job in everyone:
      if job.process.poll() is None:
        job.kill()
  return num_kills


def measure_start(corpus: pathlib.Path, run: pathlib.Path, num_steps: int) -> dict[str, float]:
  """Seconds from the start of trainer and indexer to their first save."""
  started = time.monotonic()
  running = jobs(corpus, run, num_steps)
  seconds: dict[str, float] = {}
  try:
    while len(seconds) < 2:
      if "indexer" not in seconds and RunDir(run).snapshot_versions():
        seconds["indexer"] = time.monotonic() - started
      if "trainer" not in seconds and RunDir(run).checkpoint_steps():
        seconds["trainer"] = time.monotonic() - started
      time.sleep(0.02)
  finally:
    for job in running.values():
      job.kill()
  return seconds


def kill(victim: str, number: int, seed: int, *, num_steps: int = 100, life: float = 1.5, directory=None) -> dict:
  """Runs, each compared with a calm one, until so many kills are made; returns what was counted."""
  root = pathlib.Path(directory or tempfile.mkdtemp(prefix="realm-faults-"))
  corpus = root / "corpus"
  if not corpus.exists():
    processes.build_corpus(root)
  calm = root / "calm"
  if not calm.exists():
    complete(corpus, calm, num_steps)
  wanted = outcome(calm, num_steps)
  assert [step for step, _ in wanted.losses] == list(range(1, num_steps + 1)) and not wanted.rubbish, wanted
  shutil.rmtree(root / "start", ignore_errors=True)
  lifetime = {name: life * s for name, s in measure_start(corpus, root / "start", num_steps).items()}
  victims = ("trainer", "indexer") if victim == "both" else (victim,)
  num_kills = num_runs = 0
  with tqdm.tqdm(total=number, desc=f"kills ({victim})", mininterval=1.0, disable=number < 20) as bar:
    while num_kills < number:
      run = root / f"{victim}-{seed}-{num_runs}"
      with repeatable(f"kill --victim={victim} --number={number} --seed={seed}"):
        num_kills += complete(
            corpus, run, num_steps, victims=victims, lifetime=lifetime, budget=number - num_kills,
            seed=f"{seed} {num_runs}", report=bar.update,
        )  # fmt: skip
        found = outcome(run, num_steps)
        for name, value in found._asdict().items():
          if value != getattr(wanted, name):
            raise RuntimeError(f"{name} differs from the calm run's; the run is in {run}:\n{value}")
      shutil.rmtree(run)
      num_runs += 1
  lives = {name: round(lifetime[name], 1) for name in victims}
  return {"victim": victim, "kills": num_kills, "runs": num_runs, "mean_life_s": lives, "seed": seed}


@contextlib.contextmanager
def repeatable(arguments: str):
  try:
    yield
  except BaseException:
    print(f"repeat with:  python -m tests.faults {arguments}", file=sys.stderr)
    raise


# Damage. Each area of a run, and the corpus, has a reader that falls back to the version before.


class Readers:
  """What reads each area; the result names what was read, and must be the known content of that name."""

  def __init__(self, run: pathlib.Path, corpus: pathlib.Path):
    self.config = stored_config(RunDir(run).read_config())
    self.store = PassageStore(corpus)
    self.tower = make_tower(self.config.model, self.store.description["vocabulary_size"])
    self.abstract_tower = abstract_tower_params(self.tower, self.store.passage_length)
    self.abstract_state = abstract_state(self.config, self.store)

  def checkpoints(self, root: pathlib.Path) -> tuple[str, str]:
    from realm_jax.training.checkpoint import Checkpoints  # noqa: PLC0415 the parent doesn't need it

    checkpoints = Checkpoints(RunDir(root), keep=2, log=lambda line: None)
    try:
      state = checkpoints.restore(self.abstract_state).state
    finally:
      checkpoints.close()
    return f"step {int(state.step)}", tree_digest(state)

  def parameters(self, root: pathlib.Path) -> tuple[str, str]:
    with contextlib.redirect_stderr(open(os.devnull, "w")):  # noqa: SIM115
      step, params = restore_params(RunDir(root))
    return f"step {step}", tree_digest(params)

  def retriever(self, root: pathlib.Path) -> tuple[str, str]:
    run_dir = RunDir(root)
    for step in reversed(run_dir.export_steps()):
      with contextlib.suppress(ValueError, FileNotFoundError):
        return f"step {step}", read_export(run_dir, step, self.abstract_tower).digest
    return "nothing", ""

  def index(self, root: pathlib.Path) -> tuple[str, str]:
    run_dir = RunDir(root)
    for version in reversed(run_dir.snapshot_versions()):
      with contextlib.suppress(snapshots.SnapshotError):
        snapshot = snapshots.load(run_dir, version, self.store)
        emb = np.ascontiguousarray(snapshot.passage_emb_ND)
        return f"version {version} of step {snapshot.params_step}", tree_digest(emb)
    return "nothing", ""

  def corpus(self, root: pathlib.Path) -> tuple[str, str]:
    store = PassageStore(root / "corpus")
    store.verify()
    content = {p.name: np.frombuffer(p.read_bytes(), np.uint8) for p in sorted((root / "corpus").iterdir())}
    content["corpus.json"] = np.frombuffer(json.dumps(store.description, sort_keys=True).encode(), np.uint8)
    return "corpus", tree_digest(content)


def abstract_state(config, store):
  from realm_jax.training.optimizer import configured_optimizer  # noqa: PLC0415
  from realm_jax.training.stages import make_stage  # noqa: PLC0415
  from realm_jax.training.start import abstract_params  # noqa: PLC0415
  from realm_jax.training.step import init_state  # noqa: PLC0415

  vocabulary = store.vocabulary()
  optimizer = configured_optimizer(config, make_stage(config, store, vocabulary).frozen)
  state = jax.eval_shape(lambda p: init_state(p, optimizer), abstract_params(config, len(vocabulary)))
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


AREAS = {"checkpoints": "checkpoints", "parameters": "checkpoints", "retriever": "retriever", "index": "index",
         "corpus": "corpus"}  # fmt: skip


def newest_files(root: pathlib.Path, area: str) -> list[pathlib.Path]:
  """The files of what is read first; in the corpus there is one thing only."""
  directory = root / AREAS[area]
  if area != "corpus":
    directory = max((p for p in directory.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
  return sorted(p for p in directory.rglob("*") if p.is_file() and p.stat().st_size)


def misplace(directory: pathlib.Path, draws: random.Random) -> str:
  """The newest step or version under another number, or the one before under its number."""
  *_, before, newest = sorted((p for p in directory.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
  if draws.random() < 0.5:
    later = newest.with_name(f"{int(newest.name) + 7:0{len(newest.name)}d}")
    newest.rename(later)
    return f"{newest.name} renamed to {later.name}"
  shutil.rmtree(newest)
  shutil.copytree(before, newest)
  return f"{newest.name} replaced by {before.name}"


def damage(kind: str, files: list[pathlib.Path], draws: random.Random) -> str:
  """Does one kind of damage to one of the files; returns what was done."""
  # By size, for one in two: most bits are in the arrays, most structure in the small files.
  weights = [p.stat().st_size for p in files] if draws.random() < 0.5 else None
  path = draws.choices(files, weights)[0]
  content = bytearray(path.read_bytes())
  if kind == "flips":
    position, bit = draws.randrange(len(content)), draws.randrange(8)
    content[position] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {position} of {path.name}"
  if kind == "cuts":
    length = draws.randrange(len(content))
    path.write_bytes(content[:length])
    return f"{path.name} cut to {length} of {len(content)} bytes"
  other = draws.choice([p for p in files if p != path])
  how = draws.choice(["swapped", "renamed", "missing"])
  if how == "swapped":
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)
  elif how == "renamed":
    path.rename(path.with_name(path.name + ".old"))
  else:
    path.unlink()
  return f"{path.name} {how} ({other.name})"


def trial(readers: Readers, known: dict, whole: pathlib.Path, scratch: pathlib.Path, kind: str, seed: str):
  """One damage: ("detected" | "harmless" | "SILENT", area, what)."""
  draws = random.Random(seed)
  area = draws.choice(list(AREAS))
  shutil.rmtree(scratch, ignore_errors=True)
  shutil.copytree(whole / AREAS[area], scratch / AREAS[area])
  if kind == "swaps" and area != "corpus" and draws.random() < 0.3:
    what = misplace(scratch / AREAS[area], draws)
  else:
    what = damage(kind, newest_files(scratch, area), draws)
  try:
    name, digest = getattr(readers, area)(scratch)
  except Exception as error:  # noqa: BLE001 a refusal: for the corpus, which has no version before
    return ("detected" if area == "corpus" else "SILENT"), area, f"{what}: {error!r}"
  if known[area].get(name) != digest:
    return "SILENT", area, f"{what}: read {name} with {digest}"
  return ("harmless" if name == next(iter(known[area])) else "detected"), area, what


def known_contents(readers: Readers, whole: pathlib.Path, scratch: pathlib.Path) -> dict[str, dict[str, str]]:
  """What each area holds, newest first: read whole, then without the newest, and so on."""
  known: dict[str, dict[str, str]] = {}
  for area, directory in AREAS.items():
    known[area] = {}
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(whole / directory, scratch / directory)
    while True:
      try:
        name, digest = getattr(readers, area)(scratch)
      except (ValueError, FileNotFoundError):
        break
      if name == "nothing" or area == "corpus" and known[area]:
        break
      known[area][name] = digest
      if area == "corpus":
        break
      newest = max((p for p in (scratch / directory).iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
      shutil.rmtree(newest)
      if not any(p.name.isdigit() for p in (scratch / directory).iterdir()):
        break
    assert area == "corpus" or len(known[area]) >= 2, (area, known[area])
  return known


def work(connection, whole: str, corpus: str) -> None:
  """A process of its own: damage may crash native code, or make it ask for all memory."""
  readers = Readers(pathlib.Path(whole), pathlib.Path(corpus))
  with tempfile.TemporaryDirectory() as scratch:
    known = known_contents(readers, pathlib.Path(whole), pathlib.Path(scratch) / "x")
    connection.send("ready")
    while True:
      kind, seed = connection.recv()
      connection.send(trial(readers, known, pathlib.Path(whole), pathlib.Path(scratch) / "x", kind, seed))


class Worker:
  def __init__(self, whole: pathlib.Path, corpus: pathlib.Path):
    context = multiprocessing.get_context("spawn")
    self.connection, other = context.Pipe()
    self.process = context.Process(target=work, args=(other, str(whole), str(corpus)), daemon=True)
    self.process.start()
    other.close()
    assert self.receive(120) == "ready"

  def receive(self, timeout: float) -> Any:
    """None if it died or hangs."""
    try:
      return self.connection.recv() if self.connection.poll(timeout) else None
    except EOFError:
      return None


def corrupt(counts: dict[str, int], seed: int, *, directory=None) -> dict:
  """Damages a finished run so many times in each way; raises if one of them goes unnoticed."""
  root = pathlib.Path(directory or tempfile.mkdtemp(prefix="realm-faults-"))
  whole = root / "calm"
  if not whole.exists():
    complete(processes.build_corpus(root), whole, 13)
  if not (whole / "corpus").exists():
    shutil.copytree(root / "corpus", whole / "corpus")
  worker = Worker(whole, root / "corpus")
  result: collections.Counter = collections.Counter()
  trials = [(kind, f"{seed} {kind} {i}") for kind, number in counts.items() for i in range(number)]
  for kind, trial_seed in tqdm.tqdm(trials, desc="damage", mininterval=1.0, disable=len(trials) < 200):
    worker.connection.send((kind, trial_seed))
    answer = worker.receive(60)
    if answer is None:
      worker.process.kill()
      worker = Worker(whole, root / "corpus")
      answer = ("SILENT", "?", "the reader died, or hung for a minute")
    verdict, area, what = answer
    result[f"{kind} {area} {verdict}"] += 1
    if verdict == "SILENT":
      print(f"{kind}, seed {trial_seed!r}, {area}: {what}", file=sys.stderr)
  worker.process.kill()
  silent = sum(n for name, n in result.items() if name.endswith("SILENT"))
  if silent:
    arguments = " ".join(f"--{kind}={n}" for kind, n in counts.items())
    raise RuntimeError(f"{silent} of {len(trials)} went wrong; repeat: python -m tests.faults corrupt {arguments} "
                       f"--seed={seed}")  # fmt: skip
  return dict(sorted(result.items()))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  verbs = parser.add_subparsers(dest="verb", required=True)
  verb = verbs.add_parser("kill")
  verb.add_argument("--victim", choices=["trainer", "indexer", "both"], required=True)
  verb.add_argument("--number", type=int, default=200)
  verb.add_argument("--seed", type=int, default=1)
  verb = verbs.add_parser("corrupt")
  for kind, number in {"flips": 1000, "cuts": 200, "swaps": 200}.items():
    verb.add_argument(f"--{kind}", type=int, default=number)
  verb.add_argument("--seed", type=int, default=1)
  arguments = parser.parse_args()
  if arguments.verb == "kill":
    print(json.dumps(kill(arguments.victim, arguments.number, arguments.seed)))
  else:
    counts = {kind: getattr(arguments, kind) for kind in ("flips", "cuts", "swaps")}
    print(json.dumps(corrupt(counts, arguments.seed), indent=1))


if __name__ == "__main__":
  main()
