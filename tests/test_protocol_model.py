"""The protocol holds in every order of events, and each of its guards is needed."""

import pytest
from protocol_model import GUARDS, search

ALL = frozenset(GUARDS)
SETTINGS = {
  "two indexers": {"num_steps": 2, "num_indexers": 2, "crashes": 0},
  "a crash": {"num_steps": 2, "num_indexers": 1, "crashes": 1},
  "a longer run": {"num_steps": 3, "num_indexers": 1, "crashes": 0},
  "an accident": {"num_steps": 2, "num_indexers": 1, "crashes": 0, "accidents": 1},
  "two indexers and a crash": {"num_steps": 1, "num_indexers": 2, "crashes": 1},
  "two trainers": {"num_steps": 1, "num_indexers": 1, "num_trainers": 2, "crashes": 0},
  "a still longer run": {"num_steps": 4, "num_indexers": 1, "crashes": 0},
  "an accident and a crash": {"num_steps": 2, "num_indexers": 1, "crashes": 1, "accidents": 1},
}
# Where each guard is seen to be needed.
NEEDED = {
  "create COMMIT if absent": "two indexers",
  "COMMIT after the data": "a crash",
  "own directory for each writer": "two indexers",
  "digests at load": "an accident",
  "mark before deletion": "a longer run",
  "mark looked at after the claim": "a longer run",
  "claim before loading": "a longer run",
  "claim read before the journal": "a still longer run",
  "journal before use": "a crash",
  "spare what a resume adopts": "a crash",
  "journal names the content": "an accident and a crash",
  "only newer parameters": "two indexers",
  "replay to the newest export": "a crash",
  "journal entries created once": "two trainers",
  "DONE read before the exports": "a crash",
  "rubbish only below the newest": "two indexers",
}


@pytest.mark.parametrize("setting", ["two indexers", "a crash", "a longer run", "an accident"])
def test_no_order_of_events_breaks_it(setting):
  num_states, found = search(ALL, **SETTINGS[setting])
  print(f"{setting}: {num_states} states")
  assert found is None, "\n".join(found[1])
  if setting == "two indexers":
    assert num_states >= 100_000


@pytest.mark.slow
@pytest.mark.parametrize(
  "settings",
  [
    {"num_steps": 2, "num_indexers": 2, "crashes": 1},
    {"num_steps": 3, "num_indexers": 1, "crashes": 2},
    {"num_steps": 3, "num_indexers": 1, "crashes": 1, "accidents": 1},
    {"num_steps": 4, "num_indexers": 1, "crashes": 1},
    SETTINGS["two trainers"],
  ],
)
def test_nor_with_more_of_everything(settings):
  num_states, found = search(ALL, **settings)
  print(f"{settings}: {num_states} states")
  assert found is None, "\n".join(found[1])


@pytest.mark.parametrize("guard", GUARDS)
def test_without_a_guard_it_breaks(guard):
  _, found = search(ALL - {guard}, **SETTINGS[NEEDED[guard]])
  assert found is not None, f"{guard} guards nothing: {GUARDS[guard]}"
  print(f"without {guard!r}:", *found[1], sep="\n  ")
