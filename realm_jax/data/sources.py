"""Chooses a reader for every input, by its name or by --format."""

from __future__ import annotations

import collections
import glob
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from realm_jax.data import formats_dump, formats_lines, formats_parquet, formats_text, formats_tfds, formats_tfrecord
from realm_jax.data.articles import COMPRESSIONS, Article, BadRecord, LeftOut, Rejections
from realm_jax.data.formats import Format, Record

FORMATS: dict[str, Format] = {
  "jsonl": formats_lines.JSONL,
  "text": formats_text.TEXT,
  "tsv": formats_lines.TSV,
  "parquet": formats_parquet.PARQUET,
  "wikiextractor": formats_lines.WIKIEXTRACTOR,
  "dump": formats_dump.DUMP,
  "orqa": formats_tfrecord.ORQA,
  "tfds": formats_tfds.TFDS,
  "tfds-wikipedia": formats_tfds.TFDS_WIKIPEDIA,
  "tfds-passages": formats_tfds.TFDS_PASSAGES,
}
_FORMAT_OF_NAME = (
  (r".+\.(jsonl|ndjson)", "jsonl"),
  (r".+\.(txt|md)", "text"),
  (r".+\.tsv", "tsv"),
  (r".+\.parquet", "parquet"),
  (r"wiki_\d+", "wikiextractor"),
  (r".+\.xml(-p\d+p\d+)?", "dump"),
  (r".*blocks.*\.(tfr|tfrecord)", "orqa"),
)
_IN_DIRECTORIES = ("text", "wikiextractor")  # what is taken of a directory
# ORQA's rule (`match`, so from the beginning of the title).
ORQA_DROPPED_TITLES = r"(?:List|Index|Outline) of .+|.*\(disambiguation\)"


class Source(NamedTuple):
  """One input: a file, or a data set of TFDS."""

  path: str
  format_name: str

  @property
  def format(self) -> Format:
    """How it is read."""
    return FORMATS[self.format_name]

  def records(self) -> Iterator[Record]:
    """Its articles as they stand there, and its faults, in order."""
    return self.format.read(self.path)


def find_sources(inputs: Iterable[str], format_name: str | None = None) -> tuple[Source, ...]:
  """Resolves names of files and directories, patterns (`part-*.jsonl.gz`), and `tfds:NAME`, in their order.

  Raises:
    ValueError: a name that tells no format, or one that isn't known.
    FileNotFoundError: nothing of that name.
  """
  if format_name is not None and format_name not in FORMATS:
    raise ValueError(f"unknown --format {format_name!r}; the formats are {', '.join(FORMATS)}")
  sources = [
    Source(path, format_name or _format_of_name(path)) for name in inputs for path in _expand(str(name), format_name)
  ]
  path, count = collections.Counter(source.path for source in sources).most_common(1)[0]
  if count > 1:
    raise ValueError(f"{path} is given twice; name each input once")
  return tuple(sources)


def _expand(name: str, format_name: str | None) -> Sequence[str]:
  if name.startswith(formats_tfds.PREFIX):
    return [name]
  if "://" in name:
    return _expand_remote(name)
  path = pathlib.Path(name)
  if path.is_dir():
    files = (p for p in path.rglob("*") if p.is_file() and not any(n[0] == "." for n in p.relative_to(path).parts))
    found = sorted(str(p) for p in files if format_name or _told_format(p) in _IN_DIRECTORIES)
    if not found:
      raise FileNotFoundError(
        f"{name} is a directory without *.txt, *.md or WikiExtractor's wiki_00, wiki_01 ...; for other files give a "
        f"pattern, such as '{name}/*.jsonl'"
      )
    return found
  if path.is_file() or not glob.has_magic(name):
    if not path.is_file():
      raise FileNotFoundError(f"no input file at {name}")
    return [name]
  found = sorted(glob.glob(name, recursive=True))
  if not found:
    raise FileNotFoundError(f"no input file fits the pattern {name}")
  return found


def _expand_remote(name: str) -> Sequence[str]:
  """A file of gs://, or a pattern of files in one directory."""
  directory, _, pattern = name.rpartition("/")
  if not glob.has_magic(pattern):
    return [name]
  found = sorted(str(path) for path in epath.Path(directory).glob(pattern))
  if not found:
    raise FileNotFoundError(f"no input file fits the pattern {name}")
  return found


def _format_of_name(path: str) -> str:
  if path.startswith(formats_tfds.PREFIX):
    return formats_tfds.tfds_format(path)
  name = pathlib.Path(path)
  if format_name := _told_format(name):
    return format_name
  raise ValueError(f"the name {name.name} tells no format; give --format, one of {', '.join(FORMATS)}")


def _told_format(path: pathlib.Path) -> str | None:
  stem = path.stem if path.suffix in COMPRESSIONS else path.name
  return next((format_name for pattern, format_name in _FORMAT_OF_NAME if re.fullmatch(pattern, stem)), None)


def common_noun(sources: Iterable[Source]) -> str:
  """What the sources' records are called, "record" if they differ."""
  nouns = {source.format.noun for source in sources}
  return nouns.pop() if len(nouns) == 1 else "record"


def parse_record(source: Source, record: Record) -> Article:
  """Raises BadRecord or LeftOut."""
  if record.problem:
    raise BadRecord(record.problem)
  return source.format.parse(record.data)


def read_articles(
  inputs: Iterable[str], *, rejections: Rejections, strict: bool = False, format_name: str | None = None
) -> Iterator[Article]:
  """Yields the articles of all inputs, in one process; `rejections` gets every bad record.

  Raises:
    ValueError: an input that is damaged; strict and a bad record.
  """
  for source in find_sources(inputs, format_name):
    for record in source.records():
      try:
        yield parse_record(source, record)
      except LeftOut:
        continue
      except BadRecord as error:
        if strict:
          raise strict_error(source, record.number, str(error)) from None
        rejections.add(str(error), record.number)


def strict_error(source: Source, number: int | str, reason: str) -> ValueError:
  """What --strict raises for a bad record: its place, the reason and the remedy."""
  noun = source.format.noun
  return ValueError(
    f"{source.path}, {noun} {number}: a {noun} with {reason}; mend it, or leave out --strict to skip it"
  )
