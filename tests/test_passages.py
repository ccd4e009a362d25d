"""The passage store: what is written is read back, damage is seen, failures leave nothing."""

import json
import os

import numpy as np
import pytest

from realm_jax.data.articles import Article
from realm_jax.data.passages import PassageStore, PassageWriter
from realm_jax.data.spans import KINDS, Span
from realm_jax.data.splitting import split_articles
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary

WORDPIECES = ["marie", "cu", "##rie", "was", "born", "in", "paris", ".", "1867", "e"]
VOCABULARY = Vocabulary([*SPECIAL_TOKENS, *WORDPIECES], lowercase=True)
ARTICLES = [
  Article("first", "Marie", "Marie Curie was born. In Paris in 1867."),
  Article("é", "", "É."),
  Article("3", "Paris", "Born in Paris."),
]
FILES = [
  *("token", "title_length", "body_length", "id", "title", "body", "sentence_start", "span"),
  *("token_offset", "id_offset", "title_offset", "body_offset", "sentence_start_offset", "span_offset"),
]


def write(path, *spans: list[Span], articles=ARTICLES, vocabulary=VOCABULARY, passage_length=16) -> PassageStore:
  """A store whose passage i has the i-th list of spans."""
  with PassageWriter(path, vocabulary, passage_length=passage_length) as writer:
    for i, passage in enumerate(split_articles(articles, vocabulary, passage_length=passage_length)):
      writer.add(passage, spans[i] if i < len(spans) else [])
    writer.finish({"source": "by hand"})
  return PassageStore(path)


@pytest.fixture
def store(tmp_path) -> PassageStore:
  return write(tmp_path / "store", [Span(6, 11, "person"), Span(34, 38, "date")], [], [Span(8, 13, "location")])


def test_text_comes_back(store):
  assert len(store) == store.num_passages == 3
  assert [store.id(i) for i in range(3)] == ["first", "é", "3"]
  assert [store.title(i) for i in range(3)] == ["Marie", "", "Paris"]
  assert [store.body(i) for i in range(3)] == [a.text for a in ARTICLES]


def test_passages_are_found_by_their_name_or_their_article_s(tmp_path):
  long = Article("long#1", "", "Born in Paris. Marie was born. Paris was born.")
  store = write(tmp_path / "store", articles=[*ARTICLES, long], passage_length=12)
  assert [store.id(i) for i in range(len(store))] == ["first#0", "first#1", "é", "3", "long#1#0", "long#1#1"]
  rows = store.rows_named(["first", "é", "long#1", "long#1#1", "1", "long", "nowhere"])
  assert rows == {"first": [0, 1], "é": [2], "long#1": [4, 5], "long#1#1": [5]}
  assert store.rows_named([]) == {}


def test_tokens_come_back(store):
  assert store.padded_tokens(np.arange(3)).tolist() == [
    [5, 5, 6, 7, 8, 9, 12, 10, 11, 10, 13, 12, 0, 0, 0, 0],
    [14, 12] + [0] * 14,
    [11, 9, 10, 11, 12] + [0] * 11,
  ]
  assert store.title_length_N.tolist() == [1, 0, 1]
  assert store.body_length_N.tolist() == [11, 2, 4]
  assert store.sentence_offset.tolist() == [0, 2, 3, 4]
  assert store.sentence_start.tolist() == [0, 6, 0, 0]


def test_spans_become_body_tokens(store):
  assert store.span_offset.tolist() == [0, 2, 2, 3]
  person, date, location = (KINDS.index(kind) for kind in ("person", "date", "location"))
  assert store.span.tolist() == [[1, 3, 0, person], [9, 10, 1, date], [2, 3, 0, location]]


@pytest.mark.parametrize(
  ("characters", "tokens"),
  [
    ((0, 11), [[0, 3, 0, 1]]),  # Marie Curie
    ((6, 9), [[1, 2, 0, 1]]),  # Cur: of cu ##rie only the first piece lies inside
    ((7, 11), [[2, 3, 0, 1]]),  # urie
    ((7, 9), []),  # ur: no piece lies inside
    ((5, 6), []),  # a space
    ((16, 24), []),  # born. In: two sentences
    ((16, 22), [[4, 6, 0, 1]]),  # born. and the space behind it
    ((22, 39), [[6, 11, 1, 1]]),  # the second sentence
    ((0, 39), []),
  ],
)
def test_only_tokens_strictly_inside_a_span_and_a_sentence_count(tmp_path, characters, tokens):
  store = write(tmp_path / "store", [Span(*characters, "entity")])
  assert store.span.tolist() == tokens
  assert store.description["num_spans"]["entity"] == len(tokens)


def test_a_store_without_spans(tmp_path):
  store = write(tmp_path / "store")
  assert store.span.shape == (0, 4)
  assert store.span_offset.tolist() == [0, 0, 0, 0]
  store.verify()


def test_title_and_body_tokens(store):
  passage_id = np.array([2, -1, 0])
  title, body = store.title_tokens(passage_id), store.body_tokens(passage_id)
  assert title.num_tokens_R.tolist() == [1, 0, 1]
  assert title.start_R.tolist() == [0, 0, 0]
  assert body.num_tokens_R.tolist() == [4, 0, 11]
  assert body.start_R[[0, 2]].tolist() == [1, 1]
  assert body.token_id_RL[0, 1:5].tolist() == [9, 10, 11, 12]


def test_padded_tokens_of_the_null_passage_and_of_many_shapes(store):
  row_PP = store.padded_tokens(np.array([[2, -1], [1, 0]]))
  assert (row_PP.shape, row_PP.dtype) == ((2, 2, 16), np.uint16)
  assert row_PP[0, 0].tolist() == [11, 9, 10, 11, 12] + [0] * 11
  assert row_PP[0, 1].tolist() == [0] * 16
  assert row_PP[1, 0].tolist() == [14, 12] + [0] * 14


def test_tokens_are_stored_without_padding(store):
  assert store.num_tokens == 12 + 2 + 5
  # Room behind the last, so that its row can be read as one piece.
  assert (store.path / "token.bin").stat().st_size == 2 * (store.num_tokens + store.passage_length)


def test_arrays_are_mapped_not_loaded(store):
  assert isinstance(store.span, np.memmap)
  with pytest.raises(ValueError, match="read-only"):
    store.span[0, 0] = 1


def test_description(store):
  description = store.description
  assert (description["num_passages"], description["passage_length"], description["num_sentences"]) == (3, 16, 4)
  assert description["num_spans"] == {**dict.fromkeys(KINDS, 0), "person": 1, "date": 1, "location": 1}
  assert (description["vocabulary_size"], description["lowercase"]) == (15, True)
  assert description["vocabulary_digest"] == VOCABULARY.digest == store.vocabulary().digest
  assert description["source"] == "by hand"
  assert set(description["file_digest"]) == {"vocab.txt", *(f"{name}.bin" for name in FILES)}
  assert {p.name for p in store.path.iterdir()} == {"corpus.json", *description["file_digest"]}


def test_content_digest_names_the_content(tmp_path):
  one, same = write(tmp_path / "a"), write(tmp_path / "b")
  assert one.content_digest == same.content_digest
  others = [
    write(tmp_path / "c", [Span(0, 5, "date")]),
    write(tmp_path / "d", articles=ARTICLES[::-1]),
    write(tmp_path / "e", passage_length=17),
    write(tmp_path / "f", articles=[ARTICLES[0]._replace(id="other"), *ARTICLES[1:]]),
  ]
  assert len({store.content_digest for store in (one, *others)}) == 5


def test_an_intact_store_verifies(store):
  store.verify()


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_is_refused(store, name):
  path = store.path / f"{name}.bin"
  size = path.stat().st_size
  os.truncate(path, size - 1)
  with pytest.raises(
    ValueError, match=rf"{name}.bin has {size - 1} bytes instead of {size}: the corpus is damaged; build it again"
  ):
    PassageStore(store.path)
  path.unlink()
  with pytest.raises(ValueError, match=rf"{name}.bin has 0 bytes instead of {size}"):
    PassageStore(store.path)


@pytest.mark.parametrize("name", [*(f"{name}.bin" for name in FILES), "vocab.txt"])
def test_a_flipped_byte_is_found(store, name):
  path = store.path / name
  data = bytearray(path.read_bytes())
  data[0] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match=rf"{name} is not what was built \(its digest differs\); build the corpus again"):
    store.verify()


def test_a_missing_vocabulary_is_found(store):
  (store.path / "vocab.txt").unlink()
  with pytest.raises(ValueError, match="vocab.txt is not what was built"):
    store.verify()


def test_a_damaged_description_is_refused(store):
  path = store.path / "corpus.json"
  text = path.read_text()
  path.write_text(text[:-10])
  with pytest.raises(ValueError, match=r"corpus.json is no JSON \(.*\): the corpus is damaged; build it again"):
    PassageStore(store.path)
  path.write_text(json.dumps({**json.loads(text), "format": "realm-passages-0"}))
  with pytest.raises(
    ValueError, match="has the format 'realm-passages-0', this version reads 'realm-passages-2'; build the corpus again"
  ):
    PassageStore(store.path)


def test_no_store(tmp_path):
  message = r"no corpus at .* \(it has no corpus.json\); make one with realm build_corpus"
  with pytest.raises(FileNotFoundError, match=message):
    PassageStore(tmp_path)


def test_a_failure_leaves_nothing(tmp_path):
  with pytest.raises(KeyboardInterrupt), PassageWriter(tmp_path / "store", VOCABULARY, passage_length=16) as writer:
    for passage in split_articles(ARTICLES, VOCABULARY, passage_length=16):
      writer.add(passage, [])
    raise KeyboardInterrupt
  assert list(tmp_path.iterdir()) == []


def test_nothing_is_seen_before_the_end(tmp_path):
  with PassageWriter(tmp_path / "store", VOCABULARY, passage_length=16) as writer:
    assert not (tmp_path / "store").exists()
    writer.add(next(split_articles(ARTICLES, VOCABULARY, passage_length=16)), [])
    writer.finish({})
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
  assert len(PassageStore(tmp_path / "store")) == 1


def test_refuses_an_empty_corpus(tmp_path):
  with (
    pytest.raises(ValueError, match="an empty corpus: no passage was added"),
    PassageWriter(tmp_path / "store", VOCABULARY, passage_length=16) as writer,
  ):
    writer.finish({})
  assert list(tmp_path.iterdir()) == []


def test_overwrites_nothing(tmp_path):
  (tmp_path / "file").write_text("mine")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "file").write_text("mine")
  for name in ("file", "full"):
    with pytest.raises(FileExistsError, match=rf"{name} exists; choose another --output or remove it"):
      PassageWriter(tmp_path / name, VOCABULARY, passage_length=16)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]
  (tmp_path / "empty").mkdir()
  assert len(write(tmp_path / "empty")) == 3
