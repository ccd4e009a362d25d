"""The passage tower's way from the trainer to the indexer."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.index.digest import tree_digest
from realm_jax.index.run_dir import RunDir
from realm_jax.index.tower_export import DamagedExport, TowerWriter, read_export


def make_params(step):
  rng = np.random.default_rng(step)
  return {"encoder": {"kernel": rng.normal(size=(64, 48)).astype(np.float32)}, "bias": np.full(3, step, np.float32)}


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_params(0))


def write(run_dir, *steps):
  writer = TowerWriter(run_dir)
  for step in steps:
    writer.write(step, jax.tree.map(jnp.asarray, make_params(step)))
  writer.close()


def test_round_trip(tmp_path):
  run_dir = RunDir(tmp_path)
  write(run_dir, 0, 20)
  assert run_dir.export_steps() == [0, 20]
  for step in (0, 20):
    export = read_export(run_dir, step, ABSTRACT)
    assert export.step == step
    assert export.digest == tree_digest(make_params(step)) == tree_digest(export.params)
    np.testing.assert_array_equal(export.params["encoder"]["kernel"], make_params(step)["encoder"]["kernel"])


def test_nothing_is_there_before_the_trainer(tmp_path):
  assert RunDir(tmp_path / "absent").export_steps() == []


def test_a_reader_sees_what_comes_later(tmp_path):
  run_dir = RunDir(tmp_path)
  write(run_dir, 0)
  assert run_dir.export_steps() == [0]
  write(run_dir, 20)
  assert run_dir.export_steps() == [0, 20]
  assert read_export(run_dir, 20, ABSTRACT).params["bias"][0] == 20


def test_the_newest_three_are_kept(tmp_path):
  write(RunDir(tmp_path), 0, 10, 20, 30, 40)
  assert RunDir(tmp_path).export_steps() == [20, 30, 40]


def test_a_replayed_step_is_no_error_and_changes_nothing(tmp_path):
  run_dir = RunDir(tmp_path)
  write(run_dir, 0, 20, 40)
  written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
  write(run_dir, 0, 10, 20, 40)  # 10: a checkpoint between two exports
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == written
  write(run_dir, 60)
  assert run_dir.export_steps() == [20, 40, 60]


def test_a_manifest_of_other_arrays_is_refused(tmp_path):
  run_dir = RunDir(tmp_path)
  write(run_dir, 20, 40)
  for step in (20, 40):
    (run_dir.retriever / str(step) / "params").rename(tmp_path / str(step))
  for step, other in [(20, 40), (40, 20)]:
    (tmp_path / str(other)).rename(run_dir.retriever / str(step) / "params")
  with pytest.raises(DamagedExport) as error:
    read_export(run_dir, 20, ABSTRACT)
  assert str(error.value) == (
    f"{tmp_path}/retriever/20 is damaged: its digest is {tree_digest(make_params(40))}, "
    f"written was {tree_digest(make_params(20))}; the next export replaces it"
  )
  # A trainer that comes to the step again writes it again.
  write(run_dir, 20)
  assert read_export(run_dir, 20, ABSTRACT).digest == tree_digest(make_params(20))


def test_exports_that_were_swapped_are_refused_and_set_aside(tmp_path):
  run_dir, lines = RunDir(tmp_path), []
  write(run_dir, 20, 40)
  for old, new in [("20", "other"), ("40", "20"), ("other", "40")]:
    (run_dir.retriever / old).rename(run_dir.retriever / new)
  for step in (20, 40):
    with pytest.raises(DamagedExport, match=rf"/{step} is damaged \(its seal is not that of retriever/{step}: "):
      read_export(run_dir, step, ABSTRACT)
  writer = TowerWriter(run_dir, log=lines.append)
  assert (writer.newest_step(), writer.digest(40)) == (None, None)
  assert sorted(line.rsplit(" ", 1)[1] for line in lines) == [
    f"{run_dir.damaged}/retriever-{step}-0" for step in (20, 40)
  ]
  writer.write(20, make_params(20))
  writer.close()
  assert read_export(run_dir, 20, ABSTRACT).digest == tree_digest(make_params(20))


def test_a_later_name_does_not_hide_what_is_still_to_be_exported(tmp_path):
  run_dir = RunDir(tmp_path)
  write(run_dir, 20, 40)
  (run_dir.retriever / "40").rename(run_dir.retriever / "80")
  write(run_dir, 40, 60)
  assert run_dir.export_steps() == [20, 40, 60]
  assert read_export(run_dir, 60, ABSTRACT).digest == tree_digest(make_params(60))


def test_flipped_bits_in_array_files_are_refused(tmp_path):
  run_dir = RunDir(tmp_path)
  write(run_dir, 20)
  largest = max(
    (p for p in (tmp_path / "retriever/20/params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
  )
  content = largest.read_bytes()
  assert run_dir.export_steps() == [20]
  for position in np.linspace(len(content) * 0.2, len(content) * 0.8, 6).astype(int):
    damaged = bytearray(content)
    damaged[position] ^= 4
    largest.write_bytes(bytes(damaged))
    with pytest.raises(DamagedExport):
      read_export(run_dir, 20, ABSTRACT)
  largest.write_bytes(content)
  assert read_export(run_dir, 20, ABSTRACT).digest == tree_digest(make_params(20))


def test_a_missing_file_is_damage_and_a_deleted_step_is_not(tmp_path):
  run_dir = RunDir(tmp_path)
  write(run_dir, 10, 20)
  assert run_dir.export_steps() == [10, 20]
  shutil.rmtree(tmp_path / "retriever/20/params")
  with pytest.raises(DamagedExport, match=r"^.*/retriever/20 is damaged \(.*\); the next export replaces it$"):
    read_export(run_dir, 20, ABSTRACT)
  shutil.rmtree(tmp_path / "retriever/10")
  with pytest.raises(FileNotFoundError):
    read_export(run_dir, 10, ABSTRACT)


def test_a_damaged_export_below_the_newest_is_written_again(tmp_path):
  run_dir, lines = RunDir(tmp_path), []
  write(run_dir, 10, 20)
  shutil.rmtree(tmp_path / "retriever/10/params")
  writer = TowerWriter(run_dir, log=lines.append)
  assert writer.write(10, make_params(10)) == tree_digest(make_params(10))
  writer.close()
  assert lines == ["the export of step 10 was damaged, or made by other arithmetic: it is written again"]
  assert run_dir.export_steps() == [10, 20]
  assert read_export(run_dir, 10, ABSTRACT).digest == tree_digest(make_params(10))


def test_digests_are_known_as_long_as_the_export_is_there(tmp_path):
  write(RunDir(tmp_path), 10, 20)
  writer = TowerWriter(RunDir(tmp_path))
  assert (writer.digest(10), writer.digest(15)) == (tree_digest(make_params(10)), None)
  writer.close()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_not_exported(tmp_path, value):
  params = make_params(10)
  params["encoder"]["kernel"][3, 4] = value
  writer = TowerWriter(RunDir(tmp_path))
  with pytest.raises(
    FloatingPointError, match="of step 10 are not finite: training has diverged; go on from an earlier"
  ):
    writer.write(10, params)
  writer.close()
  assert RunDir(tmp_path).export_steps() == []
