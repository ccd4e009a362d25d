"""BM25 over titles and bodies: the baseline that a learnt retriever has to beat."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import Stemmer

from realm_jax.data.passages import PassageStore


class Bm25:
  """Lucene's BM25 with k1 0.9 and b 0.4, English stemming and stop words."""

  DESCRIPTION = "bm25-lucene-0.9-0.4-english"  # of the settings, for what is made with them

  def __init__(self, store: PassageStore):
    self._stemmer = Stemmer.Stemmer("english")
    self._index = _bm25s().BM25(method="lucene", k1=0.9, b=0.4)
    texts = (f"{store.title(i)} {store.body(i)}" for i in range(len(store)))
    self._index.index(self._tokenize(list(texts)), show_progress=False)

  def retrieve(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and passage rows, [B, k], best first."""
    passage_id_BK, score_BK = self._index.retrieve(self._tokenize(questions), k=k, show_progress=False)
    return np.asarray(score_BK), np.asarray(passage_id_BK)

  def _tokenize(self, texts: Sequence[str]):
    return _bm25s().tokenize(list(texts), stopwords="en", stemmer=self._stemmer, show_progress=False)


def _bm25s() -> ModuleType:
  """Imported when it is used: it computes something on JAX, after which a host can no longer join others."""
  import bm25s  # noqa: PLC0415

  logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of every index that it builds
  return bm25s
