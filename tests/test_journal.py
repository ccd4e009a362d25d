"""The trainer's journal: what was adopted when, and what the indexer must spare."""

import json

import pytest

from realm_jax.index.journal import Adoption, claim, correct, read_journal, record, versions_in_use
from realm_jax.index.run_dir import RunDir
from realm_jax.index.seal import sealed


def adoption(step, version):
  return Adoption(step, version, f"params{version}", f"embedding{version}")


def make_history(run_dir, *, adopted, checkpoints):
  for step, version in adopted.items():
    assert record(run_dir, adoption(step, version))
  for step in checkpoints:
    (run_dir.checkpoints / str(step)).mkdir(parents=True)


def test_a_step_is_recorded_once(tmp_path):
  run_dir = RunDir(tmp_path)
  assert read_journal(run_dir) == ({}, {})
  assert record(run_dir, adoption(20, 3)) is True and record(run_dir, adoption(20, 4)) is False
  assert read_journal(run_dir).entries == {20: adoption(20, 3)}
  correct(run_dir, adoption(20, 2))
  assert read_journal(run_dir).entries == {20: adoption(20, 2)}
  text = json.loads(run_dir.adoption(20).read_text())
  expected = {"step": 20, "version": 2, "params_digest": "params2", "embedding_digest": "embedding2"}
  assert text == sealed(expected, "adoptions/20")


@pytest.mark.parametrize(
  ("adopted", "checkpoints", "used"),
  [
    ({}, [], set()),
    ({0: 1, 20: 3}, [], {1, 3}),  # it would start again from step 0
    ({0: 1, 20: 3, 40: 5}, [30, 50], {3, 5}),  # 3 is in force at checkpoint 30
    ({0: 1, 20: 3, 40: 5}, [40], {5}),  # adopted at the step of the checkpoint
    ({0: 1, 20: 3, 40: 5}, [39], {3, 5}),
    ({5: 2}, [3], {2}),
  ],
)
def test_versions_in_use_are_those_that_a_resume_adopts(tmp_path, adopted, checkpoints, used):
  run_dir = RunDir(tmp_path)
  make_history(run_dir, adopted=adopted, checkpoints=checkpoints)
  assert versions_in_use(run_dir) == used
  claim(run_dir, 7)
  assert versions_in_use(run_dir) == used | {7}
  claim(run_dir, 8)
  assert versions_in_use(run_dir) == used | {8}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps(adoption(20, 3)._asdict() | {"seal": "0" * 32})])
def test_a_damaged_entry_is_told_and_hides_what_is_in_use(tmp_path, text):
  run_dir = RunDir(tmp_path)
  make_history(run_dir, adopted={0: 1, 20: 3}, checkpoints=[])
  run_dir.adoption(20).write_text(text)
  entries, damaged = read_journal(run_dir)
  assert entries == {0: adoption(0, 1)} and list(damaged) == [20] and damaged[20]
  assert versions_in_use(run_dir) is None


def test_a_damaged_claim_hides_what_is_in_use(tmp_path):
  run_dir = RunDir(tmp_path)
  claim(run_dir, 3)
  run_dir.claim.write_text(run_dir.claim.read_text().replace("3", "4", 1))
  assert versions_in_use(run_dir) is None
  claim(run_dir, 4)
  assert versions_in_use(run_dir) == {4}
