"""Which checkpoint, index and number of passages of a run answers are given with."""

import json
import shutil

import pytest
from tiny_runs import write_run

from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import SnapshotError
from realm_jax.serving.open_qa import OpenQA


@pytest.fixture(scope="module")
def run(sample_store, tmp_path_factory):
  """Checkpoints 10 and 20, each with a snapshot of its own passage tower."""
  return write_run(tmp_path_factory.mktemp("open_qa") / "run", sample_store)


def test_a_checkpoint_comes_with_its_index(run):
  for checkpoint, step in ((None, 20), ("20", 20), ("10", 10)):
    open_qa = OpenQA.load(run.path, checkpoint)
    assert (open_qa.step, open_qa.snapshot.params_step) == (step, step)


def test_the_best_checkpoint_is_that_of_best_json(run):
  with pytest.raises(
    FileNotFoundError, match=r"^no .*best.json; choose .* realm evaluate --every_checkpoint --workdir="
  ):
    OpenQA.load(run.path, "best")
  for content in ("{}", "[]", '{"step": null}', "{"):
    run.best.write_text(content)
    with pytest.raises(ValueError, match="best.json is damaged .*; run realm evaluate --every_checkpoint again"):
      OpenQA.load(run.path, "best")
  run.best.write_text(json.dumps({"step": 10}))
  assert OpenQA.load(run.path, "best").step == 10
  run.best.write_text(json.dumps({"step": 30}))  # as if checkpoint.keep had taken it since
  with pytest.raises(FileNotFoundError, match=r"^no checkpoint 30 in .* \(there are: \[10, 20\]\)"):
    OpenQA.load(run.path, "best")


def test_a_checkpoint_that_is_no_step(run):
  for name in ("newest", "-1", ""):
    with pytest.raises(ValueError, match=rf"^no checkpoint '{name}'; give a step, as 20000, or best$"):
      OpenQA.load(run.path, name)


def test_a_checkpoint_without_an_index_of_its_tower(run, tmp_path):
  run = RunDir(shutil.copytree(run.path, tmp_path / "run"))
  run.files.remove_tree(run.snapshot(1))
  with pytest.raises(
    SnapshotError, match=r"with the parameters of step 20, none with those of checkpoint 10; for the ne"
  ):
    OpenQA.load(run.path, "10")


@pytest.mark.parametrize(("field", "expected"), [(0, 5), (7, 7)])
def test_more_passages_may_be_read_than_in_training(run, field, expected):
  config = run.read_config()
  RunDir(run.path).write_config(config | {"num_inference_passages": field})
  open_qa = OpenQA.load(run.path)
  assert open_qa.config.num_passages == expected
