"""The paper's Table 2 in small: its rows, and the table that is made of runs."""

import importlib.util
import json
import pathlib

import pytest

from realm_jax.config import flat_fields

ROOT = pathlib.Path(__file__).parent.parent


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def plotting():
  return load(ROOT / "docs" / "plot_table2.py")


def test_the_table_has_the_rows_that_are_run(plotting):
  run = load(ROOT / "launch" / "table2.py").ROWS
  assert {row: retriever for row, (_, retriever) in plotting.ROWS.items()} == {r: pair[0] for r, pair in run.items()}


def test_each_pre_training_differs_from_realm_in_one_field():
  get_config = load(ROOT / "configs" / "table2.py").get_config
  realm = flat_fields(get_config("realm").to_dict())
  different = {
    row: {k: v for k, v in flat_fields(get_config(row).to_dict()).items() if v != realm[k]}
    for row in ("random_token", "random_span", "stale", "frozen")
  }
  assert different == {
    "random_token": {"masking": "random_token"},
    "random_span": {"masking": "random_span"},
    "stale": {"index.export_every": 30 * realm["index.export_every"]},
    "frozen": {"optimizer.retriever_scale": 0.0},
  }


def write_run(path, metrics=(), **scores):
  (path / "evaluation").mkdir(parents=True)
  (path / "evaluation" / "dev.json").write_text(json.dumps(scores))
  (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
  (path / "DONE").write_text("done\n")


def test_means_and_spreads(plotting, tmp_path, capsys):
  write_run(tmp_path / "start", **{"recall@5": 30.0})
  for seed, (exact, recall) in enumerate([(3.0, 40.0), (5.0, 43.0)]):
    steps = [{"step": 10, "retrieval_utility": 0.1 * seed}, {"step": 20, "retrieval_utility": 0.3}]
    write_run(tmp_path / f"realm.{seed}", steps, **{"recall@5": recall})
    write_run(tmp_path / f"realm.finetune.{seed}", **{"exact_match": exact, "f1": 2 * exact, "recall@5": 0.0})
    write_run(tmp_path / f"realm_reader.finetune.{seed}", **{"exact_match": 2.0, "f1": 1.0, "recall@5": 0.0})
  plotting.main(str(tmp_path), str(tmp_path / "utility.svg"))
  table = capsys.readouterr().out
  assert "| REALM | 4.0 ± 1.4 (2) | 8.0 ± 2.8 (2) | 41.5 ± 2.1 (2) |" in table
  assert "| REALM's retriever, baseline reader | - | - | 41.5 ± 2.1 (2) |" in table
  assert "| baseline retriever, REALM's reader | 2.0 ± 0.0 (2) | 1.0 ± 0.0 (2) | 30.0 (1) |" in table
  assert "random span masks | - | - | - |" in table
  assert (tmp_path / "utility.svg").read_text().count("salient span") == 1
