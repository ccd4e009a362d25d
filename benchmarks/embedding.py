"""Measures what batches by length save in embedding a corpus, and what ScaNN finds among its real embeddings.

  python benchmarks/embedding.py --corpus=corpora/mine

Embeds with realm-tiny, twice: as the indexer does, and with every passage padded to the corpus' passage length. The
queries of the search are the corpus' own titles, embedded as queries; recall@8 is the share of the exact eight best.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from unittest import mock

import jax
import numpy as np
from absl import app, flags

from realm_jax.config import make_retriever, paper_config
from realm_jax.data.packing import pack
from realm_jax.data.passages import PassageStore
from realm_jax.index import embed
from realm_jax.index.searcher import ExactSearcher, ScannSearcher, scann_settings
from realm_jax.training.start import initial_params
from realm_jax.weights.source import read_weights

_CORPUS = flags.DEFINE_string("corpus", None, "A passage store with realm-tiny's vocabulary.", required=True)
_WEIGHTS = flags.DEFINE_string("weights", "realm_jax/weights/tiny", "A retriever.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Passages at once.", 1)
_NUM_TIMED = flags.DEFINE_integer("num_timed", 4096, "Passages in the comparison of batches.", 1)


def main(argv: list[str]) -> None:
  del argv
  store = PassageStore(_CORPUS.value)
  vocabulary = store.vocabulary()
  config = paper_config("ict")
  config.update(corpus=_CORPUS.value, init=_WEIGHTS.value)
  known = {field: value for field, value in read_weights(_WEIGHTS.value).model.items() if field in config.model}
  config.model.update(known)
  params = initial_params(config, vocabulary)["retriever"]
  retriever = make_retriever(config.model, len(vocabulary))
  tower_params = params.get("passage_tower", params["query_tower"])
  num_timed = min(_NUM_TIMED.value, len(store))

  def run(end: int, *, is_full_length: bool) -> tuple[np.ndarray, float]:
    full = mock.patch.object(embed, "_padded_length", lambda s, b, e: np.full(e - b, s.passage_length))
    started = time.monotonic()
    options = {"batch_size": _BATCH_SIZE.value, "end": end}
    with full if is_full_length else contextlib.nullcontext():
      emb_ND = embed.embed_passages(retriever.make_tower(), tower_params, store, vocabulary, **options)
    return emb_ND, time.monotonic() - started

  ratios = []
  for is_full_length in (False, True):  # compiles
    run(num_timed, is_full_length=is_full_length)
  for _ in range(3):
    ratios.append(run(num_timed, is_full_length=True)[1] / run(num_timed, is_full_length=False)[1])
  emb_ND, seconds = run(len(store), is_full_length=False)
  row = np.arange(0, len(store), max(1, len(store) // 1000))
  query = pack(store.title_tokens(row), None, 32, vocabulary)
  embed_queries = jax.jit(lambda packed: retriever.apply({"params": params}, packed, method="embed_queries"))
  query_BD = np.asarray(embed_queries(query))
  result = {
    "cores": os.cpu_count(), "load": os.getloadavg()[0], "num_passages": len(store),
    "passage_length": store.passage_length, "mean_length": float(embed._padded_length(store, 0, len(store)).mean()),
    "full_length_over_buckets": sorted(ratios)[1], "passages_per_s": len(store) / seconds,
  }  # fmt: skip
  found = {}
  for name, searcher in {
    "exact": ExactSearcher(emb_ND),
    "scann": ScannSearcher.build(emb_ND.astype(np.float32), scann_settings(len(store))),
  }.items():
    searcher.search(query_BD, 8)
    started = time.monotonic()
    found[name] = searcher.search(query_BD, 8)[1]
    result[f"{name}_queries_per_s"] = len(query_BD) / (time.monotonic() - started)
  hits = [len(set(a) & set(b)) for a, b in zip(found["exact"].tolist(), found["scann"].tolist())]
  result["recall_at_8"] = sum(hits) / (8 * len(query_BD))
  print(json.dumps(result, indent=1))


if __name__ == "__main__":
  app.run(main)
