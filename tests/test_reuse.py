"""Documents change: only the passages that did are embedded, the others are taken from the index of before."""

import json

import numpy as np
import pytest
from tiny_runs import write_run

from realm_jax.config import make_tower, stored_config
from realm_jax.data.build import build_passages
from realm_jax.data.passages import PassageStore
from realm_jax.data.sample import SAMPLE_PASSAGES
from realm_jax.data.spans import RuleTagger
from realm_jax.index.embed import embed_passages
from realm_jax.index.params import restore_params
from realm_jax.index.reuse import Known, known_embeddings, same_passages
from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import SnapshotError, load
from realm_jax.model.retriever import passage_tower_params


def build(path, vocabulary, records, **options):
  articles = path.with_suffix(".jsonl")
  articles.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
  options = {"passage_length": 256} | options
  build_passages(articles, path, vocabulary=vocabulary, tagger=RuleTagger(), whole=True, **options)
  return PassageStore(path)


@pytest.fixture(scope="module")
def changed_store(sample_vocabulary, tmp_path_factory):
  """Of the sample store's 40 passages, with new ids: 2 without, 3 and 4 exchanged, 7 with another text, 9 with another
  title, a word moved from the title to the text in 11, 40 added, and 0 there twice.
  """
  lines = SAMPLE_PASSAGES.read_text(encoding="utf-8").splitlines()[:41]
  records = [json.loads(line) for line in lines]
  records[3], records[4] = records[4], records[3]
  records[7]["text"] += " It was so."
  records[9]["title"] = "Another title"
  records[11] |= {"title": "", "text": f"{records[11]['title']} {records[11]['text']}"}
  records = [*records[:2], *records[3:], records[0]]
  records = [record | {"id": f"new {i}"} for i, record in enumerate(records)]
  return build(tmp_path_factory.mktemp("changed") / "store", sample_vocabulary, records)


# Of the changed store's passages, in the sample store.
ROWS = [0, 1, 4, 3, 5, 6, -1, 8, -1, 10, -1, *range(12, 40), -1, 0]


def test_the_same_passages_are_found_by_their_tokens(sample_store, changed_store):
  assert same_passages(changed_store, sample_store).tolist() == ROWS
  assert same_passages(sample_store, sample_store).tolist() == list(range(40))


def test_keys_that_agree_by_chance_are_told_apart(sample_store, changed_store, monkeypatch):
  monkeypatch.setattr("realm_jax.index.reuse._keys", lambda store: np.zeros(len(store), np.uint64))
  found = same_passages(changed_store, sample_store)
  assert set(found.tolist()) == {-1, 0} and found[0] == found[-1] == 0  # one of all is looked at, and the tokens decide


def test_only_what_changed_is_embedded(sample_store, changed_store, realm, tmp_path):
  old, new = write_run(tmp_path / "old", sample_store), tmp_path / "new"  # whose embeddings are random
  convert = ["convert", f"--input={old.path}", "--to=realm", f"--corpus={changed_store.path}", f"--output={new}"]
  assert realm(*convert)[0] == 0
  status, out, err = realm("refresh_index", f"--workdir={new}", "--once", f"--reuse={old.path}")
  assert status == 0, err
  assert "\n37 of 41 passages are in the index of " in f"\n{out}"
  config = stored_config(old.read_config())
  tower = make_tower(config.model, changed_store.description["vocabulary_size"])
  params = passage_tower_params(restore_params(old)[1]["retriever"])
  embedded = embed_passages(tower, params, changed_store, changed_store.vocabulary(), batch_size=256)
  before, row_N = load(old, 2, sample_store).passage_emb_ND, np.array(ROWS)
  wanted = np.where(row_N[:, None] >= 0, before[row_N], embedded).astype(np.float32)
  found = load(RunDir(new), 1, changed_store).passage_emb_ND.astype(np.float32)
  np.testing.assert_array_equal(found[row_N >= 0], wanted[row_N >= 0])
  np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-2)
  assert np.abs(before[:1].astype(np.float32) - embedded[:1].astype(np.float32)).max() > 0.1  # they can be told apart


def test_what_can_not_be_reused_is_refused(sample_store, changed_store, sample_vocabulary, tmp_path, realm):
  old = write_run(tmp_path / "old", sample_store)
  other = write_run(tmp_path / "other", sample_store, steps=(5,))
  other.snapshot_commit(1).unlink()
  status, _, err = realm("refresh_index", f"--workdir={other.path}", "--once", f"--reuse={old.path}")
  assert status == 1 and "was made with other parameters than are to embed now; leave out --reuse" in err
  short = build(tmp_path / "short", sample_vocabulary, [{"id": "1", "title": "a", "text": "b"}], passage_length=64)
  with pytest.raises(ValueError, match="differ in passage_length: 64 and 256; build .* with --vocab=.*length=256"):
    known_embeddings(old, sample_store, short)
  for version in old.snapshot_versions():
    old.snapshot_commit(version).unlink()
  with pytest.raises(SnapshotError, match="has no index to take embeddings from; leave out --reuse"):
    known_embeddings(old, sample_store, changed_store)


def test_nothing_is_embedded_where_nothing_changed(sample_store):
  known = Known("old", np.arange(40), np.arange(320).reshape(40, 8), "unused")
  assert known.num_known == 40
  assert known.completed(np.arange(3, 7), np.empty((0, 8))).tolist() == np.arange(320).reshape(40, 8)[3:7].tolist()
