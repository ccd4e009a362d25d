"""A thousand worlds in which the real hand-over runs, and what it would do without its guards."""

import collections

import pytest
from protocol_simulation import MemoryFiles, simulate

from realm_jax.index import deletion, journal, snapshot

NUM_SEEDS = 1000


def test_a_thousand_worlds():
  total = collections.Counter()
  for seed in range(NUM_SEEDS):
    total += simulate(seed)
  print(dict(total))
  # That they were eventful: else nothing was tested.
  assert total["kills"] > NUM_SEEDS and total["pauses"] > NUM_SEEDS
  assert total["snapshots"] > NUM_SEEDS and total["adoptions"] > NUM_SEEDS


@pytest.mark.slow
def test_an_unclaimed_version_is_missed_by_the_deletion(monkeypatch):
  monkeypatch.setattr(journal, "claim", lambda *_: None)
  with pytest.raises(AssertionError, match="repeat with"):
    for seed in range(10 * NUM_SEEDS):
      simulate(seed)


def test_a_world_repeats_itself():
  assert simulate(8) == simulate(8)


def replace_instead(self, path, content):
  self.replace(path, content)
  return True


def without_the_journal(run_dir):
  return set()


def loses_the_last_entry(run_dir, adoption):
  return True


BREAKAGES = {
  "COMMIT is overwritten": (MemoryFiles, "create", replace_instead),
  "deletion spares nothing": (deletion, "versions_in_use", without_the_journal),
  "nothing is journalled": (journal, "record", loses_the_last_entry),
  "any parameters are published": (snapshot, "newest_published", lambda *_, **__: None),
  "nothing is refused": (snapshot, "refuse", lambda *_: None),
  "the journal is not read": (journal, "read_journal", lambda run_dir: journal.Journal({}, {})),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_guard_is_noticed(breakage, monkeypatch):
  target, name, broken = BREAKAGES[breakage]
  monkeypatch.setattr(target, name, broken)
  with pytest.raises(AssertionError, match="repeat with: python -m tests.protocol_simulation"):
    for seed in range(NUM_SEEDS):
      simulate(seed)
