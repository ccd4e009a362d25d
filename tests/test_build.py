"""Building a store: counts, refusals, and nothing left behind."""

import gzip
import json

import pytest

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


def files(directory) -> dict[str, bytes]:
  return {p.name: p.read_bytes() for p in directory.iterdir()}


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
    "rejected_records": "",
    "left_out": {},
    "tagger": "ada-1",
    "settings": {"format": "jsonl", "passage_words": None, "whole": None, "drop_titles": None},
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
  assert result["rejected_records"] == '2 with no valid JSON (lines 2, 5); 1 with no "text" (line 3)'
  assert PassageStore(tmp_path / "out").description["rejected"] == result["rejected"]


def test_splits_or_keeps_whole(input_path, tmp_path, vocabulary):
  num_tokens = len(vocabulary.encode([ARTICLES[0]["text"]])[0].token_id)
  assert run(input_path, tmp_path / "split", vocabulary, passage_length=num_tokens)["num_passages"] == 4
  assert run(input_path, tmp_path / "whole", vocabulary, passage_length=num_tokens, whole=True)["num_passages"] == 3
  split = PassageStore(tmp_path / "split")
  assert [split.id(i) for i in range(4)] == ["a#0", "a#1", "b", "c"]
  assert [split.body(i) for i in range(2)] == ["Ada Lovelace was born in 1815.", "She wrote on 8 July 1843 to Babbage."]


def test_shards_change_nothing(input_path, tmp_path, vocabulary):
  run(input_path, tmp_path / "one", vocabulary)
  run(input_path, tmp_path / "many", vocabulary, shard_bytes=1)
  assert files(tmp_path / "one") == files(tmp_path / "many")


@pytest.mark.parametrize("shard_bytes", [1, 150, 2**20])
def test_stops_at_the_number_of_passages(input_path, tmp_path, vocabulary, shard_bytes):
  num_tokens = len(vocabulary.encode([ARTICLES[0]["text"]])[0].token_id)
  options = {"passage_length": num_tokens, "shard_bytes": shard_bytes}
  for num_passages, ids in ((1, ["a#0"]), (3, ["a#0", "a#1", "b"]), (9, ["a#0", "a#1", "b", "c"])):
    output_path = tmp_path / f"out{num_passages}"
    result = run(input_path, output_path, vocabulary, num_passages=num_passages, **options)
    store = PassageStore(output_path)
    assert [store.id(i) for i in range(len(store))] == ids
    assert result["num_passages"] == len(ids)
    store.verify()


def test_bars_end_at_their_total(input_path, tmp_path, vocabulary):
  bars = []

  class Bar:
    def __init__(self, description, total):
      self.description, self.total, self.n, self.is_closed = description, total, 0, False
      bars.append(self)

    def update(self, n):
      self.n += n

    def close(self):
      self.is_closed = True

  run(input_path, tmp_path / "out", vocabulary, make_bar=Bar, shard_bytes=1)
  size = input_path.stat().st_size
  assert [(b.description, b.n, b.total, b.is_closed) for b in bars] == [
    ("building", size, size, True),
    ("joining", 3, 3, True),
  ]


FAILURES = [
  ([], {}, "in.jsonl gives an empty corpus: nothing was read"),
  (["{", "[]"], {}, "empty corpus: 1 with no valid JSON (line 1); 1 with JSON that is no object (line 2)"),
  (['{"id": 1, "text": "\u0301"}'], {}, "gives an empty corpus: 1 left out as a text without a wordpiece"),
  ([json.dumps(ARTICLES[0]), "{"], {"strict": True}, "line 2: a line with no valid JSON; mend it, or leave"),
  (["{}", json.dumps(ARTICLES[0]), "[]"], {"strict": True, "shard_bytes": 1}, 'line 1: a line with no "id"; mend it'),
  ([json.dumps(ARTICLES[0])] * 2, {"shard_bytes": 1}, "in.jsonl: lines 1 and 2 have the same id 'a'; ids must"),
  (['{"id": 7, "text": "One."}', "{}", '{"id": "7", "text": "Two."}'], {}, "lines 1 and 3 have the same id '7'; ids"),
  ([json.dumps(ARTICLES[0])] * 2, {}, "lines 1 and 2 have the same id 'a'; ids must be unique"),
  ([], {"whole": True, "passage_words": 9}, "leave out --whole or --passage_words"),
  ([json.dumps(ARTICLES[0])], {"passage_length": 4}, "passage_length 4 leaves no room for text; give at least 16"),
]


@pytest.mark.parametrize(("lines", "options", "message"), FAILURES)
def test_a_failed_build_leaves_nothing(tmp_path, vocabulary, lines, options, message):
  input_path = write_lines(tmp_path / "in.jsonl", *lines)
  with pytest.raises(ValueError) as error:
    run(input_path, tmp_path / "out", vocabulary, **options)
  assert message in str(error.value)
  assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_file_that_is_cut_off_leaves_nothing(tmp_path, vocabulary):
  data = gzip.compress("".join(json.dumps(a) + "\n" for a in ARTICLES).encode())
  (tmp_path / "in.jsonl.gz").write_bytes(data[:-8])
  with pytest.raises(ValueError, match=r"can't be decompressed after line 3 .*; is it cut off\? Fetch it again"):
    run(tmp_path / "in.jsonl.gz", tmp_path / "out", vocabulary, shard_bytes=1)  # shards were written before the end
  assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl.gz"]


TITLES = {"1": "List of cats", "2": "Cat (disambiguation)", "3": "A List of cats"}


@pytest.mark.parametrize(
  ("name", "options", "ids", "is_split"),
  [
    ("in.jsonl", {}, "123", True),
    ("in.jsonl", {"whole": True}, "123", False),
    ("wiki_00", {}, "3", True),
    ("wiki_00", {"drop_titles": ""}, "123", True),
    ("wiki_00", {"drop_titles": "A ", "whole": True}, "12", False),
    ("in.tsv", {}, "123", False),
    ("in.tsv", {"passage_words": 20}, "123", True),
    ("in.tsv", {"whole": False, "drop_titles": r".*\("}, "13", True),
  ],
)
def test_a_format_says_what_is_dropped_and_split(tmp_path, vocabulary, name, options, ids, is_split):
  text = "Born in 1815. " * 20
  if name == "in.tsv":
    lines = [f"{id_}\t{text}\t{title}" for id_, title in TITLES.items()]
  else:
    lines = [json.dumps({"id": id_, "title": title, "text": text}) for id_, title in TITLES.items()]
  result = run(write_lines(tmp_path / name, *lines), tmp_path / "out", vocabulary, **options)
  store = PassageStore(tmp_path / "out")
  found = [store.id(i).split("#") for i in range(len(store))]
  assert sorted({id_ for id_, *_ in found}) == list(ids)
  assert {len(parts) == 2 for parts in found} == {is_split}
  assert sum(result["left_out"].values()) == 3 - len(ids) and result["num_articles"] == len(ids)


def test_the_same_id_in_two_inputs_is_named(tmp_path, vocabulary):
  paths = [write_lines(tmp_path / name, "{}", json.dumps(ARTICLES[0])) for name in ("a.jsonl", "b.jsonl")]
  message = r"a.jsonl, line 2, and .*b.jsonl, line 2, have the same id 'a'; ids must be unique"
  with pytest.raises(ValueError, match=message):
    run(paths, tmp_path / "out", vocabulary)


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
