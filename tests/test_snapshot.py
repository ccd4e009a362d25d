"""Snapshots: published whole, found again bit for bit, refused when anything differs."""

import copy
import errno
import json
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
import xxhash

from realm_jax.index import snapshot as snapshots
from realm_jax.index.files import Files
from realm_jax.index.run_dir import RunDir
from realm_jax.index.seal import sealed
from realm_jax.index.searcher import ExactSearcher, ScannSearcher
from realm_jax.index.snapshot import Slice, SnapshotError, load, publish, read_manifest

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
    read_manifest(run_dir, publish_one(run_dir, sample_store, step=step, exact_below=bound))["searcher"]
    for step, bound in enumerate((n + 1, n))
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


def test_a_disk_that_gets_full_is_left_as_it_was(tmp_path, sample_store, monkeypatch):
  run_dir = RunDir(tmp_path)
  publish_one(run_dir, sample_store)

  def is_full(directory):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr("realm_jax.index.snapshot_data.file_digests", is_full)
  for _ in range(3):
    with pytest.raises(OSError, match="No space left on device"):
      publish_one(run_dir, sample_store, step=10)
  assert run_dir.files.names(run_dir.snapshot(2)) == []


def test_an_uncommitted_snapshot_is_invisible(tmp_path, sample_store, monkeypatch):
  run_dir = RunDir(tmp_path)

  def die(self, path, content):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(Files, "create", die)
    with pytest.raises(KeyboardInterrupt):
      publish_one(run_dir, sample_store)
  assert run_dir.snapshot(1).exists() and run_dir.snapshot_versions() == []
  with pytest.raises(
    SnapshotError,
    match=r"^snapshot 1 is not in .*/index \(no .*/COMMIT\); run realm refresh_index --once --workdir=\S+$",
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
    f"embeddings are not finite, the first of passage {sample_store.id(5)!r}; "
    "nothing was published: the parameters of step 40 have diverged"
  )
  assert not (tmp_path / "index").exists()


def refused(field, value, remedy=r"run realm refresh_index --once --workdir=\S+ with this corpus$"):
  return field, value, rf"has {field} {re.escape(repr(value))}, .*{remedy}"


REMEDY = r"delete \S+/index/00000001 and run realm refresh_index --once --workdir=\S+$"
DAMAGED = r"COMMIT is damaged \(.*\); delete \S+/index/00000001 and run realm refresh_index --once --workdir=\S+$"


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    refused("corpus_digest", "0" * 32),
    refused("corpus_digest", None),
    refused("vocabulary_digest", "0" * 32),
    refused("packing", "bert-0"),
    refused("passage_length", 17),
    refused("num_passages", 39),
    refused("num_passages", 41),
    refused("num_passages", 0),
    refused("retrieval_size", D + 1),
    refused("retrieval_size", D - 1),
    refused("dtype", "float32"),
    refused("dtype", "float16"),
    refused("params_digest", "digest1"),
    refused("params_digest", ""),
    refused("embedding_digest", "0" * 32),
    refused("format", "realm-snapshot-1", REMEDY),
    refused("format", "realm-snapshot-3", REMEDY),
    refused("format", None, REMEDY),
  ],
)
def test_a_manifest_of_something_else_is_refused_by_name(tmp_path, sample_store, field, value, message):
  run_dir = RunDir(tmp_path)
  publish_one(run_dir, sample_store)
  expected = {"params_digest": "digest0", "embedding_digest": read_manifest(run_dir, 1)["embedding_digest"]}
  assert load(run_dir, 1, sample_store, retrieval_size=D, **expected).version == 1
  rewrite_manifest(run_dir, {field: value})
  with pytest.raises(SnapshotError, match=message):
    load(run_dir, 1, sample_store, retrieval_size=D, **expected)


FIELDS = (
  "format", "writer", "params_step", "params_digest", "corpus_digest", "vocabulary_digest", "packing",
  "passage_length", "num_passages", "retrieval_size", "dtype", "slices", "embedding_digest", "searcher",
  "searcher_settings", "file_digest",
)  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_was_changed_afterwards_breaks_the_seal(tmp_path, sample_store, field):
  run_dir = RunDir(tmp_path)
  publish_one(run_dir, sample_store)
  assert set(read_manifest(run_dir, 1)) == set(FIELDS)
  rewrite_manifest(run_dir, {field: "another"}, seal=False)
  with pytest.raises(SnapshotError, match=DAMAGED):
    load(run_dir, 1, sample_store)


def test_versions_that_were_swapped_or_renamed_are_refused(tmp_path, sample_store):
  run_dir = RunDir(tmp_path)
  assert [publish_one(run_dir, sample_store, step=step) for step in (1, 2)] == [1, 2]
  run_dir.snapshot(1).rename(tmp_path / "other")
  run_dir.snapshot(2).rename(run_dir.snapshot(1))
  (tmp_path / "other").rename(run_dir.snapshot(5))
  for version in (1, 5):
    with pytest.raises(SnapshotError, match=rf"its seal is not that of index/{version}: .*; delete \S+/{version:08d} "):
      load(run_dir, version, sample_store)
  assert publish_one(run_dir, sample_store, step=2) == 6  # neither counts as published
  assert load(run_dir, 6, sample_store).params_step == 2


def test_a_file_that_says_other_embeddings_than_the_manifest_is_refused(tmp_path, sample_store):
  run_dir = RunDir(tmp_path)
  publish_one(run_dir, sample_store)
  rewrite_manifest(run_dir, {"embedding_digest": "0" * 32})
  with pytest.raises(SnapshotError, match=r"embeddings is damaged; delete \S+ and run realm refresh_index"):
    load(run_dir, 1, sample_store)


def test_embeddings_that_are_not_finite_are_never_loaded(tmp_path, sample_store, monkeypatch):
  run_dir, emb_ND = RunDir(tmp_path), embeddings(sample_store)
  emb_ND[5, 3] = np.nan
  with monkeypatch.context() as patched:
    patched.setattr(snapshots, "first_not_finite", lambda emb_ND: None)  # an indexer that did not look
    publish(run_dir, emb_ND, sample_store, params_step=0, params_digest="")
  with pytest.raises(SnapshotError, match=r"embeddings is damaged; delete \S+/00000001"):
    load(run_dir, 1, sample_store)


def rewrite_manifest(run_dir, fields, *, seal=True):
  path = run_dir.snapshot_commit(1)
  manifest = json.loads(path.read_text())
  fields = manifest | fields
  del fields["seal"]
  path.write_text(json.dumps(sealed(fields, "index/1") if seal else fields | {"seal": manifest["seal"]}))


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
  data = tmp_path / "run/index/00000001" / read_manifest(run_dir, 1)["writer"]
  files = [p for p in sorted(data.rglob("*")) if p.is_file() and p.stat().st_size]
  assert {"embeddings", "scann"} == {p.relative_to(data).parts[0] for p in files}
  for path in files:
    content = path.read_bytes()
    damage(path)
    with pytest.raises(SnapshotError) as error:
      load(run_dir, 1, sample_store)
    remedy = f"delete {run_dir.snapshot(1)} and run realm refresh_index --once --workdir={run_dir.path}"
    assert str(error.value) == f"{path} {says}; {remedy}"
    path.write_bytes(content)
  assert load(run_dir, 1, sample_store).version == 1


def test_a_flipped_bit_anywhere_in_commit_is_refused(tmp_path, sample_store):
  run_dir = RunDir(tmp_path)
  publish_one(run_dir, sample_store)
  path = run_dir.snapshot_commit(1)
  content = path.read_bytes()
  manifest = read_manifest(run_dir, 1)
  for position in range(0, len(content), 3):
    for bit in (0, 5, 7):
      damaged = bytearray(content)
      damaged[position] ^= 1 << bit
      path.write_bytes(bytes(damaged))
      try:
        assert read_manifest(run_dir, 1) == manifest  # white space between the fields
      except SnapshotError as error:
        assert "COMMIT" in str(error) and "and run realm refresh_index --once" in str(error)
  for length in (0, 1, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:length])
    with pytest.raises(SnapshotError, match="COMMIT is damaged"):
      load(run_dir, 1, sample_store)


@pytest.mark.parametrize(("mine", "other", "published"), [(2, 1, [1, 2]), (1, 2, [2]), (1, 1, [1])])
def test_two_writers_for_one_version(tmp_path, sample_store, monkeypatch, mine, other, published):
  run_dir, create = RunDir(tmp_path), Files.create
  other_version = []

  def create_after_another_writer(self, path, content):
    if not other_version:
      other_version.append(None)
      other_version[0] = publish_one(run_dir, sample_store, step=other, seed=other)
    return create(self, path, content)

  monkeypatch.setattr(Files, "create", create_after_another_writer)
  version = publish_one(run_dir, sample_store, step=mine, seed=mine)
  # The later one takes the next version, if its parameters are newer; otherwise its work is for nothing.
  assert other_version == [1] and version == (2 if mine > other else None)
  assert [read_manifest(run_dir, v)["params_step"] for v in run_dir.snapshot_versions()] == published
  for v in run_dir.snapshot_versions():
    snapshot = load(run_dir, v, sample_store)
    wanted = embeddings(sample_store, snapshot.params_step)
    np.testing.assert_array_equal(snapshot.passage_emb_ND.view(np.uint16), wanted.view(np.uint16))
    assert len([p for p in run_dir.snapshot(v).iterdir() if p.is_dir()]) == 1


def test_a_writer_whose_data_another_one_cleared_away_tries_again(tmp_path, sample_store, monkeypatch):
  run_dir, write_data = RunDir(tmp_path), snapshots.write_data

  def overtaken(*arguments):
    monkeypatch.setattr(snapshots, "write_data", write_data)
    publish_one(run_dir, sample_store, step=1, seed=1)
    raise FileNotFoundError("gone")

  monkeypatch.setattr(snapshots, "write_data", overtaken)
  assert publish_one(run_dir, sample_store, step=2, seed=2) == 2

  def full(*arguments):
    raise OSError("No space left on device")

  monkeypatch.setattr(snapshots, "write_data", full)
  with pytest.raises(OSError, match="No space left"):
    publish_one(run_dir, sample_store, step=3)


def test_only_newer_parameters_are_published_unless_what_is_there_is_damaged(tmp_path, sample_store):
  run_dir = RunDir(tmp_path)
  assert publish_one(run_dir, sample_store, step=10) == 1
  assert publish_one(run_dir, sample_store, step=10) is None and publish_one(run_dir, sample_store, step=9) is None
  assert publish_one(run_dir, sample_store, step=10, damaged=frozenset({1})) == 2
  run_dir.snapshot_commit(2).write_text("{")
  assert snapshots.newest_published(run_dir) == (1, 10) and snapshots.newest_published(run_dir, frozenset({1})) is None
  assert publish_one(run_dir, sample_store, step=10, damaged=frozenset({1})) == 3


def test_the_age_is_the_mean_over_passages(tmp_path, sample_store):
  run_dir = RunDir(tmp_path)
  slices = [Slice(0, 10, 60), Slice(10, len(sample_store), 20)]
  snapshot = load(run_dir, publish_one(run_dir, sample_store, step=60, slices=slices), sample_store)
  assert snapshot.slices == slices and snapshot.params_step == 60
  assert snapshot.age(100) == pytest.approx((10 * 40 + (len(sample_store) - 10) * 80) / len(sample_store))
  whole = load(run_dir, publish_one(run_dir, sample_store, step=80), sample_store)
  assert whole.slices == [Slice(0, len(sample_store), 80)] and whole.age(100) == 20
