"""Reads plain text and Markdown: each file is an article."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

from realm_jax.data.articles import (
  COMPRESSIONS,
  MAX_RECORD_BYTES,
  TOO_LONG,
  Article,
  decode,
  file_size,
  make_article,
  naming_damage,
  open_bytes,
)
from realm_jax.data.formats import Format, Record

_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t](.*)$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n\s*\n")


def _read(path: str) -> Iterator[Record]:
  with open_bytes(path) as (file, _), naming_damage(path, "from its beginning"):
    content = file.read(MAX_RECORD_BYTES + 1)
  if len(content) > MAX_RECORD_BYTES:
    yield Record(1, b"", file_size(path), TOO_LONG)
  else:
    yield Record(1, f"{path}\0".encode() + content, file_size(path))


def parse_text(data: bytes) -> Article:
  """Path, NUL, content -> an article; raises BadRecord.

  The id is the path as it was given, the title the first line if it is a Markdown heading, else the file's name. A
  blank line or a heading ends a paragraph; other line breaks are taken for those of an editor.
  """
  path, _, text = decode(data).partition("\0")
  text = text.removeprefix("\ufeff").replace("\r\n", "\n").lstrip()
  name = pathlib.PurePath(path)
  title = re.sub(r"[-_]+", " ", pathlib.PurePath(name.stem if name.suffix in COMPRESSIONS else name.name).stem)
  if heading := _HEADING.match(text):
    title, text = _words_of(heading), text[heading.end() :]
  paragraphs = _BLANK_LINES.split(_HEADING.sub(lambda heading: f"\n\n{_words_of(heading)}\n\n", text))
  text = "\n".join(filter(None, (" ".join(paragraph.split()) for paragraph in paragraphs)))
  return make_article({"id": path, "title": title, "text": text})


def _words_of(heading: re.Match[str]) -> str:
  """Without the marks that may close it."""
  words = heading[1].split()
  return " ".join(words[:-1] if words and not words[-1].strip("#") else words)


TEXT = Format("file", _read, parse_text, file_size)
