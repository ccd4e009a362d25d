"""Sources: the reader is chosen by name, and every format gives the same articles."""

import bz2
import gzip
import json
import struct

import pyarrow
import pytest
from pyarrow import parquet

from realm_jax.data.articles import Article, BadRecord, LeftOut, Rejections
from realm_jax.data.formats_lines import parse_tsv, parse_wikiextractor
from realm_jax.data.formats_tfrecord import crc32c, masked_crc
from realm_jax.data.sources import FORMATS, Source, common_noun, find_sources, parse_record, read_articles

ARTICLES = [Article("0", "Café", "One, “two”.\nA tab is none."), Article("1", "שלום", "שָׁלוֹם עולם. e\u0301té.")]
RECORDS = [a._asdict() for a in ARTICLES]


def read(*inputs, rejections=None, **options):
  return list(read_articles(map(str, inputs), rejections=rejections or Rejections(), **options))


def tfrecord(data: bytes) -> bytes:
  length = struct.pack("<Q", len(data))
  return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def write_orqa(directory, articles=ARTICLES):
  (directory / "blocks.tfr").write_bytes(b"".join(tfrecord(a.text.encode()) for a in articles))
  (directory / "titles.tfr").write_bytes(b"".join(tfrecord(a.title.encode()) for a in articles))
  return directory / "blocks.tfr"


def write_parquet(path, **columns):
  parquet.write_table(pyarrow.table(columns), path)
  return path


@pytest.mark.parametrize(
  ("name", "format_name"),
  [
    ("a.jsonl", "jsonl"),
    ("a.jsonl.zst", "jsonl"),
    ("notes.txt", "text"),
    ("README.md.gz", "text"),
    ("psgs_w100.tsv.gz", "tsv"),
    ("train-00000-of-00041.parquet", "parquet"),
    ("wiki_00", "wikiextractor"),
    ("wiki_17.bz2", "wikiextractor"),
    ("enwiki-latest-pages-articles.xml.bz2", "dump"),
    ("enwiki-20230601-pages-articles1.xml-p1p41242.bz2", "dump"),
    ("blocks.tfr", "orqa"),
  ],
)
def test_the_name_tells_the_format(tmp_path, name, format_name):
  (tmp_path / name).touch()
  assert find_sources([str(tmp_path / name)]) == (Source(str(tmp_path / name), format_name),)


def test_tfds_is_known_by_its_prefix():
  names = {"tfds:wikipedia/20230601.en": "tfds-wikipedia", "tfds:my_set": "tfds"}
  names |= {"tfds:salient_span_wikipedia/sentences": "tfds-passages", "tfds:/d/realm_passages/1.0.0": "tfds-passages"}
  assert dict(find_sources(names)) == names


def test_patterns_and_directories_are_sorted(tmp_path):
  for name in ("b/wiki_01", "b/wiki_00", "a/wiki_00", "a/other", "a/n.txt", ".git/n.txt", "x2.jsonl", "x1.jsonl"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  found = [s.path.removeprefix(f"{tmp_path}/") for s in find_sources([f"{tmp_path}/x*.jsonl", str(tmp_path)])]
  assert found == ["x1.jsonl", "x2.jsonl", "a/n.txt", "a/wiki_00", "b/wiki_00", "b/wiki_01"]


@pytest.mark.parametrize(
  ("inputs", "format_name", "message"),
  [
    (["x.doc"], None, "the name x.doc tells no format; give --format, one of jsonl, text, tsv, parquet"),
    (["x.doc"], "pdf", "unknown --format 'pdf'; the formats are jsonl, text, tsv"),
    (["x.doc", "*.doc"], "jsonl", "x.doc is given twice; name each input once"),
    (["none.jsonl"], None, "no input file at .*none.jsonl"),
    (["none*.jsonl"], None, "no input file fits the pattern .*none"),
    (
      ["."],
      None,
      r"is a directory without \*.txt, \*.md or WikiExtractor's wiki_00, .*; for other files give a ",
    ),
  ],
)
def test_what_is_no_source_is_refused(tmp_path, inputs, format_name, message):
  (tmp_path / "x.doc").touch()
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    find_sources([f"{tmp_path}/{name}" for name in inputs], format_name)


def test_all_formats_give_the_same_articles(tmp_path):
  lines = [json.dumps(record) + "\n" for record in RECORDS]
  (tmp_path / "a.jsonl").write_text("".join(lines))
  (tmp_path / "wiki_00").write_text("".join(lines))
  columns = {key: [record[key] for record in RECORDS] for key in ("text", "id", "title")}
  write_parquet(tmp_path / "a.parquet", **columns)
  write_orqa(tmp_path)
  for name in ("a.jsonl", "wiki_00", "a.parquet", "blocks.tfr"):
    assert read(tmp_path / name) == ARTICLES, name


def test_dpr_tsv(tmp_path):
  lines = [
    "id\ttext\ttitle",
    '7\t"He said ""no"". It is 5"" long."\tA "B"',
    "8\tplain\tC",
    "9\tfew",
    "\t",
    "10\t\tE",
  ]
  (tmp_path / "psgs_w100.tsv").write_text("\n".join(lines) + "\n")
  rejections = Rejections()
  found = read(tmp_path / "psgs_w100.tsv", rejections=rejections)
  assert found == [Article("7", 'A "B"', 'He said "no". It is 5" long.'), Article("8", "C", "plain")]
  assert rejections.describe() == '1 with 2 columns instead of 3 (line 4); 1 with an empty "text" (line 6)'
  assert FORMATS["tsv"].is_ready
  (tmp_path / "x.tsv").write_text("id\ttitle\ttext\n1\ta\tb\n")
  with pytest.raises(ValueError, match="has the columns id, title, text; expected id, text, title, as in DPR's"):
    read(tmp_path / "x.tsv")


def test_a_tsv_needs_no_header(tmp_path):
  (tmp_path / "x.tsv.bz2").write_bytes(bz2.compress(b"1\tb\ta\n"))
  assert read(tmp_path / "x.tsv.bz2") == [parse_tsv(b"1\tb\ta")] == [Article("1", "a", "b")]


def test_wikiextractor_unescapes_and_drops_the_repeated_title():
  line = {"id": "12", "revid": "9", "url": "u", "title": "Q&amp;A", "text": "Q&amp;A\n\nAn &lt;i&gt; &quot;x&quot;."}
  assert parse_wikiextractor(json.dumps(line).encode()) == Article("12", "Q&A", 'An <i> "x".')
  with pytest.raises(LeftOut, match="a page without text"):
    parse_wikiextractor(json.dumps(line | {"text": "Q&amp;A\n\n"}).encode())
  with pytest.raises(BadRecord, match='no "id"'):
    parse_wikiextractor(b'{"title": "a", "text": "b"}')


def test_parquet_without_a_column_and_with_bad_rows(tmp_path):
  write_parquet(tmp_path / "a.parquet", id=[1, 2], body=["a", "b"])
  with pytest.raises(ValueError, match="a.parquet has no column text, only id, body; rename its columns"):
    read(tmp_path / "a.parquet")
  rejections = Rejections("row")
  assert read(write_parquet(tmp_path / "b.parquet", id=[1, None, 3], text=["a", "b", None]), rejections=rejections) == [
    Article("1", "", "a")
  ]
  assert rejections.describe() == (
    '1 with an "id" that is neither text nor a whole number (row 2); 1 with a "title" or "text" that is no text (row 3)'
  )
  whole = (tmp_path / "b.parquet").read_bytes()
  (tmp_path / "b.parquet").write_bytes(whole[:-30])
  with pytest.raises(ValueError, match="b.parquet is no sound parquet file after row 0 .*; fetch it again"):
    read(tmp_path / "b.parquet")


def test_crc32c_against_the_standard():
  # RFC 3720, B.4, and bit by bit.
  assert crc32c(b"123456789") == 0xE3069283
  assert crc32c(bytes(32)) == 0x8A9136AA
  assert crc32c(b"\xff" * 32) == 0x62A8AB43
  for length in (0, 1, 3, 4, 5, 4095, 4096, 4097, 4099, 10_000):
    data = bytes((i * 37 + i // 256) % 256 for i in range(length))
    crc = 0xFFFFFFFF
    for byte in data:
      crc ^= byte
      for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(data) == crc ^ 0xFFFFFFFF, length


def test_damaged_tfrecords(tmp_path):
  path = write_orqa(tmp_path)
  blocks = path.read_bytes()
  rejections = Rejections("record")
  flipped = bytearray(blocks)
  flipped[14] ^= 1
  path.write_bytes(flipped)
  assert read(path, rejections=rejections) == ARTICLES[1:]
  assert rejections.describe() == "1 with a wrong checksum (crc32c) (record 1)"
  flipped[0] ^= 1
  path.write_bytes(flipped)
  with pytest.raises(ValueError, match="blocks.tfr, record 1: a wrong checksum of its length, so no record after it"):
    read(path)
  path.write_bytes(blocks[:-1])
  with pytest.raises(ValueError, match="blocks.tfr ends within record 2; it is cut off, fetch it again"):
    read(path)
  path.write_bytes(tfrecord(ARTICLES[0].text.encode()))
  with pytest.raises(ValueError, match=r"blocks.tfr has 1 records, .*titles.tfr more; they don't belong together"):
    read(path)
  (tmp_path / "titles.tfr").unlink()
  with pytest.raises(FileNotFoundError, match="blocks.tfr needs its titles beside it"):
    read(path)


def test_a_problem_of_the_reader_is_a_bad_record(tmp_path):
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}\n" + b"x" * (2**24 + 9) + b"\n{}\n"))
  source = Source(str(tmp_path / "a.jsonl.gz"), "jsonl")
  one, long, other = source.records()
  assert [(r.number, r.data) for r in (one, long, other)] == [(1, b"{}\n"), (2, b""), (3, b"{}\n")]
  with pytest.raises(BadRecord, match="more than 16 MiB"):
    parse_record(source, long)


def test_common_noun():
  assert common_noun([Source("a.parquet", "parquet"), Source("b.parquet", "parquet")]) == "row"
  assert common_noun([Source("a.parquet", "parquet"), Source("b.jsonl", "jsonl")]) == "record"
