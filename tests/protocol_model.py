"""The hand-over as a small model: every order of operations, pauses and crashes, searched exhaustively.

Two indexers, a trainer and what is on the disk. A transition is one operation on one file, so that any process can
be paused or die between any two. `search(guards)` visits every reachable state and returns the first in which a
property fails, with the way there; taking a guard away must make one fail, else it guards nothing.

What is modelled is written beside the code that it stands for; times and contents are left out: an embedding is the
name of the parameters that made it, and parameters are the list of snapshots that they were trained with.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any, NamedTuple

KEEP = 1

# What the real code has beside these is a second line of defence: the model holds without it (a trainer that takes no
# older version, nor parameters of a later step than its own; Orbax' own commit).
GUARDS = {
  "create COMMIT if absent": "two indexers commit one version",
  "COMMIT after the data": "a snapshot is visible before it is whole",
  "own directory for each writer": "two writers mix their data",
  "digests at load": "a snapshot is used while it is being deleted",
  "mark before deletion": "a version is begun with after it was decided to delete it",
  "mark looked at after the claim": "the same, seen from the trainer",
  "claim before loading": "what is being loaded is deleted",
  "claim read before the journal": "a version moves from the one to the other unseen",
  "journal before use": "a crash forgets what was used",
  "spare what a resume adopts": "a checkpoint needs a version that is gone",
  "journal names the content": "another snapshot of the same number is replayed",
  "only newer parameters": "an indexer that was late publishes older parameters as a newer version",
  "replay to the newest export": "an export no longer names what the trainer has",
  "journal entries created once": "two trainers go on in one directory",
  "DONE read before the exports": "the last parameters are never published",
  "rubbish only below the newest": "work in progress is deleted",
}


class Disk(NamedTuple):
  exports: tuple = ()  # exports[s]: the parameters of step s
  is_done: bool = False
  data: tuple = ()  # (version, directory, piece 0 or 1, content)
  commits: tuple = ()  # (version, directory, content)
  marks: frozenset = frozenset()  # versions that are about to be deleted
  claim: int = 0
  journal: tuple = ()  # (step, version, content)
  checkpoint: tuple = (0, ())  # step, parameters


class Trainer(NamedTuple):
  at: str = "start"
  step: int = 0
  params: tuple = ()
  in_force: tuple = (0, ())  # version, content
  candidate: tuple = ()  # version, content by its COMMIT, pieces read
  horizon: int = 0  # before this step nothing new is adopted
  is_late: bool = False  # used, and not in the journal yet


class Indexer(NamedTuple):
  at: str = "look"
  saw_done: bool = False
  export: tuple = ()  # step, parameters
  version: int = 0
  directory: str = ""
  doomed: int = 0  # the version that is being deleted
  used: frozenset = frozenset()


class State(NamedTuple):
  disk: Disk
  trainers: tuple[Trainer, ...]
  indexers: tuple[Indexer, ...]
  crashes: int
  accidents: int  # a piece of data rots, or a person deletes the newest version
  num_steps: int  # updates; parameters are exported before each, and at the end
  lost: frozenset = frozenset()  # versions that an accident has hit


GARBAGE = ("garbage",)


class Violation(Exception):
  pass


def search(
  guards: frozenset[str],
  *,
  num_steps: int = 2,
  num_indexers: int = 2,
  num_trainers: int = 1,
  crashes: int = 1,
  accidents: int = 0,
  limit: int = 10_000_000,
):
  """Breadth first: (number of states, None), or (states so far, (what is wrong, the way there))."""
  start = State(Disk(), (Trainer(),) * num_trainers, (Indexer(),) * num_indexers, crashes, accidents, num_steps)
  came_from: dict[State, tuple] = {start: ()}
  queue = collections.deque([start])
  while queue and len(came_from) < limit:
    state = queue.popleft()
    name = "the end"
    try:
      is_end = True
      for name, following in transitions(state, guards):
        is_end = False
        if following not in came_from:
          came_from[following] = (state, name)
          check(following)
          queue.append(following)
      if is_end:
        check_end(state)
    except Violation as violation:
      return len(came_from), (str(violation), [*trace(came_from, state), f"then, at or after {name!r}: {violation}"])
  return len(came_from), None


def trace(came_from: dict, state: State) -> list[str]:
  steps = []
  while came_from[state]:
    state, name = came_from[state]
    steps.append(name)
  return steps[::-1]


def transitions(state: State, guards: frozenset[str]) -> Iterator[tuple[str, State]]:
  for i, trainer in enumerate(state.trainers):
    for name, disk, changed in train(state, trainer, guards):
      yield f"trainer {i}: {name}", state._replace(disk=disk, trainers=put(state.trainers, i, changed))
  for i, indexer in enumerate(state.indexers):
    for name, disk, changed in index(state, i, indexer, guards):
      yield f"indexer {i}: {name}", state._replace(disk=disk, indexers=put(state.indexers, i, changed))
  if state.crashes:
    left = state._replace(crashes=state.crashes - 1)
    for i, trainer in enumerate(state.trainers):
      if trainer.at not in ("start", "end"):
        yield f"trainer {i} dies", left._replace(trainers=put(state.trainers, i, Trainer()))
    for i, indexer in enumerate(state.indexers):
      if indexer.at not in ("look", "end"):
        reborn = Indexer(directory=indexer.directory + "'")  # a new life writes below a new name
        yield f"indexer {i} dies", left._replace(indexers=put(state.indexers, i, reborn))
  if state.accidents:
    left, disk = state._replace(accidents=state.accidents - 1), state.disk
    for entry in disk.data:
      if entry[3] != GARBAGE:
        rotten = tuple(sorted({*(e for e in disk.data if e != entry), (*entry[:3], GARBAGE)}))
        yield (
          f"piece {entry[2]} of {entry[0]} rots",
          left._replace(disk=disk._replace(data=rotten), lost=state.lost | {entry[0]}),
        )
    if disk.commits:
      newest = max(version for version, *_ in disk.commits)
      gone = disk._replace(
        commits=tuple(e for e in disk.commits if e[0] != newest), data=tuple(e for e in disk.data if e[0] != newest)
      )
      yield f"a person deletes version {newest}", left._replace(disk=gone, lost=state.lost | {newest})


def put(processes: tuple, i: int, changed: Any) -> tuple:
  return processes[:i] + (changed,) + processes[i + 1 :]


# The trainer: training/loop.py, training/adoption.py


def train(state: State, t: Trainer, guards: frozenset[str]) -> Iterator[tuple[str, Disk, Trainer]]:
  disk = state.disk
  journal = {step: (version, content) for step, version, content in disk.journal}
  if t.at == "start":
    step, params = disk.checkpoint
    horizon = max([len(disk.exports) - 1, *(s + 1 for s in journal if s > step)])
    if "replay to the newest export" not in guards:
      horizon = 0
    yield f"resumes at {step}", disk, Trainer("export", step, params, horizon=horizon)
  elif t.at == "export":  # Exports.write_if_due, TowerWriter.write
    exports = disk.exports
    if t.step < len(exports):
      if exports[t.step] != t.params and not state.lost and len(state.trainers) == 1:
        raise Violation(f"the export of step {t.step} has other bits than the trainer that comes to it again")
    else:
      exports = (*exports, t.params)
    at = "done" if t.step == state.num_steps else "adopt" if not t.is_late else "journal"
    yield f"exports step {t.step}", disk._replace(exports=exports), t._replace(at=at)
  elif t.at == "adopt":
    yield from adopt(state, t, journal, guards)
  elif t.at == "update":
    params = (*t.params, t.in_force[1])
    yield f"update {t.step}", disk, t._replace(at="save", step=t.step + 1, params=params)
  elif t.at == "journal":
    entries = tuple(sorted({*disk.journal, (t.step - 1, *t.in_force)}))
    yield "journals afterwards", disk._replace(journal=entries), t._replace(at="adopt", is_late=False)
  elif t.at == "save":
    yield "does not save", disk, t._replace(at="export")
    yield f"saves {t.step}", disk._replace(checkpoint=(t.step, t.params)), t._replace(at="export")
  elif t.at == "done":
    yield "DONE", disk._replace(is_done=True), t._replace(at="end")


def adopt(state: State, t: Trainer, journal: dict, guards: frozenset[str]) -> Iterator[tuple[str, Disk, Trainer]]:
  """SnapshotFollower: look, _load_candidate, adopt. A thread loads: its operations fall between any two of the loop."""
  disk = state.disk
  commits = {version: (directory, content) for version, directory, content in disk.commits}
  entry = journal.get(t.step) or (
    not t.in_force[0] and journal.get(max((s for s in journal if s <= t.step), default=-1))
  )
  if entry and not t.candidate:  # _load_journalled; the journal is read at the start, not beside a load
    version, content = entry
    found = read(disk, version, commits)
    if version in state.lost and (found is None or (found != content and "journal names the content" in guards)):
      # It goes on with another one, and says that its bits are no longer the same.
      others = [v for v in commits if read(disk, v, commits) is not None]
      for v in others:
        yield f"{version} is lost, goes on with {v}", disk, t._replace(at="update", in_force=(v, commits[v][1]))
    elif found != content and len(state.trainers) > 1:
      yield "stops: another trainer works here", disk, t._replace(at="end")
    elif found != content:
      raise Violation(f"step {t.step} was made with version {version}, which is gone or another one now")
    else:
      yield f"replays version {version}", disk, t._replace(at="update", in_force=(version, found))
    return
  if t.in_force[0]:
    yield "adopts nothing", disk, t._replace(at="update")
  if t.in_force[0] and t.step < t.horizon:
    return
  if not t.candidate:
    for version, (_, content) in commits.items():
      is_older = t.in_force[0] and len(content) < len(t.in_force[1])
      if version <= t.in_force[0] or ("only newer parameters" in guards and is_older):
        continue
      if "mark looked at after the claim" not in guards and version in disk.marks:
        continue  # looked at before, and not again
      yield f"sees {version}", disk, t._replace(candidate=(version, content, -2))
    return
  version, content, pieces = t.candidate
  nothing = t._replace(candidate=())
  if pieces == -2:
    claim = version if "claim before loading" in guards else disk.claim
    yield f"claims {version}", disk._replace(claim=claim), t._replace(candidate=(version, content, -1))
  elif pieces == -1:  # _is_offered
    is_offered = version in commits and (version not in disk.marks or "mark looked at after the claim" not in guards)
    yield f"looks at {version} again", disk, t._replace(candidate=(version, content, 0)) if is_offered else nothing
  elif pieces < 2:  # load
    directory = commits.get(version, ("",))[0]
    piece = next((c for v, d, p, c in disk.data if (v, d, p) == (version, directory, pieces)), None)
    if piece != content and "digests at load" in guards:
      yield f"finds {version} damaged", disk, nothing
    else:
      changed = t._replace(candidate=(version, content if piece == content else GARBAGE, pieces + 1))
      yield f"reads piece {pieces} of {version}", disk, changed
  else:
    if content == GARBAGE:
      raise Violation(f"what was read of version {version} is not what its manifest says")
    if len(content) < len(t.in_force[1]):
      raise Violation(f"version {version} has older parameters than the one in force")
    swapped = t._replace(at="update", in_force=(version, content), candidate=())
    entry = next((e for e in disk.journal if e[0] == t.step), None)
    if "journal before use" not in guards:
      yield f"uses {version} at {t.step}", disk, swapped._replace(is_late=True)
    elif entry and "journal entries created once" in guards:
      yield "stops: another trainer works here", disk, t._replace(at="end")
    elif entry:
      raise Violation(f"two trainers take step {t.step} for theirs, and go on in one directory")
    else:
      entries = tuple(sorted({*disk.journal, (t.step, version, content)}))
      yield f"journals and uses {version} at {t.step}", disk._replace(journal=entries), swapped


def read(disk: Disk, version: int, commits: dict) -> tuple | None:
  """The content of a version, if all of it is there and as its manifest says."""
  if version not in commits:
    return None
  directory, content = commits[version]
  pieces = {p: c for v, d, p, c in disk.data if (v, d) == (version, directory)}
  return content if pieces == {0: content, 1: content} else None


# The indexer: index/refresh.py, index/snapshot.py, index/deletion.py


def index(state: State, me: int, x: Indexer, guards: frozenset[str]) -> Iterator[tuple[str, Disk, Indexer]]:
  disk = state.disk
  commits = {version: (directory, content) for version, directory, content in disk.commits}
  newest = max(commits, default=0)
  newest_params = len(commits[newest][1]) if newest else -1
  own = f"{me}{x.directory}" if "own directory for each writer" in guards else "data"
  if x.at == "look":  # follow
    yield "reads DONE", disk, x._replace(at="exports", saw_done=disk.is_done)
  elif x.at == "exports":
    is_done = x.saw_done
    if len(disk.exports) - 1 > newest_params:
      step = len(disk.exports) - 1
      yield f"embeds with step {step}", disk, x._replace(at="number", export=(step, disk.exports[step]))
    elif "DONE read before the exports" in guards:
      yield "has nothing to do", disk, x._replace(at="end" if is_done else "look")
    else:
      yield "has nothing to do", disk, x._replace(at="DONE late")
  elif x.at == "DONE late":
    yield "reads DONE", disk, x._replace(at="end" if disk.is_done else "look")
  elif x.at == "number":  # publish
    step, _ = x.export
    if newest_params >= step and "only newer parameters" in guards:
      yield "drops its work", disk, x._replace(at="look", export=())
    elif "COMMIT after the data" in guards:
      yield f"takes number {newest + 1}", disk, x._replace(at="piece 0", version=newest + 1)
    else:
      yield f"takes number {newest + 1}", disk, x._replace(at="commit", version=newest + 1)
  elif x.at in ("piece 0", "piece 1"):
    piece = int(x.at[-1])
    entry = (x.version, own, piece, x.export[1])
    data = tuple(sorted({*(e for e in disk.data if e[:3] != entry[:3]), entry}))
    after = "piece 1" if piece == 0 else "commit" if "COMMIT after the data" in guards else "choose"
    yield f"writes piece {piece} of {x.version}", disk._replace(data=data), x._replace(at=after)
  elif x.at == "commit":
    after = "choose" if "COMMIT after the data" in guards else "piece 0"
    if x.version in commits and "create COMMIT if absent" in guards:
      data = tuple(e for e in disk.data if e[:2] != (x.version, own))
      yield f"{x.version} is taken", disk._replace(data=data), x._replace(at="number")
    else:
      entry = (x.version, own, x.export[1])
      changed = tuple(sorted({*(e for e in disk.commits if e[0] != x.version), entry}))
      yield f"commits {x.version}", disk._replace(commits=changed), x._replace(at=after)
  elif x.at == "choose":  # delete_old: the oldest that is too many
    old = [v for v in sorted(commits)[:-KEEP] if v not in journalled(disk, guards) | {disk.claim}]
    after = x._replace(at="mark", doomed=old[0]) if old else x._replace(at="rubbish")
    yield f"chooses {old[:1]} for deletion", disk, after
  elif x.at == "mark":
    marks = disk.marks | {x.doomed} if "mark before deletion" in guards else disk.marks
    yield f"marks {x.doomed}", disk._replace(marks=marks), x._replace(at="read 1")
  elif x.at in ("read 1", "read 2"):  # versions_in_use, in two reads
    claim_first = "claim read before the journal" in guards
    part = "claim" if (x.at == "read 1") == claim_first else "journal"
    used = x.used | (frozenset({disk.claim}) if part == "claim" else journalled(disk, guards))
    after = "read 2" if x.at == "read 1" else "rubbish" if x.doomed in used else "uncommit"
    yield f"reads the {part}", disk, x._replace(at=after, used=used if after == "read 2" else frozenset())
  elif x.at == "uncommit":
    commits_left = tuple(e for e in disk.commits if e[0] != x.doomed)
    yield f"deletes COMMIT of {x.doomed}", disk._replace(commits=commits_left), x._replace(at="delete")
  elif x.at == "delete":
    data = tuple(e for e in disk.data if e[0] != x.doomed)
    changed = disk._replace(data=data, marks=disk.marks - {x.doomed})
    yield f"deletes {x.doomed}", changed, x._replace(at="rubbish", doomed=0)
  elif x.at == "rubbish":
    bound = newest if "rubbish only below the newest" in guards else newest + 1
    data = tuple(e for e in disk.data if e[0] > bound or commits.get(e[0], ("",))[0] == e[1])
    yield "clears away", disk._replace(data=data), x._replace(at="look", export=(), version=0, doomed=0)


def journalled(disk: Disk, guards: frozenset[str]) -> frozenset[int]:
  """Versions that a trainer would adopt again from the checkpoint on."""
  if "spare what a resume adopts" not in guards:
    return frozenset()
  in_force = max((step for step, *_ in disk.journal if step <= disk.checkpoint[0]), default=0)
  return frozenset(version for step, version, _ in disk.journal if step >= in_force)


# Properties


def check(state: State) -> None:
  """A run can be resumed at any time, and newer versions have no older parameters."""
  disk = state.disk
  commits = {version: (directory, content) for version, directory, content in disk.commits}
  params_steps = [len(content) for _, (_, content) in sorted(commits.items())]
  if params_steps != sorted(params_steps):
    raise Violation("a version has older parameters than the one before it")
  in_force = max((step for step, *_ in disk.journal if step <= disk.checkpoint[0]), default=0)
  for step, version, content in disk.journal:
    if step >= in_force and version not in state.lost and read(disk, version, commits) != content:
      raise Violation(
        f"a run that resumes at {disk.checkpoint[0]} needs version {version}, which is not there any more"
      )


def check_end(state: State) -> None:
  """Nobody can do anything more."""
  disk = state.disk
  whole = {read(disk, v, {v: (d, c)}) for v, d, c in disk.commits}
  if disk.is_done and not state.lost and disk.exports[-1] not in whole:
    raise Violation("the last parameters were never published")
