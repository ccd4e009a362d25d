"""The indexer: what it publishes, when it ends, and that it embeds as the model does."""

import copy
import json
import re
import threading

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.core import FrozenDict

from realm_jax.batch import Packed
from realm_jax.config import paper_config
from realm_jax.data.packing import pack
from realm_jax.index.deletion import delete_old
from realm_jax.index.digest import tree_digest
from realm_jax.index.embed import embed_passages
from realm_jax.index.refresh import (
  Refresher,
  RefreshSettings,
  abstract_tower_params,
  embedder,
  follow,
  refresh_settings,
)
from realm_jax.index.run_dir import RunDir, wait_for
from realm_jax.index.snapshot import SnapshotError, is_refused, load, read_manifest
from realm_jax.index.tower_export import Export, TowerWriter
from realm_jax.model.retriever import Tower
from realm_jax.training.adoption import AdoptionSettings, SnapshotFollower


@pytest.fixture(scope="module")
def tower(sample_store):
  bert = FrozenDict(
    vocab_size=sample_store.description["vocabulary_size"],
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    mlp_size=32,
    max_length=sample_store.passage_length,
  )
  return Tower(bert, retrieval_size=8)


@pytest.fixture(scope="module")
def params(tower):
  row = np.zeros((1, 8), np.int32)
  params = jax.device_get(tower.init(jax.random.key(0), Packed(row, row, row == 0))["params"])
  # BERT's initial values make passages alike; larger ones set them apart.
  return jax.tree.map(lambda x: x * 20 if x.ndim > 1 else x, params)


def scaled(params, step):
  return jax.tree.map(lambda x: x * np.float32(1 + step / 100), params)


def write(run_dir, params, *steps):
  writer = TowerWriter(run_dir)
  for step in steps:
    writer.write(step, scaled(params, step))
  writer.close()


def make_refresher(run_dir, tower, store, lines, **settings):
  settings = RefreshSettings(batch_size=16, **settings)
  return Refresher(run_dir, store, settings, embedder(tower, store, settings), log=lines.append)


def refresh(run_dir, tower, store, *, once=False, timeout=0.0, in_order=False, lines=None, **settings):
  lines = [] if lines is None else lines
  abstract_params = abstract_tower_params(tower, store.passage_length)
  refresher = make_refresher(run_dir, tower, store, lines, **settings)
  return follow(refresher, run_dir, abstract_params, once=once, timeout=timeout, in_order=in_order, log=lines.append)


def published_steps(run_dir):
  return [read_manifest(run_dir, v)["params_step"] for v in run_dir.snapshot_versions()]


def test_each_passage_is_embedded_as_if_alone(tower, params, sample_store):
  vocabulary = sample_store.vocabulary()
  apply = jax.jit(lambda packed: tower.apply({"params": params}, packed))
  alone = []
  for i in range(len(sample_store)):
    row = np.array([i])
    packed = pack(
      sample_store.title_tokens(row), sample_store.body_tokens(row), sample_store.passage_length, vocabulary
    )
    alone.append(np.asarray(apply(packed))[0])
  assert np.ptp(np.stack(alone), axis=0).min() > 0.5  # they differ
  for batch_size in (1, 7, 16, len(sample_store), 1000):
    emb_ND = embed_passages(tower, params, sample_store, vocabulary, batch_size=batch_size)
    assert (emb_ND.shape, emb_ND.dtype) == ((len(sample_store), 8), ml_dtypes.bfloat16)
    np.testing.assert_allclose(emb_ND.astype(np.float32), np.stack(alone), rtol=1e-2, atol=1e-2)


def test_progress_sees_each_batch(tower, params, sample_store):
  seen = []

  def progress(batches):
    for begin in batches:
      seen.append(begin)
      yield begin

  embed_passages(tower, params, sample_store, sample_store.vocabulary(), batch_size=16, progress=progress)
  assert seen == [0, 16, 32]


def test_abstract_params_are_the_trainers(tower, params, sample_store):
  abstract = abstract_tower_params(tower, sample_store.passage_length)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(lambda x: (x.shape, x.dtype), params)


def test_once_publishes_the_newest_and_ends(tmp_path, tower, params, sample_store):
  run_dir, lines = RunDir(tmp_path), []
  write(run_dir, params, 0, 10, 20)
  assert refresh(run_dir, tower, sample_store, once=True, lines=lines) == 1
  assert published_steps(run_dir) == [20]
  assert re.fullmatch(
    r"snapshot 1: 40 passages with the parameters of step 20 \(embedded in [\d.]+ s, published in [\d.]+ s\)", lines[0]
  )
  snapshot = load(run_dir, 1, sample_store, retrieval_size=8)
  assert snapshot.manifest["params_digest"] == tree_digest(scaled(params, 20))
  wanted = embed_passages(tower, scaled(params, 20), sample_store, sample_store.vocabulary(), batch_size=16)
  np.testing.assert_array_equal(snapshot.passage_emb_ND.view(np.uint16), wanted.view(np.uint16))
  assert refresh(run_dir, tower, sample_store, once=True) == 0  # nothing new


def test_it_ends_when_the_trainer_is_done(tmp_path, tower, params, sample_store):
  run_dir = RunDir(tmp_path)
  write(run_dir, params, 0, 10)
  run_dir.done.write_text("done\n")
  assert refresh(run_dir, tower, sample_store, timeout=60) == 1
  assert published_steps(run_dir) == [10]


def test_done_without_any_parameters_is_an_end_too(tmp_path, tower, sample_store):
  run_dir = RunDir(tmp_path)
  run_dir.done.write_text("done\n")
  assert refresh(run_dir, tower, sample_store, timeout=60) == 0


@pytest.mark.parametrize("once", [False, True])
def test_it_does_not_wait_for_ever(tmp_path, tower, sample_store, once):
  run_dir = RunDir(tmp_path)
  with pytest.raises(TimeoutError) as error:
    refresh(run_dir, tower, sample_store, once=once, timeout=0.3)
  assert str(error.value) == (
    f"no new parameters in {run_dir.retriever} for 0 s and no DONE: has the trainer stopped? Start it again, then this"
  )


def test_after_the_timeout_what_came_is_published(tmp_path, tower, params, sample_store):
  run_dir = RunDir(tmp_path)
  write(run_dir, params, 0)
  with pytest.raises(TimeoutError, match="no new parameters in"):
    refresh(run_dir, tower, sample_store, timeout=0.3)
  assert published_steps(run_dir) == [0]


def test_only_the_newest_is_published_unless_in_order(tmp_path, tower, params, sample_store):
  run_dir = RunDir(tmp_path)
  write(run_dir, params, 0)
  assert refresh(run_dir, tower, sample_store, once=True) == 1
  write(run_dir, params, 10, 20)
  # A trainer with index.sync waits for the snapshot of step 10, though 20 is exported already.
  assert refresh(run_dir, tower, sample_store, once=True, in_order=True) == 2
  assert published_steps(run_dir) == [0, 10, 20]
  write(run_dir, params, 30, 40)
  assert refresh(run_dir, tower, sample_store, once=True) == 1
  assert published_steps(run_dir) == [10, 20, 40]


def test_once_is_once_though_the_trainer_goes_on(tmp_path, tower, params, sample_store):
  for in_order in (False, True):
    run_dir = RunDir(tmp_path / str(in_order))
    write(run_dir, params, 0, 10)
    refresher, embedded = make_refresher(run_dir, tower, sample_store, []), []

    def embed(tower_params, begin, end, run_dir=run_dir, embedded=embedded):
      embedded.append(len(embedded))
      write(run_dir, params, 20 + embedded[-1])  # faster than it embeds
      return np.zeros((end - begin, 8), ml_dtypes.bfloat16)

    refresher._embed_part = embed
    abstract_params = abstract_tower_params(tower, sample_store.passage_length)
    assert follow(refresher, run_dir, abstract_params, once=True, timeout=0.0, in_order=in_order) == 1 + in_order
    assert published_steps(run_dir) == ([0, 10] if in_order else [10])


def test_what_the_trainer_refuses_is_made_again_while_the_indexer_lives(tmp_path, tower, params, sample_store):
  run_dir, lines = RunDir(tmp_path), []
  write(run_dir, params, 0)
  indexer = threading.Thread(target=refresh, args=(run_dir, tower, sample_store), kwargs={"timeout": 60})
  indexer.start()
  wait_for(lambda: run_dir.snapshot_versions() == [1], 30, "the first", poll=0.02)
  # It rots after the indexer has written it, and before the trainer looks.
  embeddings = run_dir.snapshot(1) / read_manifest(run_dir, 1)["writer"] / "embeddings"
  embeddings.rmtree()
  follower = SnapshotFollower(run_dir, sample_store, AdoptionSettings(10, timeout=30), first_step=0, log=lines.append)
  follower.close()
  assert follower.version == 2 and follower.snapshot.params_step == 0
  assert lines[0].startswith("snapshot 1 is left out: ") and "is missing; delete " in lines[0]
  run_dir.done.write_text("done\n")
  indexer.join()
  delete_old(run_dir, keep=3)
  assert run_dir.snapshot_versions() == [2]  # nobody needs what was refused


def test_what_a_killed_indexer_had_not_deleted_goes_even_if_nothing_is_left_to_publish(
  tmp_path, tower, params, sample_store
):
  run_dir = RunDir(tmp_path)
  for step in (0, 4, 8):
    write(run_dir, params, step)
    refresh(run_dir, tower, sample_store, once=True)
  run_dir.snapshot_commit(1).unlink()  # as if killed there
  run_dir.done.write_text("done\n")
  assert refresh(run_dir, tower, sample_store, keep=1) == 0
  assert run_dir.snapshot_numbers() == run_dir.snapshot_versions() == [3]


def test_parameters_made_again_by_other_arithmetic_are_published_again(tmp_path, tower, params, sample_store):
  """With index.sync. Steps 4 and 8 are published already; the trainer resumes before 4, on another device."""
  run_dir, lines = RunDir(tmp_path), []
  write(run_dir, params, 0, 4, 8)
  assert refresh(run_dir, tower, sample_store, once=True, in_order=True) == 3
  writer = TowerWriter(run_dir, log=lines.append)
  other = jax.tree.map(lambda x: np.nextafter(x, np.float32(9)), scaled(params, 4))
  writer.write(4, other)
  writer.wait()
  assert lines == ["the export of step 4 was damaged, or made by other arithmetic: it is written again"]
  assert [is_refused(run_dir, version) for version in (1, 2, 3)] == [False, True, True]
  assert refresh(run_dir, tower, sample_store, once=True, in_order=True) == 2
  settings = AdoptionSettings(4, lag=4, timeout=1)
  follower = SnapshotFollower(
    run_dir, sample_store, settings, first_step=2, export_digest=writer.digest, log=lines.append
  )
  assert follower.adopt(8).manifest["params_digest"] == tree_digest(other)
  assert follower.version == 4


def test_old_snapshots_go(tmp_path, tower, params, sample_store):
  run_dir = RunDir(tmp_path)
  for step in (0, 10, 20):
    write(run_dir, params, step)
    refresh(run_dir, tower, sample_store, once=True, keep=2)
  assert run_dir.snapshot_versions() == [2, 3]


def damage(run_dir, step):
  path = next((run_dir.retriever / str(step) / "manifest").glob("metadata"))
  path.write_text(path.read_text().replace(json.loads(path.read_text())["digest"], "0" * 32))


def test_damaged_parameters_are_left_out_and_the_next_are_published(tmp_path, tower, params, sample_store):
  run_dir, lines = RunDir(tmp_path), []
  write(run_dir, params, 0, 10, 20)
  damage(run_dir, 20)
  assert refresh(run_dir, tower, sample_store, once=True, lines=lines) == 1
  assert published_steps(run_dir) == [10]  # the newest that is whole
  assert re.fullmatch(
    r"the parameters of step 20 are left out: .*/retriever/20 is damaged \(its seal .*\); the next export replaces it",
    lines[0],
  )
  write(run_dir, params, 30)
  assert refresh(run_dir, tower, sample_store, once=True) == 1
  assert published_steps(run_dir) == [10, 30]


def test_parameters_that_are_not_finite_are_left_out(tmp_path, tower, params, sample_store):
  run_dir, lines = RunDir(tmp_path), []
  bad = jax.tree.map(np.array, params)
  jax.tree.leaves(bad)[3][0] = np.nan
  with pytest.raises(SnapshotError, match="^the parameters of step 7 are not finite; nothing was published$"):
    make_refresher(run_dir, tower, sample_store, lines).refresh(Export(7, tree_digest(bad), bad))
  huge = jax.tree.map(lambda x: x * np.float32(1e38), params)  # finite, but what it embeds is not
  with pytest.raises(SnapshotError, match="nothing was published: the parameters of step 7 have diverged"):
    make_refresher(run_dir, tower, sample_store, lines).refresh(Export(7, tree_digest(huge), huge))
  assert run_dir.snapshot_numbers() == []


@pytest.mark.parametrize("lost", ["embeddings", "COMMIT"])
def test_a_damaged_snapshot_does_not_count_as_published(tmp_path, tower, params, sample_store, lost):
  run_dir, lines = RunDir(tmp_path), []
  write(run_dir, params, 0, 10)
  assert refresh(run_dir, tower, sample_store, once=True, in_order=True) == 2
  if lost == "COMMIT":
    run_dir.snapshot_commit(2).write_text("{")
  else:
    (run_dir.snapshot(2) / read_manifest(run_dir, 2)["writer"] / "embeddings").rmtree()
  assert refresh(run_dir, tower, sample_store, once=True, lines=lines) == 1
  assert lines[0].startswith("snapshot 2 does not count as published: ")
  assert load(run_dir, 3, sample_store).params_step == 10


def test_an_index_of_another_corpus_is_made_anew(tmp_path, tower, params, sample_store):
  run_dir = RunDir(tmp_path)
  write(run_dir, params, 0)
  other = copy.copy(sample_store)
  other.content_digest = "0" * 32
  assert refresh(run_dir, tower, other, once=True) == 1
  assert refresh(run_dir, tower, sample_store, once=True) == 1
  assert load(run_dir, 2, sample_store).params_step == 0


def test_slices_are_embedded_in_turn(tmp_path, tower, params, sample_store):
  run_dir, n = RunDir(tmp_path), len(sample_store)
  vocabulary = sample_store.vocabulary()

  def embedded(step):
    return embed_passages(tower, scaled(params, step), sample_store, vocabulary, batch_size=16).view(np.uint16)

  lines = []
  for step in (0, 10, 20):
    write(run_dir, params, step)
    refresh(run_dir, tower, sample_store, once=True, num_slices=3, lines=lines)  # each time in another process
  bounds = [0, n // 3, 2 * n // 3, n]
  manifest = read_manifest(run_dir, 3)
  assert manifest["slices"] == [[0, bounds[1], 10], [bounds[1], bounds[2], 20], [bounds[2], n, 0]]
  assert manifest["params_step"] == 20
  found = load(run_dir, 3, sample_store).passage_emb_ND.view(np.uint16)
  for begin, end, step in manifest["slices"]:
    np.testing.assert_array_equal(found[begin:end], embedded(step)[begin:end])
    assert step == 0 or (found[begin:end] != embedded(0)[begin:end]).any()
  assert [line.split(" passages")[0] for line in lines] == [
    f"snapshot 1: {n}", f"snapshot 2: {bounds[1]}", f"snapshot 3: {bounds[2] - bounds[1]}"
  ]  # fmt: skip
  # In one process, the same.
  together, lines = RunDir(tmp_path / "together"), []
  refresher = make_refresher(together, tower, sample_store, lines, num_slices=3)
  for step in (0, 10, 20):
    refresher.refresh(Export(step, tree_digest(scaled(params, step)), scaled(params, step)))
  assert read_manifest(together, 3)["embedding_digest"] == manifest["embedding_digest"]


def test_another_indexer_was_faster(tmp_path, tower, params, sample_store):
  run_dir, lines = RunDir(tmp_path), []
  refresher = make_refresher(run_dir, tower, sample_store, lines, num_slices=2)
  write(run_dir, params, 0, 10)
  assert refresh(run_dir, tower, sample_store, once=True) == 1
  assert refresher.refresh(Export(10, "", params)) is None
  assert lines == ["the parameters of step 10, or newer ones, were published by another indexer"]
  assert published_steps(run_dir) == [10]


@pytest.mark.parametrize("field", ["keep", "num_slices", "batch_size"])
def test_settings_below_one_are_refused(field):
  index = paper_config("pretrain").index
  assert refresh_settings(index)._replace(scann=None) == RefreshSettings()
  with index.unlocked():
    index[field] = 0
  with pytest.raises(ValueError, match=rf"^index\.{field}=0, expected at least 1$"):
    refresh_settings(index)


def test_what_a_trainer_with_sync_waits_for_is_kept():
  index = paper_config("pretrain").index
  with index.unlocked():
    index.update(keep=1, sync=True)
  assert refresh_settings(index).keep == 2
