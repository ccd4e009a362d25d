"""Mined neighbours: which passages they are, and what becomes of them on the disk."""

import json
import subprocess
import sys

import numpy as np
import pytest
from test_retrieve import build_store

from realm_jax import cli
from realm_jax.config import paper_config
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from realm_jax.index import neighbours
from realm_jax.index.bm25 import Bm25
from realm_jax.index.neighbours import mine_neighbours, read_neighbours
from realm_jax.training.stages import make_stage

WORDS = "comet tail orbit dust bread oven flour yeast salt sugar whale ship pan . comets bake".split()
ARTICLES = [
  ("comet", "Comet tail orbit dust. Bread whale."),
  ("tail", "Comet orbit dust. Whale ship flour pan."),  # shares four words with the first
  ("orbit", "Salt whale. Oven sugar."),  # one word
  ("dust", "Sugar yeast. Comet tail orbit dust. Whale bake."),  # all, and a sentence of the first as it is
  ("flour", "Yeast salt. Oven."),  # none
  ("ship", "Orbit tail dust comet. Salt ship."),  # four, in another order
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  vocabulary = Vocabulary([*SPECIAL_TOKENS, *WORDS], lowercase=True)
  return build_store(tmp_path_factory.mktemp("neighbours"), vocabulary, ARTICLES)


@pytest.fixture
def small_parts(monkeypatch):
  monkeypatch.setattr(neighbours, "_PART", 4)
  monkeypatch.setattr(neighbours, "_BATCH", 3)


def similar_by_hand(store, i):
  """The others with a score, by Lucene's formula with stemmed words, k1 0.9 and b 0.4."""
  texts = [f"{title} {text}".lower().replace(".", "").split() for title, text in ARTICLES]
  texts = [[word.removesuffix("s") for word in words] for words in texts]
  mean_length = np.mean([len(words) for words in texts])

  def score(words):
    total = 0.0
    for word in texts[i]:
      found_in = sum(word in other for other in texts)
      weight = np.log(1 + (len(texts) - found_in + 0.5) / (found_in + 0.5))
      count = words.count(word)
      total += weight * count / (count + 0.9 * (0.6 + 0.4 * len(words) / mean_length))
    return total

  scores = np.array([score(words) for words in texts])
  order = np.argsort(-scores, kind="stable")
  assert np.diff(np.sort(scores[scores > 0])).min() > 1e-3  # no ties
  return [int(j) for j in order if scores[j] > 0 and j != i]


def test_neighbours_are_bm25_s_but_for_the_passage_and_those_with_its_sentences(store, tmp_path, small_parts):
  assert mine_neighbours(store, tmp_path / "n", 4) == (read_neighbours(tmp_path / "n", store) >= 0).sum()
  neighbour_id_NR = read_neighbours(tmp_path / "n", store)
  assert neighbour_id_NR.shape == (6, 4) and neighbour_id_NR.dtype == np.int32
  holds_a_sentence_of = {0: {3}, 3: {0}}
  for i in range(6):
    by_hand = similar_by_hand(store, i)
    expected = [j for j in by_hand if j not in holds_a_sentence_of.get(i, ())][:4]
    assert neighbour_id_NR[i].tolist() == expected + [-1] * (4 - len(expected)), i
  assert 3 in similar_by_hand(store, 0) and 3 not in neighbour_id_NR[0]


def test_a_search_that_was_stopped_goes_on(store, tmp_path, small_parts, monkeypatch):
  mine_neighbours(store, tmp_path / "whole", 3)
  searched = []
  search = neighbours._search
  monkeypatch.setattr(neighbours, "_search", lambda *args: searched.append(args[2]) or search(*args))

  def stop_after_one(begins):
    yield next(iter(begins))
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    mine_neighbours(store, tmp_path / "n", 3, stop_after_one)
  assert searched == [0, 3]
  with pytest.raises(FileNotFoundError, match="no hard negatives at .*n .*realm mine_negatives"):
    read_neighbours(tmp_path / "n", store)
  mine_neighbours(store, tmp_path / "n", 3)
  assert searched == [0, 3, 4]
  whole = read_neighbours(tmp_path / "whole", store)
  np.testing.assert_array_equal(read_neighbours(tmp_path / "n", store), whole)

  part = tmp_path / "n" / "000000000.npz"
  part.write_bytes(part.read_bytes()[:-30])
  with pytest.raises(ValueError, match="000000000.npz is not what was written .*realm mine_negatives"):
    read_neighbours(tmp_path / "n", store)
  mine_neighbours(store, tmp_path / "n", 3)  # makes the damaged part again, and no other
  assert searched == [0, 3, 4, 0, 3]
  np.testing.assert_array_equal(read_neighbours(tmp_path / "n", store), whole)


def test_neighbours_of_something_else_are_refused(store, sample_store, tmp_path):
  mine_neighbours(store, tmp_path / "n", 3)
  with pytest.raises(ValueError, match="another corpus or of other settings; choose another --output"):
    mine_neighbours(store, tmp_path / "n", 2)
  with pytest.raises(ValueError, match="hard negatives of another corpus than"):
    read_neighbours(tmp_path / "n", sample_store)
  manifest = tmp_path / "n" / "neighbours.json"
  manifest.write_text(manifest.read_text().replace('"num_neighbours": 3', '"num_neighbours": 1'))
  with pytest.raises(ValueError, match="neighbours.json is damaged"):
    read_neighbours(tmp_path / "n", store)


def test_bm25s_tells_nothing_of_itself(sample_store):
  """In a process of its own: bm25s sets up its logger when it is imported."""
  code = f"""
import logging
logging.basicConfig()
from realm_jax.data.passages import PassageStore
from realm_jax.index.bm25 import Bm25
Bm25(PassageStore({str(sample_store.path)!r})).retrieve(["Who discovered radium?"], 3)
"""
  ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert (ended.stdout, ended.stderr) == ("", "")


def test_the_verb_and_the_stage(store, tmp_path, capsys):
  output = tmp_path / "negatives"
  assert cli.run(["mine_negatives", f"--corpus={store.path}", f"--output={output}", "--num_neighbours=3"]) == 0
  neighbour_id_NR = read_neighbours(output, store)
  assert capsys.readouterr().out == f"{output}: {(neighbour_id_NR >= 0).sum()} neighbours of 6 passages\n"
  config = paper_config("ict")
  config.update(corpus=str(store.path), num_hard_negatives=2, query_length=16)
  with pytest.raises(ValueError, match=f"realm mine_negatives --corpus={store.path} --output=DIR, and set"):
    make_stage(config, store, store.vocabulary())
  config.hard_negatives = str(output)
  stage = make_stage(config, store, store.vocabulary())
  queries = stage.source.draw(np.arange(8))
  batch = stage.make_batch(queries, None, None)
  assert batch.passage_BKP.token_id.shape == (8, 3, 32)
  for i, negatives in zip(queries.passage_id_B, queries.negative_id_BK[:, 1:]):
    assert set(negatives.tolist()) <= set(neighbour_id_NR[i].tolist())

  config.stage = "mlm"
  with pytest.raises(ValueError, match="hard negatives are for the stage ict; leave num_hard_negatives at 0 for mlm"):
    make_stage(config, store, store.vocabulary())


def test_what_the_manifest_says(store, tmp_path):
  mine_neighbours(store, tmp_path / "n", 3)
  manifest = json.loads((tmp_path / "n" / "neighbours.json").read_text())
  assert manifest["searcher"] == Bm25.DESCRIPTION == "bm25-lucene-0.9-0.4-english"
  assert (manifest["corpus_digest"], manifest["num_passages"]) == (store.content_digest, 6)
  assert set(manifest["file_digest"]) == {"000000000.npz"}
