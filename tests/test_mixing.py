"""Mixtures: which corpus a number belongs to, and what becomes of its sentences."""

import itertools

import numpy as np
import pytest
from batches import equal, rows

from realm_jax.batch import NO_PASSAGE
from realm_jax.data.articles import Article
from realm_jax.data.mixing import ForeignSource, MixedSource, masked_sentences, parse_mixture
from realm_jax.data.passages import PassageStore, PassageWriter
from realm_jax.data.queries import MaskedSentenceSource, RandomMaskSource
from realm_jax.data.spans import Span
from realm_jax.data.splitting import split_articles
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary

OPTIONS = {"seed": 5, "query_length": 24, "max_masks": 4}


def write(path, text, vocabulary) -> PassageStore:
  with PassageWriter(path, vocabulary, passage_length=32) as writer:
    for passage in split_articles([Article("0", "", text)], vocabulary, passage_length=32):
      writer.add(passage, [Span(0, len(text.split()[0]), "entity")])
    writer.finish({})
  return PassageStore(path)


@pytest.fixture(scope="module")
def other_store(sample_vocabulary, tmp_path_factory):
  return write(tmp_path_factory.mktemp("other") / "store", "Paris is a large city.", sample_vocabulary)


def test_parse_mixture():
  assert parse_mixture("corpora/mine:0.3, gs://b/wiki:7") == {"corpora/mine": 0.3, "gs://b/wiki": 7.0}


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("a", "'a' in the mixture 'a' is no corpus with a rate above 0, such as corpora/mine:0.3"),
    ("a:1,b:x", "'b:x' in the mixture"),
    ("a:1,", "'' in the mixture"),
    ("a:0", "'a:0' in the mixture"),
    ("a:-1", "'a:-1' in the mixture"),
    ("a:nan", "'a:nan' in the mixture"),
    ("a:inf", "'a:inf' in the mixture"),
    (":1", "':1' in the mixture"),
    ("a:1,b:2,a:3", "the mixture 'a:1,b:2,a:3' names a twice; give it once, with the sum of the rates"),
  ],
)
def test_a_mixture_that_is_none(text, message):
  with pytest.raises(ValueError) as error:
    parse_mixture(text)
  assert message in str(error.value)


def test_without_a_mixture_the_corpus_is_the_source(sample_store):
  number = np.arange(50)
  source = masked_sentences(sample_store, masking="salient_span", **OPTIONS)
  equal(source.draw(number), MaskedSentenceSource(sample_store, **OPTIONS).draw(number))
  source = masked_sentences(sample_store, masking="random_token", **OPTIONS)
  equal(source.draw(number), RandomMaskSource(sample_store, "random_token", **OPTIONS).draw(number))


def test_an_unknown_masking_is_named(sample_store):
  message = "unknown masking 'span'; expected one of salient_span, random_span, random_token"
  with pytest.raises(ValueError, match=message):
    masked_sentences(sample_store, masking="span", **OPTIONS)


@pytest.mark.parametrize("masking", ["salient_span", "random_span", "random_token"])
def test_rows_come_from_their_corpus(sample_store, other_store, masking):
  mixture = f"{sample_store.path}:3,{other_store.path}:1"
  source = masked_sentences(sample_store, masking=masking, mixture=mixture, **OPTIONS)
  number = np.arange(300)
  batch, source_B = source.draw(number), source.source_of(number)
  own, other = (masked_sentences(store, masking=masking, **OPTIONS) for store in (sample_store, other_store))
  equal(rows(batch, source_B == 0), own.draw(number[source_B == 0]))
  foreign, drawn = rows(batch, source_B == 1), other.draw(number[source_B == 1])
  # Its passages aren't in the index, so none must be left out of what is retrieved.
  np.testing.assert_array_equal(foreign.passage_id_B, NO_PASSAGE)
  assert not foreign.sentence_B2.any() and not foreign.sentence_is_removed_B.any()
  for field in ("token_id_BQ", "num_tokens_B", "mask_position_BM", "mask_target_BM", "mask_weight_BM"):
    np.testing.assert_array_equal(getattr(foreign, field), getattr(drawn, field))
  assert abs((source_B == 0).mean() - 0.75) < 4 * (0.75 * 0.25 / 300) ** 0.5


def test_a_number_names_a_query(sample_store, other_store):
  mixture = f"{other_store.path}:0.5,{sample_store.path}:0.5"
  source = masked_sentences(sample_store, masking="salient_span", mixture=mixture, **OPTIONS)
  together = source.draw(np.arange(200))
  number = np.array([199, 0, 77, 77, 3])
  equal(source.draw(number), rows(together, number))
  for begin, end in itertools.pairwise(range(0, 200, 40)):
    equal(source.draw(np.arange(begin, end)), rows(together, slice(begin, end)))


def test_rates_hold_in_every_stretch_and_seeds_differ(sample_store):
  source = MixedSource([None] * 3, [1, 2, 5], seed=1)
  source_B = source.source_of(np.arange(40_000))
  share = np.stack([np.bincount(part, minlength=3) for part in source_B.reshape(4, -1)]) / 10_000
  np.testing.assert_allclose(share, np.tile([0.125, 0.25, 0.625], (4, 1)), atol=4 * (0.25 / 10_000) ** 0.5)
  other = MixedSource([None] * 3, [1, 2, 5], seed=2).source_of(np.arange(40_000))
  assert 0.3 < (source_B == other).mean() < 0.7


def test_a_foreign_source_keeps_its_queries(sample_store):
  drawn = MaskedSentenceSource(sample_store, **OPTIONS)
  foreign = ForeignSource(drawn).draw(np.arange(9))
  assert (drawn.draw(np.arange(9)).passage_id_B >= 0).all()
  assert foreign.passage_id_B.tolist() == [NO_PASSAGE] * 9 and foreign.passage_id_B.dtype == np.int32


def test_corpora_must_share_the_vocabulary(sample_store, tmp_path):
  vocabulary = Vocabulary([*SPECIAL_TOKENS, *"abcdefgh"], lowercase=True)
  other = write(tmp_path / "store", "A b c.", vocabulary)
  with pytest.raises(ValueError) as error:
    masked_sentences(sample_store, masking="salient_span", mixture=f"{other.path}:1", **OPTIONS)
  assert str(error.value) == (
    f"the corpora {other.path} and {sample_store.path} have different vocabularies; "
    f"build {other.path} again with --vocab={sample_store.path / 'vocab.txt'}"
  )
