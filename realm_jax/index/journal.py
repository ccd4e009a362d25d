"""The trainer's journal, `adoptions/`: which snapshot it used from which step on, and which one it is loading."""

from __future__ import annotations

import json
from typing import NamedTuple

from realm_jax.index.run_dir import RunDir
from realm_jax.index.seal import sealed, unsealed

_CLAIM = "adoptions/CLAIM"


class Adoption(NamedTuple):
  """From `step` on, this snapshot was used. Nothing in it depends on who wrote the snapshot, or when."""

  step: int
  version: int
  params_digest: str
  embedding_digest: str


class Journal(NamedTuple):
  """The entries by step, and why the others can't be read."""

  entries: dict[int, Adoption]
  damaged: dict[int, str]


def read_journal(run_dir: RunDir) -> Journal:
  """All adoptions of a run by their step, and why the damaged ones can't be read."""
  entries, damaged = {}, {}
  for step in run_dir.adoption_steps():
    text = run_dir.files.read(run_dir.adoption(step))
    try:
      entries[step] = Adoption(**unsealed(json.loads(text or b""), _place(step)))
    except (ValueError, TypeError) as error:
      damaged[step] = str(error)
  return Journal(entries, damaged)


def record(run_dir: RunDir, adoption: Adoption) -> bool:
  """Adds an entry; False if the step has one, so that another trainer works in the same directory."""
  return run_dir.files.create(run_dir.adoption(adoption.step), _text(adoption))


def correct(run_dir: RunDir, adoption: Adoption) -> None:
  """Replaces an entry that is damaged, or whose snapshot is lost."""
  run_dir.files.replace(run_dir.adoption(adoption.step), _text(adoption))


def claim(run_dir: RunDir, version: int) -> None:
  """Says that the trainer is loading a version: the indexer spares it, whether or not it is adopted."""
  run_dir.files.replace(run_dir.claim, json.dumps(sealed({"version": version}, _CLAIM)))


def versions_in_use(run_dir: RunDir) -> set[int] | None:
  """Versions that are claimed, or that a trainer resuming from any kept checkpoint would adopt again.

  None where a damaged entry hides what is in use.
  """
  # The order is important. A version moves from the claim to the journal: read the other way round, it could be missed.
  text = run_dir.files.read(run_dir.claim)
  entries, damaged = read_journal(run_dir)
  oldest_checkpoint = min(run_dir.checkpoint_steps(), default=0)
  in_force = max((step for step in entries if step <= oldest_checkpoint), default=0)
  used = {entry.version for step, entry in entries.items() if step >= in_force}
  try:
    return None if damaged else used | ({unsealed(json.loads(text), _CLAIM)["version"]} if text is not None else set())
  except (ValueError, KeyError):  # the trainer's next claim writes it anew
    return None


def _text(adoption: Adoption) -> str:
  return json.dumps(sealed(adoption._asdict(), _place(adoption.step)))


def _place(step: int) -> str:
  return f"adoptions/{step}"
