"""Articles: what is read, what is skipped and counted, what is refused."""

import bz2
import gzip
import json
import lzma
import os

import pytest

from realm_jax.data import articles, formats_lines
from realm_jax.data.articles import Article, BadRecord, Rejections, numbered_lines
from realm_jax.data.formats_lines import parse_jsonl
from realm_jax.data.sources import read_articles

LINES = b'{"id": "a", "title": " Caf\xc3\xa9 ", "text": " One. "}\n\n{"id": 7, "text": "Two."}\n'
ARTICLES = [Article("a", "Café", "One."), Article("7", "", "Two.")]


def read(path, **options):
  return list(read_articles([str(path)], rejections=Rejections(), **options))


def compress_zst(data: bytes) -> bytes:
  return pytest.importorskip("zstandard", reason="zstandard is not installed (extra wiki)").compress(data)


COMPRESSIONS = [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress), (".zst", compress_zst)]


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), *COMPRESSIONS])
def test_reads_plain_and_compressed(tmp_path, suffix, compress):
  name = f"x.jsonl{suffix}"
  (tmp_path / name).write_bytes(compress(LINES))
  assert read(tmp_path / name) == ARTICLES
  (tmp_path / name).write_bytes(compress(LINES.rstrip(b"\n")))
  assert read(tmp_path / name) == ARTICLES


REASONS = [
  (b'{"id": 1, "text": "caf\xe9"}', "bytes that are not UTF-8"),
  (b'{"id": 1, "text": "cut o', "no valid JSON"),
  (b"[" * 100_000, "no valid JSON"),
  (b'["id", "text"]', "JSON that is no object"),
  (b'{"text": "x"}', 'no "id"'),
  (b'{"id": 1, "title": "x"}', 'no "text"'),
  (b'{"id": null, "text": "x"}', 'an "id" that is neither text nor a whole number'),
  (b'{"id": true, "text": "x"}', 'an "id" that is neither text nor a whole number'),
  (b'{"id": 1.5, "text": "x"}', 'an "id" that is neither text nor a whole number'),
  (b'{"id": "", "text": "x"}', 'an "id" that is neither text nor a whole number'),
  (b'{"id": 1, "text": ["x"]}', 'a "title" or "text" that is no text'),
  (b'{"id": 1, "title": null, "text": "x"}', 'a "title" or "text" that is no text'),
  (b'{"id": 1, "text": " \\n\\t"}', 'an empty "text"'),
  (b'{"id": 1, "text": "\\u200b\\u2060"}', 'an empty "text"'),
  (b'{"id": 1, "text": "x\\u0000"}', "control characters, so no text"),
  (b'{"id": 1, "title": "\\u001b[0m", "text": "x"}', "control characters, so no text"),
  (b'{"id": "\\ud800", "text": "x"}', "control characters, so no text"),
]


@pytest.mark.parametrize(("line", "reason"), REASONS)
def test_names_the_reason(line, reason):
  with pytest.raises(BadRecord) as error:
    parse_jsonl(line)
  assert str(error.value) == reason


def test_skips_and_counts(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_bytes(b"\n".join(line for line, _ in REASONS) + b"\n" + LINES)
  rejections = Rejections()
  assert list(read_articles([str(path)], rejections=rejections)) == ARTICLES
  assert sum(rejections.count.values()) == len(REASONS)
  assert set(rejections.count) == {reason for _, reason in REASONS}
  assert rejections.count['an empty "text"'] == 2


def test_describes_rejections():
  rejections = Rejections()
  assert rejections.describe() == ""
  rejections.add("no text", 3)
  rejections.add("no JSON", 10, 11, 12, count=3)
  for number in range(13, 17):
    rejections.add("no JSON", number)
  assert rejections.describe() == "7 with no JSON (lines 10, 11, 12, 13, 14, ...); 1 with no text (line 3)"
  assert rejections.count == {"no JSON": 7, "no text": 1}


def test_strict_names_the_first_bad_line(tmp_path):
  (tmp_path / "x.jsonl").write_bytes(b'{"id": 1, "text": "One."}\n\n{"id": 2}\n{')
  with pytest.raises(
    ValueError, match=r'x.jsonl, line 3: a line with no "text"; mend it, or leave out --strict to skip it$'
  ):
    read(tmp_path / "x.jsonl", strict=True)


def test_an_over_long_line_is_skipped_whole(tmp_path, monkeypatch):
  for module in (articles, formats_lines):
    monkeypatch.setattr(module, "MAX_RECORD_BYTES", 2**20)
  long = json.dumps({"id": "long", "text": "x" * 3 * 2**20}).encode()
  (tmp_path / "x.jsonl").write_bytes(long + b"\n" + LINES + long)
  rejections = Rejections()
  assert list(read_articles([str(tmp_path / "x.jsonl")], rejections=rejections)) == ARTICLES
  assert rejections.describe() == "2 with more than 16 MiB (lines 1, 5)"


@pytest.mark.parametrize(("suffix", "compress"), COMPRESSIONS)
def test_refuses_a_file_that_is_cut_off(tmp_path, suffix, compress):
  path = tmp_path / f"x.jsonl{suffix}"
  whole = compress(LINES + os.urandom(300_000).hex().encode())
  for size in (len(whole) - 4, len(whole) // 2, 3):
    path.write_bytes(whole[:size])
    message = rf"x.jsonl{suffix} can't be decompressed after line \d .*; is it cut off\? Fetch it again"
    with pytest.raises(ValueError, match=message):
      list(numbered_lines(path))


@pytest.mark.parametrize("suffix", [suffix for suffix, _ in COMPRESSIONS])
def test_refuses_a_file_that_is_not_compressed(tmp_path, suffix):
  if suffix == ".zst":
    pytest.importorskip("zstandard", reason="zstandard is not installed (extra wiki)")
  (tmp_path / f"x.jsonl{suffix}").write_bytes(LINES)
  with pytest.raises(ValueError, match=rf"x.jsonl{suffix} can't be decompressed after line 0"):
    read(tmp_path / f"x.jsonl{suffix}")


def test_frames_one_after_the_other_are_one_file(tmp_path):
  for suffix, compress in COMPRESSIONS:
    (tmp_path / f"x.jsonl{suffix}").write_bytes(compress(LINES[:20]) + compress(LINES[20:]))
    assert read(tmp_path / f"x.jsonl{suffix}") == ARTICLES


def test_refuses_a_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="no input file at .*none.jsonl"):
    read(tmp_path / "none.jsonl")
