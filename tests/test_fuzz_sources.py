"""Damaged inputs: a reader gives articles, counts rejections, or refuses with a clear error, and nothing else."""

import bz2
import gzip
import importlib.util
import json
import lzma
import random
import struct

import pyarrow
import pytest
from etils import epath
from pyarrow import parquet

from realm_jax.data.formats_tfrecord import masked_crc
from realm_jax.data.shards import Settings, build_shard, cut_shards, read_columns, read_summary
from realm_jax.data.sources import find_sources
from realm_jax.data.spans import RuleTagger
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary

TEXTS = [
  "One cat sat. Two dogs in 1914.",
  "שָׁלוֹם עולם. \u202bab\u202c",
  "e\u0301te\u0301 in İstanbul ﬁ 한국어 😀.",
  "[MASK] (x) {{y}}",
  "\u0301\u0302",
  "x" * 300,
]
VOCABULARY = Vocabulary(
  [*SPECIAL_TOKENS, *"abcdeot", *(f"##{c}" for c in "abcdeot"), ".", "cat", "1914"], lowercase=True
)
PIECES = [
  b"\x00",
  b"\xff",
  b"\xed\xa0\x80",
  b'"',
  b"\t",
  b"\n",
  b"\r",
  b"{" * 50,
  b"[" * 2000,
  b"</page>",
  b"&#0;",
  b"<!--",
]
DUMP = (
  "<mediawiki>\n"
  + "".join(
    f"<page>\n<title>T{n}</title><ns>0</ns><id>{n}</id><revision><text>{text}</text></revision>\n</page>\n"
    for n, text in enumerate(TEXTS)
  )
  + "</mediawiki>\n"
).encode()


def tfrecords(texts) -> bytes:
  result = b""
  for data in (text.encode() for text in texts):
    length = struct.pack("<Q", len(data))
    result += length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))
  return result


def jsonl() -> bytes:
  return "".join(json.dumps({"id": n, "title": f"T{n}", "text": t}) + "\n" for n, t in enumerate(TEXTS)).encode()


def parquet_bytes() -> bytes:
  sink = pyarrow.BufferOutputStream()
  parquet.write_table(pyarrow.table({"id": list(range(len(TEXTS))), "text": TEXTS}), sink)
  return sink.getvalue().to_pybytes()


CONTENT = {
  "a.jsonl": jsonl(),
  "a.jsonl.gz": gzip.compress(jsonl(), mtime=0),
  "a.jsonl.xz": lzma.compress(jsonl()),
  "a.jsonl.bz2": bz2.compress(jsonl()),
  "wiki_00": jsonl(),
  "a.tsv": "".join(f"{n}\t{t}\tT{n}\n" for n, t in enumerate(TEXTS)).encode(),
  "a.parquet": parquet_bytes(),
  "blocks.tfr": tfrecords(TEXTS),
  "a.xml": DUMP,
}


def damage(data: bytes, rng: random.Random) -> bytes:
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 3))):
    place, kind = rng.randrange(len(data)), rng.randrange(5)
    if kind == 0:
      data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
      data[place:place] = rng.choice(PIECES)
    elif kind == 2:
      del data[place : place + rng.randrange(1, 30)]
    elif kind == 3:
      del data[max(1, place) :]
    else:
      data[place:place] = data[: rng.randrange(1, len(data) + 1)][-80:]
  return bytes(data)


@pytest.mark.parametrize("name", CONTENT)
def test_damage_ends_in_articles_counts_or_a_clear_error(tmp_path, name):
  if name.endswith(".xml") and not importlib.util.find_spec("mwparserfromhell"):
    pytest.skip("mwparserfromhell is not installed (extra wiki)")
  rng = random.Random(name)
  path = tmp_path / name
  (tmp_path / "titles.tfr").write_bytes(tfrecords([f"T{n}" for n in range(len(TEXTS))]))
  settings = Settings(VOCABULARY, 16, RuleTagger())
  outcomes = {"all": 0, "some": 0, "refused": 0}
  for content in [CONTENT[name], *(damage(CONTENT[name], rng) for _ in range(40))]:
    path.write_bytes(content)
    try:
      (source,) = find_sources([str(path)])
      records = list(source.records())
      shards = list(cut_shards(0, source, 2**20))
    except ValueError as error:
      assert name in str(error) and str(error).strip().count("\n") < 3
      outcomes["refused"] += 1
      continue
    assert sum(len(shard.records) for shard in shards) == len(records)
    for shard in shards:
      file = epath.Path(tmp_path) / build_shard(shard, settings, str(tmp_path))
      summary, columns = read_summary(file), read_columns(file)
      num_bad = sum(count for count, _ in summary.bad.values())
      # Every record is an article, rejected or left out, none is lost.
      left_out = sum(summary.left_out.values()) - summary.left_out.get("a text without a wordpiece", 0)
      assert len(summary.ids) + num_bad + left_out == len(shard.records)
      assert len(columns["body_length"]) == summary.num_passages
      assert columns["body"].tobytes().decode() is not None
      assert columns["token"].max(initial=0) < len(VOCABULARY)
      outcomes["all" if num_bad == 0 else "some"] += 1
  assert outcomes["all"] >= 1
  assert outcomes["some"] + outcomes["refused"] >= 15, outcomes


def test_a_whole_line_of_brackets_or_numbers_is_rejected(tmp_path):
  lines = [b"[" * 10**6, b'{"a":' * 10**5, b'{"id": ' + b"9" * 10**5 + b', "text": "x"}', b'{"id": 1e999, "text": "x"}']
  lines += [b'{"id": 2, "text": NaN}', b"\xef\xbb\xbf{}", b"\x00" * 1000, b'{"id": "3", "text": "fine"}']
  (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
  (source,) = find_sources([str(tmp_path / "a.jsonl")])
  (shard,) = cut_shards(0, source, 2**30)
  summary = read_summary(
    epath.Path(tmp_path) / build_shard(shard, Settings(VOCABULARY, 16, RuleTagger()), str(tmp_path))
  )
  assert summary.ids == ["3"]
  assert {reason: count for reason, (count, _) in summary.bad.items()} == {
    "no valid JSON": 5,
    'an "id" that is neither text nor a whole number': 1,
    'a "title" or "text" that is no text': 1,
  }
