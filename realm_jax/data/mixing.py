"""Masked sentences for pre-training, from the retrieval corpus or from a mixture of corpora."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from realm_jax.batch import NO_PASSAGE, QueryBatch
from realm_jax.data.draws import uniform
from realm_jax.data.masking import MASKINGS
from realm_jax.data.passages import PassageStore
from realm_jax.data.queries import MaskedSentenceSource, QuerySource, RandomMaskSource

_MIXTURE_STREAM = 6  # of the random numbers; the sources use 1 to 5


def masked_sentences(
  store: PassageStore, *, masking: str, mixture: str = "", recurring_rate: float = 0.0, **draw
) -> QuerySource:
  """The masked sentences that a config asks for.

  Args:
    store: the retrieval corpus.
    masking: one of MASKINGS.
    mixture: corpora to draw sentences from and their rates, such as "corpora/news:0.8,corpora/wiki:0.2"; empty for the
      retrieval corpus alone.
    recurring_rate: see MaskedSentenceSource.
    draw: seed, query_length, max_masks.

  Raises:
    ValueError: no such masking, a mixture that can't be read, or corpora with different vocabularies.
  """
  if masking not in MASKINGS:
    raise ValueError(f"unknown masking {masking!r}; expected one of {', '.join(MASKINGS)}")

  if masking != "salient_span" and recurring_rate:
    raise ValueError(f"recurring_rate={recurring_rate} is for masking=salient_span; set it to 0 for {masking}")

  def source_of(corpus: PassageStore) -> QuerySource:
    if masking == "salient_span":
      return MaskedSentenceSource(corpus, recurring_rate=recurring_rate, **draw)
    return RandomMaskSource(corpus, masking, **draw)

  if not mixture:
    return source_of(store)
  sources: list[QuerySource] = []
  rates = parse_mixture(mixture)
  for path in rates:
    corpus = PassageStore(path)
    if corpus.description["vocabulary_digest"] != store.description["vocabulary_digest"]:
      raise ValueError(
        f"the corpora {path} and {store.path} have different vocabularies; "
        f"build {path} again with --vocab={store.path / 'vocab.txt'}"
      )
    source = source_of(corpus)
    sources.append(source if corpus.content_digest == store.content_digest else ForeignSource(source))
  return MixedSource(sources, list(rates.values()), seed=draw["seed"])


def parse_mixture(text: str) -> dict[str, float]:
  """ "a:0.3,b:0.7" -> {"a": 0.3, "b": 0.7}; rates are relative to each other."""
  rates: dict[str, float] = {}
  for part in text.split(","):
    path, _, rate = part.strip().rpartition(":")
    try:
      value = float(rate)
    except ValueError:
      value = 0.0
    if not path or not 0 < value < float("inf"):
      raise ValueError(f"{part!r} in the mixture {text!r} is no corpus with a rate above 0, such as corpora/mine:0.3")
    if path in rates:
      raise ValueError(f"the mixture {text!r} names {path} twice; give it once, with the sum of the rates")
    rates[path] = value
  return rates


class MixedSource:
  """Each example number belongs to one of several sources, drawn in proportion to the rates.

  What a number stands for within its source is the same as without a mixture. While N numbers pass, a corpus of N
  passages at rate r shows the share r of them, none twice.
  """

  def __init__(self, sources: Sequence[QuerySource], rates: Sequence[float], *, seed: int):
    self._sources, self._seed = sources, seed
    self._share_up_to = np.cumsum(rates)[:-1] / np.sum(rates)

  def source_of(self, number_B: np.ndarray) -> np.ndarray:
    """Index of the source that each number belongs to."""
    return np.searchsorted(self._share_up_to, uniform(self._seed, _MIXTURE_STREAM, number_B), side="right")

  def draw(self, number_B: np.ndarray) -> QueryBatch:
    source_B = self.source_of(number_B)
    order_B = np.argsort(source_B, kind="stable")
    parts = [source.draw(number_B[source_B == i]) for i, source in enumerate(self._sources) if (source_B == i).any()]
    return QueryBatch(*(np.concatenate(columns)[np.argsort(order_B)] for columns in zip(*parts)))


class ForeignSource:
  """Sentences of a corpus that isn't searched: they have no own passage that retrieval must leave out."""

  def __init__(self, source: QuerySource):
    self._source = source

  def draw(self, number_B: np.ndarray) -> QueryBatch:
    batch = self._source.draw(number_B)
    return batch._replace(
      passage_id_B=np.full_like(batch.passage_id_B, NO_PASSAGE),
      sentence_B2=np.zeros_like(batch.sentence_B2),
      sentence_is_removed_B=np.zeros_like(batch.sentence_is_removed_B),
    )
