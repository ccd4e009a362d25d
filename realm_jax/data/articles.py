"""Reads articles from jsonl files; a bad line is named and counted."""

from __future__ import annotations

import collections
import gzip
import io
import json
import lzma
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

# Control characters other than tab, newline and carriage return don't occur in text.
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
_MAX_LINE_BYTES = 64 * 2**20  # a longer line is no article: the longest of Wikipedia has about 1 MB
_LINES_NAMED = 5


class Article(NamedTuple):
  id: str
  title: str
  text: str


class BadLine(ValueError):
  """A line that is no article; the message is the reason."""


class Rejections:
  """Counts of the lines that were skipped, by reason, with the first line numbers of each."""

  def __init__(self):
    self.count = collections.Counter()
    self._lines = collections.defaultdict(list)

  def add(self, reason: str, line_number: int) -> None:
    self.count[reason] += 1
    if len(self._lines[reason]) < _LINES_NAMED:
      self._lines[reason].append(line_number)

  def describe(self) -> str:
    return "; ".join(
      f"{count} with {reason} (line{'s' if count > 1 else ''} {', '.join(map(str, self._lines[reason]))}"
      f"{', ...' if count > _LINES_NAMED else ''})"
      for reason, count in self.count.most_common()
    )


def open_bytes(path) -> io.BufferedIOBase:
  """Opens a plain, .gz or .xz file for reading bytes."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"no input file at {path}")
  if path.suffix == ".gz":
    return gzip.open(path, "rb")
  return lzma.open(path, "rb") if path.suffix == ".xz" else open(path, "rb")


def parse_article(line: bytes) -> Article:
  """One line of jsonl -> the article; raises BadLine with the reason."""
  try:
    record = json.loads(line.decode("utf-8"))
  except UnicodeDecodeError:
    raise BadLine("bytes that are not UTF-8") from None
  except (ValueError, RecursionError):
    raise BadLine("no valid JSON") from None
  if not isinstance(record, dict):
    raise BadLine("JSON that is no object")
  for key in ("id", "text"):
    if key not in record:
      raise BadLine(f'no "{key}"')
  id_, title, text = record["id"], record.get("title", ""), record["text"]
  if isinstance(id_, bool) or not isinstance(id_, str | int) or id_ == "":
    raise BadLine('an "id" that is neither text nor a whole number')
  if not isinstance(title, str) or not isinstance(text, str):
    raise BadLine('a "title" or "text" that is no text')
  if not any(c.isprintable() and not c.isspace() for c in text):
    raise BadLine('an empty "text"')
  for value in (str(id_), title, text):
    if _NOT_TEXT.search(value):
      raise BadLine("control characters, so no text")
  return Article(str(id_), title.strip(), text.strip())


def read_articles(path, *, rejections: Rejections, strict: bool = False) -> Iterator[Article]:
  """Yields the articles of a jsonl file (.jsonl, .jsonl.gz, .jsonl.xz) with {"id", "title", "text"} a line.

  Args:
    path: the file.
    rejections: gets every skipped line.
    strict: refuse the file at its first bad line.

  Raises:
    ValueError: two lines have the same id; the file is cut off or is no text at all; strict and a bad line.
  """
  line_of_id: dict[str, int] = {}
  for number, line in numbered_lines(path):
    if not line.strip():
      continue
    try:
      if len(line) > _MAX_LINE_BYTES:
        raise BadLine(f"more than {_MAX_LINE_BYTES >> 20} MiB")
      article = parse_article(line)
    except BadLine as error:
      if strict:
        raise ValueError(
          f"{path}, line {number}: a line with {error}; mend it, or leave out --strict to skip it"
        ) from None
      rejections.add(str(error), number)
      continue
    if article.id in line_of_id:
      raise ValueError(
        f"{path}: lines {line_of_id[article.id]} and {number} have the same id {article.id!r}; ids must be unique"
      )
    line_of_id[article.id] = number
    yield article


def numbered_lines(path) -> Iterator[tuple[int, bytes]]:
  """Yields the lines of a plain, .gz or .xz file, counted from 1; a longer one than 64 MiB comes cut off.

  Raises:
    ValueError: the file can't be decompressed.
  """
  number = 0
  try:
    with open_bytes(path) as file:
      # A line without an end is read in pieces, so that it can't fill the memory.
      while piece := file.readline(_MAX_LINE_BYTES + 1):
        number += 1
        yield number, piece
        while len(piece) > _MAX_LINE_BYTES and not piece.endswith(b"\n"):
          piece = file.readline(_MAX_LINE_BYTES + 1)
  except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
    raise ValueError(
      f"{path} can't be decompressed after line {number} ({error}); is it cut off? Fetch it again"
    ) from error
