"""Building a store: counts, refusals, and nothing left behind."""

import gzip
import json

import pytest

from realm_jax.data import build
from realm_jax.data.build import build_passages, train_vocabulary
from realm_jax.data.passages import PassageStore
from realm_jax.data.spans import NoTagger, Span
from realm_jax.data.vocabulary import Vocabulary

ARTICLES = [
  {"id": "a", "title": "Ada", "text": "Ada Lovelace was born in 1815. She wrote on 8 July 1843 to Babbage."},
  {"id": "b", "title": "Babbage", "text": "Charles Babbage died in 1871."},
  {"id": "c", "text": "No name here."},
]


class AdaTagger:
  """Calls every first word a person."""

  name = "ada-1"

  def tag(self, texts):
    return [[Span(0, text.index(" "), "person")] for text in texts]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
  return Vocabulary.train([f"{a.get('title')} {a['text']}" for a in ARTICLES], size=200, lowercase=True)


def write_lines(path, *lines: str):
  path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
  return path


@pytest.fixture
def input_path(tmp_path):
  return write_lines(tmp_path / "in.jsonl", *map(json.dumps, ARTICLES))


def run(input_path, output_path, vocabulary, **options):
  options = {"passage_length": 64, "tagger": NoTagger()} | options
  return build_passages(input_path, output_path, vocabulary=vocabulary, **options)


def test_builds(input_path, tmp_path, vocabulary):
  result = run(input_path, tmp_path / "out", vocabulary, tagger=AdaTagger(), description={"license": "CC0"})
  store = PassageStore(tmp_path / "out")
  assert [store.id(i) for i in range(3)] == ["a", "b", "c"]
  assert [store.title(i) for i in range(3)] == ["Ada", "Babbage", ""]
  assert [store.body(i) for i in range(3)] == [a["text"] for a in ARTICLES]
  assert store.span_offset.tolist() == [0, 3, 5, 6]
  assert store.span[:, 2].tolist() == [0, 0, 1, 0, 0, 0]
  counts = {"date": 3, "person": 3, "entity": 0, "location": 0, "organization": 0, "misc": 0}
  assert result == {
    "num_articles": 3,
    "num_passages": 3,
    "num_spans": counts,
    "rejected": {},
    "rejected_lines": "",
    "tagger": "ada-1",
    "license": "CC0",
  }
  assert store.description["num_spans"] == counts
  assert (store.description["tagger"], store.description["license"]) == ("ada-1", "CC0")
  store.verify()


def test_without_a_tagger_dates_are_salient(input_path, tmp_path, vocabulary):
  run(input_path, tmp_path / "out", vocabulary)
  store = PassageStore(tmp_path / "out")
  encodings = vocabulary.encode([a["text"] for a in ARTICLES])
  dates = []
  for i in range(3):
    for first, end, *_ in store.span[int(store.span_offset[i]) : int(store.span_offset[i + 1])]:
      char_range = encodings[i].char_range
      dates.append(ARTICLES[i]["text"][char_range[first, 0] : char_range[end - 1, 1]])
  assert dates == ["1815", "8 July 1843", "1871"]


def test_counts_what_it_skips(tmp_path, vocabulary):
  lines = [json.dumps(ARTICLES[0]), "{", '{"id": "x"}', json.dumps(ARTICLES[1]), "{"]
  result = run(write_lines(tmp_path / "in.jsonl", *lines), tmp_path / "out", vocabulary)
  assert result["num_articles"] == result["num_passages"] == 2
  assert result["rejected"] == {"no valid JSON": 2, 'no "text"': 1}
  assert result["rejected_lines"] == '2 with no valid JSON (lines 2, 5); 1 with no "text" (line 3)'
  assert PassageStore(tmp_path / "out").description["rejected"] == result["rejected"]


def test_splits_or_keeps_whole(input_path, tmp_path, vocabulary):
  num_tokens = len(vocabulary.encode([ARTICLES[0]["text"]])[0].token_id)
  assert run(input_path, tmp_path / "split", vocabulary, passage_length=num_tokens)["num_passages"] == 4
  assert run(input_path, tmp_path / "whole", vocabulary, passage_length=num_tokens, whole=True)["num_passages"] == 3
  split = PassageStore(tmp_path / "split")
  assert [split.id(i) for i in range(4)] == ["a#0", "a#1", "b", "c"]
  assert [split.body(i) for i in range(2)] == ["Ada Lovelace was born in 1815.", "She wrote on 8 July 1843 to Babbage."]


def test_chunks_change_nothing(input_path, tmp_path, vocabulary, monkeypatch):
  run(input_path, tmp_path / "one", vocabulary)
  monkeypatch.setattr(build, "_CHUNK", 1)
  run(input_path, tmp_path / "many", vocabulary)
  assert PassageStore(tmp_path / "one").content_digest == PassageStore(tmp_path / "many").content_digest


@pytest.mark.parametrize("chunk", [1, 2, 512])
def test_stops_at_the_number_of_passages(input_path, tmp_path, vocabulary, monkeypatch, chunk):
  monkeypatch.setattr(build, "_CHUNK", chunk)
  num_tokens = len(vocabulary.encode([ARTICLES[0]["text"]])[0].token_id)
  for num_passages, ids in ((1, ["a#0"]), (3, ["a#0", "a#1", "b"]), (9, ["a#0", "a#1", "b", "c"])):
    output_path = tmp_path / f"out{num_passages}"
    result = run(input_path, output_path, vocabulary, passage_length=num_tokens, num_passages=num_passages)
    store = PassageStore(output_path)
    assert [store.id(i) for i in range(len(store))] == ids
    assert result["num_passages"] == len(ids)


def test_progress_sees_the_articles(input_path, tmp_path, vocabulary):
  seen = []

  def progress(articles):
    for article in articles:
      seen.append(article.id)
      yield article

  run(input_path, tmp_path / "out", vocabulary, progress=progress)
  assert seen == ["a", "b", "c"]


FAILURES = [
  ([], {}, 'gives an empty corpus: the file has no line; expected {"id", "title", "text"} a line'),
  (["{", "[]"], {}, "empty corpus: 1 with no valid JSON (line 1); 1 with JSON that is no object (line 2); expected"),
  (['{"id": 1, "text": "\u0301"}'], {}, "gives an empty corpus: no text has a wordpiece; expected"),
  ([json.dumps(ARTICLES[0]), "{"], {"strict": True}, "line 2: a line with no valid JSON; mend it, or leave"),
  ([json.dumps(ARTICLES[0])] * 2, {}, "lines 1 and 2 have the same id 'a'; ids must be unique"),
  ([json.dumps(ARTICLES[0])], {"passage_length": 4}, "passage_length 4 leaves no room for text; give at least 16"),
]


@pytest.mark.parametrize(("lines", "options", "message"), FAILURES)
def test_a_failed_build_leaves_nothing(tmp_path, vocabulary, lines, options, message):
  input_path = write_lines(tmp_path / "in.jsonl", *lines)
  with pytest.raises(ValueError) as error:
    run(input_path, tmp_path / "out", vocabulary, **options)
  assert message in str(error.value)
  assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_file_that_is_cut_off_leaves_nothing(tmp_path, vocabulary, monkeypatch):
  monkeypatch.setattr(build, "_CHUNK", 1)  # so that passages were written before the end came
  data = gzip.compress("".join(json.dumps(a) + "\n" for a in ARTICLES).encode())
  (tmp_path / "in.jsonl.gz").write_bytes(data[:-8])
  with pytest.raises(ValueError, match=r"can't be decompressed after line 3 .*; is it cut off\? Fetch it again"):
    run(tmp_path / "in.jsonl.gz", tmp_path / "out", vocabulary)
  assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl.gz"]


def test_overwrites_no_store(input_path, tmp_path, vocabulary):
  run(input_path, tmp_path / "out", vocabulary)
  before = PassageStore(tmp_path / "out").content_digest
  with pytest.raises(FileExistsError, match="out exists; choose another --output or remove it"):
    run(input_path, tmp_path / "out", vocabulary, num_passages=1)
  assert PassageStore(tmp_path / "out").content_digest == before
  assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out"]


def test_learns_from_titles_and_texts(tmp_path):
  lines = ['{"id": 1, "title": "qq qq", "text": "zz zz"}', "{"]
  vocabulary = train_vocabulary(write_lines(tmp_path / "in.jsonl", *lines), size=100, lowercase=True)
  assert {"qq", "zz"} <= set(vocabulary.tokens)


def test_learning_twice_gives_the_same_digest(input_path):
  assert len({train_vocabulary(input_path, size=120, lowercase=True).digest for _ in range(5)}) == 1
