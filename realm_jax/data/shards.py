"""The unit of work of a corpus build: some hundred records in, a file of passages out, wherever it is done."""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash
from etils import epath

from realm_jax.data.articles import Article, BadRecord, LeftOut, Rejections
from realm_jax.data.columns import Columns, to_columns
from realm_jax.data.files import write_whole
from realm_jax.data.formats import Record
from realm_jax.data.sources import ORQA_DROPPED_TITLES, Source, parse_record
from realm_jax.data.spans import Tagger, salient_spans
from realm_jax.data.splitting import Passage, split_each
from realm_jax.data.vocabulary import Vocabulary

_CODE_VERSION = 1  # raise it when the same records would give other passages
SHARD_BYTES = 2 * 2**20
_SHARD_RECORDS = 20_000
_CHUNK_CHARACTERS = 2**18  # tokenised at once, which takes some 50 bytes a character
_SUMMARY = "summary"  # a JSON text beside the columns


class Settings(NamedTuple):
  """What a passage depends on, besides its record."""

  vocabulary: Vocabulary
  passage_length: int
  tagger: Tagger
  passage_words: int | None = None
  whole: bool | None = None  # None: as the format has it
  drop_titles: str | None = None  # a regular expression; None: as the format has it

  @property
  def digest(self) -> str:
    """Names the settings: other ones make other shards."""
    parts = [_CODE_VERSION, self.vocabulary.digest, self.tagger.name, *self[1:2], *self[3:]]
    return xxhash.xxh3_64_hexdigest(json.dumps(parts).encode())


class Shard(NamedTuple):
  """Consecutive records of one source."""

  source_number: int
  source: Source
  number: int
  records: tuple[Record, ...]

  @property
  def name(self) -> str:
    """Its place, and a digest of its records: the same name has the same content."""
    digest = xxhash.xxh3_128()
    for record in self.records:
      digest.update(f"{record.number} {len(record.data)} {record.problem}\n".encode())
      digest.update(record.data)
    return f"{self.source_number:05d}-{self.number:05d}-{digest.hexdigest()}.npz"


class ShardSummary(NamedTuple):
  """What a build must know of a finished shard."""

  num_passages: int
  ids: list[str]  # of the articles
  numbers: list[int]  # of their records
  bad: dict[str, tuple[int, list[int]]]  # reason -> count, numbers of the first
  left_out: dict[str, int]  # reason -> count


def cut_shards(source_number: int, source: Source, shard_bytes: int) -> Iterator[Shard]:
  """Cuts one source into shards of about that many bytes, wherever and in how many processes they are then built."""
  records: list[Record] = []
  size, number = 0, 0
  for record in source.records():
    records.append(record)
    size += len(record.data)
    if size >= shard_bytes or len(records) >= _SHARD_RECORDS:
      yield Shard(source_number, source, number, tuple(records))
      records, size, number = [], 0, number + 1
  if records:
    yield Shard(source_number, source, number, tuple(records))


def build_shard(shard: Shard, settings: Settings, directory: str) -> str:
  """Writes the shard's passages into the directory, unless they are there already; returns the file's name."""
  path = epath.Path(directory) / shard.name
  if path.exists():
    return path.name
  bad, left_out = Rejections(), Rejections()
  numbers, ids, passages = [], [], []
  for chunk in _chunks(_parse(shard, settings, bad, left_out)):
    for (number, article), found in zip(chunk, _split([article for _, article in chunk], shard.source, settings)):
      numbers.append(number)
      ids.append(article.id)
      passages += found
      if not found:
        left_out.add("a text without a wordpiece", number)
  untagged = [p for p in passages if p.spans is None]
  tagged = iter(salient_spans([p.body for p in untagged], settings.tagger) if untagged else [])
  columns = to_columns(passages, [next(tagged) if p.spans is None else p.spans for p in passages])
  summary = {
    "num_passages": len(passages),
    "ids": ids,
    "numbers": numbers,
    "bad": {reason: [count, [int(place) for place in bad.places(reason)]] for reason, count in bad.count.items()},
    "left_out": dict(left_out.count),
  }
  content = io.BytesIO()
  arrays: dict[str, Any] = columns | {_SUMMARY: np.frombuffer(json.dumps(summary).encode(), np.uint8)}
  np.savez(content, **arrays)
  write_whole(path, content.getvalue())
  return path.name


def read_summary(path: epath.Path) -> ShardSummary:
  """What was counted in a shard."""
  with _open(path) as file:
    return ShardSummary(**json.loads(file[_SUMMARY].tobytes()))


def read_columns(path: epath.Path) -> Columns:
  """A shard's arrays by their names."""
  with _open(path) as file:
    return {name: file[name] for name in file.files if name != _SUMMARY}


@contextlib.contextmanager
def _open(path: epath.Path) -> Iterator[Any]:
  """A shard's file; one that is damaged, as a power cut can do, is removed to be built again."""
  try:
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
      yield file
  except (zipfile.BadZipFile, ValueError, KeyError, EOFError, zlib.error) as error:
    path.unlink(missing_ok=True)
    raise OSError(f"{path} was damaged ({error}) and is removed; run the same command again to go on") from error


def _parse(shard: Shard, settings: Settings, bad: Rejections, left_out: Rejections) -> Iterator[tuple[int, Article]]:
  """Yields the wanted articles with their numbers."""
  drop_titles = settings.drop_titles
  if drop_titles is None:
    drop_titles = ORQA_DROPPED_TITLES if shard.source.format.is_wikipedia else ""
  is_dropped = re.compile(drop_titles).match if drop_titles else lambda title: None
  for record in shard.records:
    try:
      article = parse_record(shard.source, record)
      if is_dropped(article.title):
        raise LeftOut("a title of a list or disambiguation page")
      yield record.number, article
    except BadRecord as error:
      bad.add(str(error), record.number)
    except LeftOut as error:
      left_out.add(str(error), record.number)


def _split(articles: Sequence[Article], source: Source, settings: Settings) -> Iterator[list[Passage]]:
  whole = settings.whole
  if whole is None:
    whole = source.format.is_ready and settings.passage_words is None
  return split_each(
    articles,
    settings.vocabulary,
    passage_length=settings.passage_length,
    passage_words=settings.passage_words,
    whole=whole,
  )


def _chunks(articles: Iterable[tuple[int, Article]]) -> Iterator[list[tuple[int, Article]]]:
  """Pieces of many articles that are tokenised at once, but not of too much text."""
  chunk: list[tuple[int, Article]] = []
  size = 0
  for number, article in articles:
    chunk.append((number, article))
    size += len(article.text)
    if size >= _CHUNK_CHARACTERS:
      yield chunk
      chunk, size = [], 0
  if chunk:
    yield chunk
