"""Articles, the faults that keep a record from being one, and the plain or compressed files that they come in."""

from __future__ import annotations

import bz2
import collections
import contextlib
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from etils import epath

from realm_jax.data.spans import Span

# Control characters other than tab, newline and carriage return don't occur in text.
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
# A longer record is no article: the longest of Wikipedia has about 1 MB.
MAX_RECORD_BYTES = 16 * 2**20
TOO_LONG = f"more than {MAX_RECORD_BYTES >> 20} MiB"
_PLACES_NAMED = 5


class Article(NamedTuple):
  """A document, or a ready passage, as its source gives it."""

  id: str
  title: str
  text: str
  # What the source says itself, in characters of the text; None where it is to be found.
  spans: tuple[Span, ...] | None = None
  sentence_starts: tuple[int, ...] | None = None


class BadRecord(ValueError):
  """A record that is no article; the message is the reason."""


class LeftOut(Exception):
  """A sound record that isn't wanted, such as a redirect; the message is the reason."""


class Rejections:
  """Counts of the records that were skipped, by reason, with the first places of each."""

  def __init__(self, noun: str = "line"):
    self.count: collections.Counter[str] = collections.Counter()
    self._places: dict[str, list[str]] = collections.defaultdict(list)
    self._noun = noun

  def add(self, reason: str, place: int | str, *more_places: int | str, count: int = 1) -> None:
    """Counts `count` records; `place` and `more_places` say where the first of them are."""
    self.count[reason] += count
    self._places[reason] += map(str, (place, *more_places)[: _PLACES_NAMED - len(self._places[reason])])

  def describe(self) -> str:
    """ "3 with no text (lines 4, 7, 9)", and so on, the most frequent reason first; empty if nothing was rejected."""
    return "; ".join(
      f"{count} with {reason} ({self._noun}{'s' if count > 1 else ''} {', '.join(self._places[reason])}"
      f"{', ...' if count > len(self._places[reason]) else ''})"
      for reason, count in self.count.most_common()
    )

  def places(self, reason: str) -> list[str]:
    """Where the first few are."""
    return self._places[reason]


def make_article(record: Any) -> Article:
  """{"id", "title", "text"} -> the article; raises BadRecord with the reason."""
  if not isinstance(record, dict):
    raise BadRecord("JSON that is no object")
  for key in ("id", "text"):
    if key not in record:
      raise BadRecord(f'no "{key}"')
  id_, title, text = record["id"], record.get("title", ""), record["text"]
  if isinstance(id_, bool) or not isinstance(id_, str | int) or id_ == "":
    raise BadRecord('an "id" that is neither text nor a whole number')
  if not isinstance(title, str) or not isinstance(text, str):
    raise BadRecord('a "title" or "text" that is no text')
  if not any(c.isprintable() and not c.isspace() for c in text):
    raise BadRecord('an empty "text"')
  for value in (str(id_), title, text):
    if _NOT_TEXT.search(value):
      raise BadRecord("control characters, so no text")
  return Article(str(id_), title.strip(), text.strip())


def parse_json(data: bytes) -> Any:
  """Any JSON; raises BadRecord."""
  text = decode(data)
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    raise BadRecord("no valid JSON") from None


def decode(data: bytes) -> str:
  """UTF-8 -> text; raises BadRecord."""
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError:
    raise BadRecord("bytes that are not UTF-8") from None


def file_size(path) -> int:
  """In bytes, as it lies there."""
  return epath.Path(path).stat().length


@contextlib.contextmanager
def open_bytes(path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
  """Opens a plain, .gz, .xz, .bz2 or .zst file: its content, and the file itself, whose position tells the progress."""
  path = epath.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"no input file at {path}")
  with path.open("rb") as raw, contextlib.ExitStack() as stack:
    if path.suffix in _DECOMPRESS:
      yield stack.enter_context(_DECOMPRESS[path.suffix](raw)), raw
    else:
      # Files on gs:// can't read a line of limited length themselves.
      yield raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw), raw


def _decompress_zst(raw: BinaryIO) -> io.BufferedReader:
  try:
    import zstandard  # noqa: PLC0415 an extra
  except ImportError as error:
    raise ImportError(
      f'{raw.name} is compressed by Zstandard, which needs a package; run: pip install "realm_jax[wiki]"'
    ) from error
  return io.BufferedReader(_ZstReader(raw, zstandard.ZstdDecompressor()))


class _ZstReader(io.RawIOBase):
  """The package's own reader takes a file that is cut off for one that ends."""

  def __init__(self, raw: BinaryIO, decompressor: Any):
    self._raw, self._decompressor = raw, decompressor
    self._frame = decompressor.decompressobj()
    self._is_between, self._left = True, b""

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._left:
      piece = self._frame.unused_data if self._frame.eof else b""
      if self._frame.eof:
        self._frame, self._is_between = self._decompressor.decompressobj(), True
      piece = piece or self._raw.read(1 << 16)
      if not piece:
        if not self._is_between:
          raise EOFError("the last frame has no end")
        return 0
      self._left, self._is_between = self._frame.decompress(piece), False
    num_bytes = min(len(buffer), len(self._left))
    buffer[:num_bytes], self._left = self._left[:num_bytes], self._left[num_bytes:]
    return num_bytes


_DECOMPRESS: dict[str, Callable[[BinaryIO], Any]] = {
  ".gz": lambda raw: gzip.open(raw, "rb"),
  ".xz": lambda raw: lzma.open(raw, "rb"),
  ".bz2": lambda raw: bz2.open(raw, "rb"),
  ".zst": _decompress_zst,
}
COMPRESSIONS = tuple(_DECOMPRESS)


@contextlib.contextmanager
def naming_damage(path, where: str) -> Iterator[None]:
  """Turns the errors of a file that can't be decompressed into a ValueError."""
  try:
    yield
  except Exception as error:
    # bz2 raises a plain OSError, without a number; a disk's errors have one.
    is_damage = isinstance(error, (EOFError, lzma.LZMAError, zlib.error)) or type(error).__name__ == "ZstdError"
    if not is_damage and not (isinstance(error, OSError) and error.errno is None):
      raise
    raise ValueError(f"{path} can't be decompressed {where} ({error}); is it cut off? Fetch it again") from error


def numbered_lines(path) -> Iterator[tuple[int, bytes]]:
  """Yields the lines of a plain or compressed file, counted from 1; of one that is longer than 16 MiB, the beginning.

  Raises:
    ValueError: the file can't be decompressed.
  """
  for number, line, _ in placed_lines(path):
    yield number, line


def placed_lines(path) -> Iterator[tuple[int, bytes, int]]:
  """`numbered_lines` with the bytes of the file that have been read."""
  number = 0
  with open_bytes(path) as (file, raw):
    while True:
      # A line without an end is read in pieces, so that it can't fill the memory.
      with naming_damage(path, f"after line {number}"):
        line = piece = file.readline(MAX_RECORD_BYTES + 1)
        while len(piece) > MAX_RECORD_BYTES and not piece.endswith(b"\n"):
          piece = file.readline(MAX_RECORD_BYTES + 1)
      if not line:
        return
      number += 1
      yield number, line, raw.tell()
