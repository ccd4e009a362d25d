"""Snapshots: published whole, found again bit for bit, refused when anything differs."""

import copy
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import xxhash

from realm_jax.index import snapshot as snapshots
from realm_jax.index.run_dir import RunDir, commit
from realm_jax.index.searcher import ExactSearcher, ScannSearcher
from realm_jax.index.snapshot import SnapshotError, delete_old, load, publish

D = 16


def embeddings(store, seed=0):
  return np.random.default_rng(seed).normal(size=(len(store), D)).astype(ml_dtypes.bfloat16)


def publish_one(run_dir, store, *, step=0, seed=0, **options):
  return publish(run_dir, embeddings(store, seed), store, params_step=step, params_digest=f"digest{step}", **options)


@pytest.mark.parametrize(
  ("searcher", "kind"), [("exact", ExactSearcher), ("scann", ScannSearcher), ("auto", ExactSearcher)]
)
def test_round_trip(tmp_path, sample_store, searcher, kind):
  run_dir = RunDir(tmp_path)
  version = publish_one(run_dir, sample_store, step=70, searcher=searcher)
  snapshot = load(run_dir, version, sample_store, retrieval_size=D)
  assert (version, snapshot.version, snapshot.params_step) == (1, 1, 70)
  assert snapshot.passage_emb_ND.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(snapshot.passage_emb_ND.view(np.uint16), embeddings(sample_store).view(np.uint16))
  assert type(snapshot.searcher) is kind
  query_BD = 3 * snapshot.passage_emb_ND[[7, 11]].astype(np.float32)
  assert (snapshot.searcher.search(query_BD, len(sample_store))[1][:, 0] == [7, 11]).all()
  manifest = snapshot.manifest
  assert manifest["params_digest"] == "digest70" and manifest["searcher"] == (
    "scann" if searcher == "scann" else "exact"
  )
  assert (manifest["num_passages"], manifest["retrieval_size"], manifest["dtype"]) == (len(sample_store), D, "bfloat16")
  assert manifest["corpus_digest"] == sample_store.content_digest


def test_auto_takes_scann_from_exact_below_on(tmp_path, sample_store):
  run_dir, n = RunDir(tmp_path), len(sample_store)
  kinds = [
    snapshots.read_manifest(run_dir, publish_one(run_dir, sample_store, exact_below=bound))["searcher"]
    for bound in (n + 1, n)
  ]
  assert kinds == ["exact", "scann"]


def test_a_moved_run_is_still_whole(tmp_path, sample_store):
  publish_one(RunDir(tmp_path / "here"), sample_store, searcher="scann")
  shutil.move(tmp_path / "here", tmp_path / "there")
  assert load(RunDir(tmp_path / "there"), 1, sample_store).version == 1


def test_versions_grow(tmp_path, sample_store):
  run_dir = RunDir(tmp_path)
  assert [publish_one(run_dir, sample_store, step=step) for step in (0, 10, 20)] == [1, 2, 3]
  assert run_dir.snapshot_versions() == [1, 2, 3]


def test_an_uncommitted_snapshot_is_invisible(tmp_path, sample_store, monkeypatch):
  run_dir = RunDir(tmp_path)

  def die(path, content):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(snapshots, "commit", die)
    with pytest.raises(KeyboardInterrupt):
      publish_one(run_dir, sample_store)
  assert run_dir.snapshot(1).exists() and run_dir.snapshot_versions() == []
  with pytest.raises(
    SnapshotError, match=r"^snapshot 1 is not in .*/index \(no .*/COMMIT\); run realm refresh_index --once$"
  ):
    load(run_dir, 1, sample_store)
  assert publish_one(run_dir, sample_store) == 1  # the debris is in nobody's way
  assert load(run_dir, 1, sample_store).version == 1


def test_an_embedding_that_is_not_finite_is_refused(tmp_path, sample_store):
  emb_ND = embeddings(sample_store).astype(np.float32)
  emb_ND[5, 3], emb_ND[9, 0] = np.nan, 3.4e38  # the second is infinite in bfloat16
  with pytest.raises(SnapshotError) as error:
    publish(RunDir(tmp_path), emb_ND, sample_store, params_step=40, params_digest="")
  assert str(error.value) == (
    f"2 of {len(sample_store)} embeddings are not finite, the first of passage {sample_store.id(5)!r}; "
    "nothing was published: the parameters of step 40 have diverged"
  )
  assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("corpus_digest", "0" * 32),
    ("vocabulary_digest", "0" * 32),
    ("passage_length", 17),
    ("num_passages", 41),
    ("retrieval_size", D + 1),
    ("format", "realm-snapshot-0"),
  ],
)
def test_a_manifest_of_something_else_is_refused_by_name(tmp_path, sample_store, name, value):
  run_dir = RunDir(tmp_path)
  publish_one(run_dir, sample_store)
  rewrite_manifest(run_dir, {name: value}, signed=True)
  with pytest.raises(SnapshotError, match=rf"\b{name} '?{value}'?, .*run realm refresh_index --once"):
    load(run_dir, 1, sample_store, retrieval_size=D)


@pytest.mark.parametrize(
  "name",
  [
    "format", "writer", "params_step", "params_digest", "corpus_digest", "vocabulary_digest", "passage_length",
    "num_passages", "retrieval_size", "dtype", "searcher", "searcher_settings", "file_digest", "manifest_digest",
  ],
)  # fmt: skip
def test_every_field_of_the_manifest_is_guarded(tmp_path, sample_store, name):
  run_dir = RunDir(tmp_path)
  publish_one(run_dir, sample_store)
  assert name in snapshots.read_manifest(run_dir, 1)
  rewrite_manifest(run_dir, {name: "another"})
  wanted = r"format 'another', expected" if name == "format" else r"is damaged \(its manifest_digest differs\)"
  with pytest.raises(
    SnapshotError, match=rf"COMMIT (has )?{wanted}.*; delete snapshot 1 and run realm refresh_index --once$"
  ):
    load(run_dir, 1, sample_store)


def rewrite_manifest(run_dir, fields, *, signed=False):
  path = run_dir.snapshot_commit(1)
  manifest = json.loads(path.read_text()) | fields
  if signed:
    manifest["manifest_digest"] = snapshots._manifest_digest(manifest)
  path.write_text(json.dumps(manifest))


def test_another_corpus_is_refused(tmp_path, sample_store):
  publish_one(RunDir(tmp_path), sample_store)
  other = copy.copy(sample_store)
  other.content_digest = xxhash.xxh3_128_hexdigest(b"other")
  with pytest.raises(
    SnapshotError, match=rf"has corpus_digest '{sample_store.content_digest}', the corpus .* '{other.content_digest}'"
  ):
    load(RunDir(tmp_path), 1, other)


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0x40
  path.write_bytes(bytes(content))


def cut(path):
  path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
  ("damage", "says"), [(flip, "is damaged"), (cut, "is damaged"), (lambda p: p.unlink(), "is missing")]
)
def test_damage_in_any_file_is_refused(tmp_path, sample_store, damage, says):
  run_dir = RunDir(tmp_path / "run")
  publish_one(run_dir, sample_store, searcher="scann")
  data = tmp_path / "run/index/00000001" / snapshots.read_manifest(run_dir, 1)["writer"]
  files = [p for p in sorted(data.rglob("*")) if p.is_file() and p.stat().st_size]
  assert {"embeddings", "scann"} == {p.relative_to(data).parts[0] for p in files}
  for path in files:
    content = path.read_bytes()
    damage(path)
    with pytest.raises(SnapshotError) as error:
      load(run_dir, 1, sample_store)
    assert str(error.value) == f"{path} {says}; delete snapshot 1 and run realm refresh_index --once"
    path.write_bytes(content)
  assert load(run_dir, 1, sample_store).version == 1


def test_a_flipped_bit_anywhere_in_commit_is_refused(tmp_path, sample_store):
  run_dir = RunDir(tmp_path)
  publish_one(run_dir, sample_store)
  path = run_dir.snapshot_commit(1)
  content = path.read_bytes()
  manifest = snapshots.read_manifest(run_dir, 1)
  for position in range(0, len(content), 3):
    for bit in (0, 5, 7):
      damaged = bytearray(content)
      damaged[position] ^= 1 << bit
      path.write_bytes(bytes(damaged))
      try:
        assert snapshots.read_manifest(run_dir, 1) == manifest  # white space between the fields
      except SnapshotError as error:
        assert "COMMIT" in str(error) and "delete snapshot 1 and run realm refresh_index --once" in str(error)
  for length in (0, 1, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:length])
    with pytest.raises(SnapshotError, match="COMMIT is damaged"):
      load(run_dir, 1, sample_store)


def test_two_writers_for_one_version_both_end_committed(tmp_path, sample_store, monkeypatch):
  run_dir, versions = RunDir(tmp_path), {}

  def commit_after_another_writer(path, content):
    if not versions:
      versions[2] = None
      versions[2] = publish_one(run_dir, sample_store, step=2, seed=2)
    return commit(path, content)

  monkeypatch.setattr(snapshots, "commit", commit_after_another_writer)
  versions[1] = publish_one(run_dir, sample_store, step=1, seed=1)
  assert versions == {2: 1, 1: 2}
  assert sorted(versions.values()) == run_dir.snapshot_versions() == [1, 2]
  for seed, version in versions.items():
    snapshot = load(run_dir, version, sample_store)
    assert snapshot.params_step == seed
    np.testing.assert_array_equal(
      snapshot.passage_emb_ND.view(np.uint16), embeddings(sample_store, seed).view(np.uint16)
    )
    assert len([p for p in run_dir.snapshot(version).iterdir() if p.is_dir()]) == 1


def make_history(run_dir, store, *, adopted, checkpoints):
  for step in range(0, 80, 10):
    publish_one(run_dir, store, step=step)  # versions 1 to 8
  for step, version in adopted.items():
    assert commit(run_dir.adoption(step), json.dumps({"step": step, "version": version, "params_digest": ""}))
  for step in checkpoints:
    (run_dir.checkpoints / str(step)).mkdir(parents=True)


@pytest.mark.parametrize(
  ("adopted", "checkpoints", "deleted"),
  [
    ({}, [], [1, 2, 3, 4, 5, 6]),
    ({0: 1, 20: 3}, [], [2, 4, 5, 6]),  # it would start again from step 0
    ({0: 1, 20: 3, 40: 5}, [30, 50], [1, 2, 4, 6]),  # 3 is in force at checkpoint 30
    ({0: 1, 20: 3, 40: 5}, [40], [1, 2, 3, 4, 6]),  # adopted at the step of the checkpoint
    ({0: 1, 20: 3, 40: 5}, [39], [1, 2, 4, 6]),
    ({5: 2}, [3], [1, 3, 4, 5, 6]),
  ],
)
def test_delete_old_spares_what_a_resume_adopts(tmp_path, sample_store, adopted, checkpoints, deleted):
  run_dir = RunDir(tmp_path)
  make_history(run_dir, sample_store, adopted=adopted, checkpoints=checkpoints)
  assert delete_old(run_dir, keep=2) == deleted
  assert run_dir.snapshot_versions() == [v for v in range(1, 9) if v not in deleted]
  assert sorted(p.name for p in run_dir.index.iterdir()) == [f"{v:08d}" for v in run_dir.snapshot_versions()]
  assert load(run_dir, 8, sample_store).version == 8
  assert delete_old(run_dir, keep=2) == []
  assert publish_one(run_dir, sample_store) == 9
