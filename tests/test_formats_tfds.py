"""Data sets of TFDS: mocked ones are read, our own goes out and comes back."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from realm_jax.data.articles import Article, BadRecord, Rejections
from realm_jax.data.build import build_passages
from realm_jax.data.formats_tfds import TFDS
from realm_jax.data.passages import PassageStore
from realm_jax.data.realm_passages import export_tfds
from realm_jax.data.sources import find_sources, read_articles
from realm_jax.data.spans import NoTagger, Span


@pytest.fixture(scope="module")
def exported(sample_store, tmp_path_factory) -> str:
  return export_tfds(sample_store.path, tmp_path_factory.mktemp("tfds"))


def test_wikipedia():
  with tfds.testing.mock_data(num_examples=3, as_dataset_fn=_as_dataset([("A", "One."), ("Ä", "Zwei."), ("C", "")])):
    rejections = Rejections()
    articles = list(read_articles(["tfds:wikipedia/20230601.en"], rejections=rejections))
  assert articles == [Article("0", "A", "One."), Article("1", "Ä", "Zwei.")]
  assert rejections.count == {'an empty "text"': 1}


def _as_dataset(rows, spans=None):
  import tensorflow as tf  # noqa: PLC0415 seconds

  def as_dataset(self, *args, **kwargs):
    columns = {"title": [title for title, _ in rows], "text": [text.encode() for _, text in rows]}
    if spans is not None:
      columns["spans"] = {key: tf.ragged.constant([s[key] for s in spans]) for key in ("start", "limit", "type")}
    return tf.data.Dataset.from_tensor_slices(columns)

  return as_dataset


def test_salient_span_wikipedia_brings_its_spans(tmp_path, sample_vocabulary):
  rows = [(f"T{n}", f"Zoë met Ada on 8 July 18{n:02d}.") for n in range(10, 13)]
  spans = [{"start": [9, 16], "limit": [12, 27], "type": ["entity", "DATE"]}] * 3  # Zoë has four bytes
  with tfds.testing.mock_data(as_dataset_fn=_as_dataset(rows, spans)):
    build_passages(
      "tfds:salient_span_wikipedia/sentences",
      tmp_path / "store",
      vocabulary=sample_vocabulary,
      passage_length=64,
      tagger=NoTagger(),
    )
  store = PassageStore(tmp_path / "store")
  assert [store.id(i) for i in range(3)] == ["0", "1", "2"]
  assert store.description["num_spans"] | {"date": 3, "entity": 3} == store.description["num_spans"]
  assert store.span_offset.tolist() == [0, 2, 4, 6]
  char_range = sample_vocabulary.encode([store.body(0)])[0].char_range
  words = [store.body(0)[char_range[first, 0] : char_range[end - 1, 1]] for first, end, *_ in store.span[:2]]
  assert words == ["Ada", "8 July 1810"]


@pytest.mark.parametrize(
  ("start", "limit", "reason"),
  [
    (7, 8, None),
    (3, 6, "a span or sentence that begins or ends within a character"),
    *((start, limit, "a span or sentence outside of the text") for start, limit in ((0, 7), (4, 4), (4, 9), (-1, 5))),
  ],
)
def test_spans_that_are_none(start, limit, reason):
  record = {"id": 1, "title": "", "text": " \u00a0Zoë.", "spans": {"start": [start], "limit": [limit], "type": ["x"]}}
  if reason is None:
    assert TFDS.parse(json.dumps(record).encode()).spans == (Span(3, 4, "entity"),)
    return
  with pytest.raises(BadRecord) as error:
    TFDS.parse(json.dumps(record).encode())
  assert str(error.value) == reason


def test_ours_is_read_at_random(exported, sample_store):
  data_source = tfds.builder_from_directory(exported).as_data_source(split="train")
  assert len(data_source) == len(sample_store) == 40
  for i in (39, 0, 17):
    example = data_source[i]
    text = example["text"].decode()
    assert (example["id"].decode(), example["title"].decode()) == (sample_store.id(i), sample_store.title(i))
    assert text == sample_store.body(i)
    length = int(sample_store.title_length_N[i]) + int(sample_store.body_length_N[i])
    np.testing.assert_array_equal(example["token_id"], sample_store.padded_tokens(np.array(i))[:length])
    assert len(example["spans"]["start"]) == np.diff(sample_store.span_offset)[i] > 0
    for start, limit in zip(example["spans"]["start"], example["spans"]["limit"]):
      assert text.encode()[start:limit].decode().strip() != ""
    np.testing.assert_array_equal(example["sentences"]["start"][1:], example["sentences"]["limit"][:-1])


def test_ours_comes_back_as_the_same_store(exported, sample_store, sample_vocabulary, tmp_path):
  build_passages(
    f"tfds:{exported}", tmp_path / "store", vocabulary=sample_vocabulary, passage_length=256, tagger=NoTagger()
  )
  assert PassageStore(tmp_path / "store").content_digest == sample_store.content_digest


def test_unknown_data_sets_are_named(tmp_path):
  with pytest.raises(ValueError, match="TFDS has no data set 'no_such_set'"):
    list(find_sources(["tfds:no_such_set"])[0].records())
  with (
    tfds.testing.mock_data(num_examples=1),
    pytest.raises(ValueError, match=r"tfds:mnist has the features \['image', 'label'\]; expected title and text"),
  ):
    list(find_sources(["tfds:mnist"])[0].records())
