"""Reads the formats with a record a line: jsonl, WikiExtractor's JSON, DPR's tab-separated passages."""

from __future__ import annotations

import html
from collections.abc import Iterator

from realm_jax.data.articles import (
  MAX_RECORD_BYTES,
  TOO_LONG,
  Article,
  BadRecord,
  LeftOut,
  decode,
  file_size,
  make_article,
  parse_json,
  placed_lines,
)
from realm_jax.data.formats import Format, Record

_TSV_COLUMNS = ("id", "text", "title")


def read_lines(path: str) -> Iterator[Record]:
  """Yields the lines that are not blank; one that is too long is a record with a problem."""
  for number, line, position in placed_lines(path):
    if len(line) > MAX_RECORD_BYTES:
      yield Record(number, b"", position, TOO_LONG)
    elif line.strip():
      yield Record(number, line, position)


def parse_jsonl(line: bytes) -> Article:
  """An article from a line {"id", "title", "text"}; raises BadRecord."""
  return make_article(parse_json(line))


def parse_wikiextractor(line: bytes) -> Article:
  """Takes entities out, as ORQA does, and the title that old versions repeat as the first line of the text."""
  record = parse_json(line)
  if isinstance(record, dict) and isinstance(record.get("text"), str) and isinstance(record.get("title"), str):
    title, text = html.unescape(record["title"]).strip(), html.unescape(record["text"]).strip()
    if text.split("\n", 1)[0].strip() == title:
      text = text[len(title) :].strip()
    if not text:
      raise LeftOut("a page without text")
    record = record | {"title": title, "text": text}
  return make_article(record)


def _read_tsv(path: str) -> Iterator[Record]:
  for record in read_lines(path):
    columns = record.data.strip(b"\r\n").split(b"\t")
    if record.number == 1 and b"id" in columns:
      if columns != [c.encode() for c in _TSV_COLUMNS]:
        raise ValueError(
          f"{path} has the columns {', '.join(c.decode(errors='replace') for c in columns)}; "
          f"expected {', '.join(_TSV_COLUMNS)}, as in DPR's psgs_w100.tsv"
        )
    else:
      yield record


def parse_tsv(line: bytes) -> Article:
  """id, text, title; a field in double quotes has its own quotes doubled."""
  fields = decode(line).strip("\r\n").split("\t")
  if len(fields) != len(_TSV_COLUMNS):
    raise BadRecord(f"{len(fields)} columns instead of {len(_TSV_COLUMNS)}")
  return make_article(dict(zip(_TSV_COLUMNS, map(_unquote, fields))))


def _unquote(field: str) -> str:
  return field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field


JSONL = Format("line", read_lines, parse_jsonl, file_size)
WIKIEXTRACTOR = Format("line", read_lines, parse_wikiextractor, file_size, is_wikipedia=True)
TSV = Format("line", _read_tsv, parse_tsv, file_size, is_ready=True)
