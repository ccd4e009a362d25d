"""The run directory: its paths, commits and waiting."""

import json
import re
import time

import pytest

from realm_jax.index.run_dir import MODELS, RunDir, wait_for
from realm_jax.weights.source import _OWN


def test_paths_are_built_and_parsed(tmp_path):
  run_dir = RunDir(tmp_path / "run")
  built = {
    "config.json": run_dir.config,
    "checkpoints": run_dir.checkpoints,
    "retriever": run_dir.retriever,
    "index": run_dir.index,
    "index/00000012": run_dir.snapshot(12),
    "index/00000012/COMMIT": run_dir.snapshot_commit(12),
    "index/00000012/DELETING": run_dir.snapshot_deleting(12),
    "adoptions/00000300": run_dir.adoption(300),
    "adoptions/CLAIM": run_dir.claim,
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
      assert run_dir.files.create(run_dir.snapshot_commit(version), "{}")
  (run_dir.index / "00000011.tmp").mkdir()
  for step in (200, 0, 1000):
    assert run_dir.files.create(run_dir.adoption(step), "{}")
  (run_dir.checkpoints / "50").mkdir(parents=True)
  (run_dir.checkpoints / "100.orbax-checkpoint-tmp").mkdir()
  assert run_dir.snapshot_versions() == [2, 10, 123456789]
  assert run_dir.snapshot_numbers() == [2, 9, 10, 123456789]
  assert run_dir.adoption_steps() == [0, 200, 1000]
  assert run_dir.checkpoint_steps() == [50]


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
  assert wait_for(lambda: "there", 0.0, "nothing") == "there"


def test_config_round_trip_and_its_timeout(tmp_path):
  run_dir = RunDir(tmp_path / "run")
  with pytest.raises(
    FileNotFoundError, match=r"^no run in .*/run: no config\.json is there; start realm train with this --workdir, or"
  ):
    run_dir.read_config()
  with pytest.raises(
    TimeoutError, match=r"^waited 0 s for config\.json in .*/run: start realm train with this --workdir"
  ):
    run_dir.read_config(timeout=0.01)
  run_dir.write_config({"b": 1, "a": {"c": [1.5, None]}})
  assert run_dir.read_config() == {"a": {"c": [1.5, None]}, "b": 1}
  assert list(json.loads(run_dir.config.read_text())) == ["a", "b", "seal"]
  content = run_dir.config.read_text()
  for damaged in (content.replace("1.5", "1.4"), content.replace("seal", "seam"), content[:-3], "[]", "{}"):
    run_dir.config.write_text(damaged)
    with pytest.raises(ValueError, match=r"/config\.json is damaged \(.*\); delete it, and start realm train with the"):
      run_dir.read_config()


def test_a_model_that_is_taken_for_a_run_is_told_from_it(tmp_path):
  """The commands that make a run of it are those of its card."""
  assert set(MODELS) == _OWN.keys()
  for model, path in _OWN.items():
    with pytest.raises(
      FileNotFoundError, match=f"^no run in .*/{model}: {model} is a model without passages; "
    ) as error:
      RunDir(tmp_path / model).read_config()
    commands = re.findall(r"  (realm .*?)(?:,?  )", str(error.value))
    assert [command.split()[1] for command in commands] == ["build_corpus", "convert", "refresh_index"]
    card = re.findall(r"^realm .*", (path / "README.md").read_text(), re.MULTILINE)
    assert card[:-1] == commands and card[-1].startswith("realm ask --workdir=runs/tiny ")


def test_what_is_set_aside_gets_a_name_of_its_own(tmp_path):
  run_dir = RunDir(tmp_path)
  for content in ("first", "second"):
    path = run_dir.checkpoints / "40"
    path.mkdir(parents=True)
    (path / "data").write_text(content)
    aside = run_dir.set_aside(path)
    assert (aside / "data").read_text() == content and not path.exists()
  assert run_dir.files.names(run_dir.damaged) == ["checkpoints-40-0", "checkpoints-40-1"]
