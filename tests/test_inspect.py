"""The verb inspect: the state of a run, what is missing, and what a question finds before and after."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from gcs_server import serve
from tiny_runs import write_run

from realm_jax.index.run_dir import RunDir
from realm_jax.serving import ranks
from realm_jax.serving.open_qa import OpenQA
from realm_jax.serving.run_report import describe, read_report


def write_stale_run(path, store):
  """A run whose passage tower is trained too, so that its snapshots grow stale."""
  run_dir = write_run(path, store)
  run_dir.write_config(run_dir.read_config() | {"trains_passage_tower": True})
  return run_dir


@pytest.fixture(scope="module")
def finished(sample_store, tmp_path_factory):
  return write_stale_run(tmp_path_factory.mktemp("inspect") / "run", sample_store)


@pytest.fixture
def copied(finished, tmp_path):
  """A copy to harm."""
  shutil.copytree(finished.path, tmp_path / "run")
  return RunDir(tmp_path / "run")


def num_bytes(path):
  return sum(p.stat().st_size for p in pathlib.Path(path).rglob("*") if p.is_file())


def test_a_finished_run(finished, sample_store):
  assert read_report(finished) == {
    "path": str(finished.path),
    "stage": "finetune",
    "steps_done": 20,
    "num_steps": 20,
    "is_done": True,
    "corpus": str(sample_store.path),
    "checkpoints": [{"step": s, "num_bytes": num_bytes(finished.checkpoints / str(s))} for s in (10, 20)],
    "exports": [{"step": s, "num_bytes": num_bytes(finished.retriever / str(s))} for s in (10, 20)],
    "snapshots": [
      {
        "version": version,
        "state": "committed",
        "num_bytes": num_bytes(finished.snapshot(version)),
        "adopted_by": [10 * version],
        "params_step": 10 * version,
        "age": 20 - 10 * version,
        "searcher": "exact",
      }
      for version in (1, 2)
    ],
    "adoptions": [{"step": 10, "version": 1}, {"step": 20, "version": 2}],
    "damaged": [],
    "last_metrics": {"step": 20, "loss": 1.25, "index_age": 0.0},
    "num_bytes": num_bytes(finished.path),
    "missing": [],
  }


def test_the_verb_prints_it_for_people_or_as_json(realm, finished):
  status, out, _ = realm("inspect", finished.path, "--json")
  assert (status, json.loads(out)) == (0, read_report(finished))
  status, out, _ = realm("inspect", finished.path)
  lines = out.splitlines()
  assert status == 0 and lines[0].startswith(f"{finished.path}: finetune, 20 of 20 steps, done, ")
  assert lines[4].startswith("  1: committed, ")
  assert lines[4].endswith(", exact, parameters of step 10, 10 steps old, adopted by checkpoint 10")
  assert lines[-2:] == ["adopted: 1 from step 10, 2 from step 20", "metrics: step 20, loss 1.25, index_age 0"]


def test_an_index_of_a_tower_that_is_not_trained_is_never_stale(copied):
  copied.write_config(copied.read_config() | {"trains_passage_tower": False})
  assert [(s["params_step"], s["age"]) for s in read_report(copied)["snapshots"]] == [(10, 0), (20, 0)]


def test_what_is_missing_comes_with_its_command(copied):
  copied.done.unlink()
  shutil.rmtree(copied.snapshot(2))
  shutil.rmtree(copied.checkpoints / "20")
  config = copied.read_config()
  copied.write_config(config | {"corpus": "/nonexistent/corpus", "num_steps": 30})
  report = read_report(copied)
  assert [c["step"] for c in report["checkpoints"]] == [10] and report["steps_done"] == 20
  assert report["missing"] == [
    {
      "what": "no corpus at /nonexistent/corpus (it has no corpus.json); make one with realm build_corpus",
      "command": "realm build_corpus --input=FILE --output=/nonexistent/corpus",
    },
    {
      "what": "the steps 10 to 30, unless a trainer makes them now",
      "command": f"realm train --workdir={copied.path} --config=...  with the run's own flags",
    },
    {
      "what": "an index with the parameters of step 20, unless an indexer makes it now",
      "command": f"realm refresh_index --workdir={copied.path} --once",
    },
  ]
  assert f"\nmissing: {report['missing'][2]['what']}\n         realm refresh_index" in describe(report)


def test_states_of_snapshots_and_damage(copied):
  copied.files.create(copied.snapshot_deleting(1), "")
  commit = copied.snapshot_commit(2)
  commit.write_text(commit.read_text().replace('"params_step": 20', '"params_step": 30'))
  (copied.snapshot(3) / "writer").mkdir(parents=True)
  copied.adoption(20).write_text("{}")
  aside = copied.set_aside(copied.checkpoints / "20")
  report = read_report(copied)
  deleting, damaged, written = report["snapshots"]
  assert (deleting["state"], deleting["adopted_by"]) == ("being deleted", [10])
  assert damaged["state"].startswith(f"damaged ({commit} is damaged (its seal is not that of index/2")
  assert "params_step" not in damaged
  assert written == {"version": 3, "state": "not committed", "num_bytes": 0, "adopted_by": []}
  assert report["damaged"][0].startswith("adoptions/20: its seal is not that of adoptions/20")
  assert report["damaged"][1:] == [f"damaged/{aside.name}"]
  assert report["missing"][-1]["what"].startswith("an index with the parameters of step 20")


def test_a_run_that_has_only_begun(tmp_path, finished):
  run_dir = RunDir(tmp_path / "new")
  run_dir.write_config(finished.read_config())
  report = read_report(run_dir)
  assert (report["steps_done"], report["checkpoints"], report["snapshots"], report["last_metrics"]) == (0, [], [], {})
  assert [m["what"] for m in report["missing"]] == ["the steps 0 to 20, unless a trainer makes them now"]
  assert describe(report).splitlines()[1:6] == [
    "checkpoints: none", "exports: none", "snapshots: none", "adopted: none", "metrics: none"
  ]  # fmt: skip


def test_a_question_now_and_at_an_older_step(realm, finished):
  status, out, _ = realm("inspect", finished.path, "--question=Who was Marie Curie?", "--before=10", "--k=3", "--json")
  assert status == 0
  places = json.loads(out)
  now, before = OpenQA.load(finished.path), ranks.load_before(finished.path, "10")
  assert before.snapshot.params_step == 10
  for retriever, rank, score in ((now, "rank", "score"), (before, "rank_before", "score_before")):
    score_BK, passage_BK = retriever.retrieve(["Who was Marie Curie?"], len(now.store))
    ids = [now.store.id(int(i)) for i in passage_BK[0]]
    assert set(ids[:3]) <= {p["passage_id"] for p in places}
    for p in places:
      assert ids[p[rank] - 1] == p["passage_id"]
      np.testing.assert_allclose(score_BK[0, p[rank] - 1], p[score], rtol=1e-6)
  assert [p["rank"] for p in places] == sorted(p["rank"] for p in places)
  assert [p["rank"] for p in places][:3] == [1, 2, 3]
  title_of = {now.store.id(i): now.store.title(i) for i in range(len(now.store))}
  assert all(p["title"] == title_of[p["passage_id"]] for p in places)
  status, table, _ = realm("inspect", finished.path, "--question=Who was Marie Curie?", "--before=10", "--k=3")
  header, *rows = table.splitlines()
  assert header.split() == ["rank", "score", "before", "score", "passage"]
  for row, p in zip(rows, places, strict=True):
    rank, score, rank_before, score_before, *rest = row.split()
    assert [rank, score, rank_before, score_before] == [
      str(p["rank"]), f"{p['score']:.2f}", str(p["rank_before"]), f"{p['score_before']:.2f}"
    ]  # fmt: skip
    way = p["rank_before"] - p["rank"]
    assert (rest[0] == "up", rest[0] == "down") == (way > 0, way < 0)
    assert row.endswith(f"  {p['title']} ({p['passage_id']})")


def test_a_question_alone(realm, finished):
  status, out, _ = realm("inspect", finished.path, "--question=Who?", "--k=2")
  header, *rows = out.splitlines()
  assert (status, header.split()) == (0, ["rank", "score", "passage"])
  assert [row.split()[0] for row in rows] == ["1", "2"]


def test_what_lies_deeper_is_no_longer_looked_for(monkeypatch, finished):
  monkeypatch.setattr(ranks, "DEPTH", 3)
  now, before = OpenQA.load(finished.path), ranks.load_before(finished.path, "10")
  places = ranks.compare("Who was Marie Curie?", now, before, k=2)
  gone = [p for p in places if p.rank is None]
  assert gone and all(p.score is None and p.rank_before in (1, 2) for p in gone)
  assert places[-len(gone) :] == gone
  lines = ranks.describe(places, "10").splitlines()
  assert lines[-1].split()[:2] == [">3", "-"] and " down " in lines[-1]
  assert lines[1].split()[:1] == ["1"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "give one run directory:  realm inspect RUN"),
    (["/nonexistent"], "no run in /nonexistent: no config.json is there; start"),
    (["/nonexistent", "--before=10"], "--before and --answer say more of what a --question finds; give one"),
    (["/nonexistent", "--question= "], "an empty question"),
  ],
)
def test_wrong_use(realm, arguments, message):
  status, out, err = realm("inspect", *arguments)
  assert (status, out) == (1, "") and err.startswith(f"realm inspect: {message}")


def test_the_snapshot_of_a_step_may_be_gone(realm, copied):
  shutil.rmtree(copied.snapshot(1))
  status, _, err = realm("inspect", copied.path, "--question=Who?", "--before=10")
  assert status == 1 and "has the passages as step 10 embeds them (there are those of the steps [20])" in err


def test_a_run_in_a_bucket(finished, sample_store, monkeypatch):
  with serve("bucket") as server:
    for name, value in server.environment.items():
      monkeypatch.setenv(name, value)
    run_dir = write_stale_run("gs://bucket/run", sample_store)
    report, on_disk = read_report(run_dir), read_report(finished)
    total = sum(len(server.buckets["bucket"][name].content) for name in server.names("bucket", "run/"))
  assert (report["path"], report["num_bytes"]) == ("gs://bucket/run", total)
  assert all(part["num_bytes"] > 0 for name in ("checkpoints", "exports", "snapshots") for part in report[name])
  assert without_sizes(report) == without_sizes(on_disk)


def without_sizes(report):
  parts = {n: [p | {"num_bytes": 0} for p in report[n]] for n in ("checkpoints", "exports", "snapshots")}
  return report | parts | {"num_bytes": 0, "path": ""}
