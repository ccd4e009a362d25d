"""Builds a passage store: cuts the inputs into shards, has them built, and joins them in order."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import pathlib
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from etils import epath

from realm_jax.data.articles import Rejections
from realm_jax.data.columns import first_passages
from realm_jax.data.ledger import Ledger
from realm_jax.data.passages import PassageWriter, refuse_existing
from realm_jax.data.run_beam import run_beam
from realm_jax.data.run_processes import run_processes
from realm_jax.data.shards import SHARD_BYTES, Settings, Shard, cut_shards, read_columns
from realm_jax.data.sources import Source, find_sources, read_articles
from realm_jax.data.spans import Tagger
from realm_jax.data.vocabulary import Vocabulary

_VOCABULARY_CHARACTERS = 500_000_000  # of the beginning: more would hardly change the wordpieces, but fill the memory


class Bar(Protocol):
  """What is used of a tqdm bar."""

  def update(self, n: int, /) -> Any:
    """n more are done."""
    ...

  def close(self) -> None:
    """Nothing more will come."""
    ...


class NoBar:
  """Shows nothing."""

  def __init__(self, description: str, total: int): ...

  def update(self, n: int, /) -> None: ...

  def close(self) -> None: ...


class Runner(NamedTuple):
  """Where the shards are built."""

  name: str = "processes"  # of this machine, or a runner of Beam
  num_workers: int = 1
  beam_options: tuple[str, ...] = ()
  shards_dir: str | None = None  # None: beside the output


THIS_PROCESS = Runner()


def train_vocabulary(inputs, *, size: int, lowercase: bool, format_name: str | None = None) -> Vocabulary:
  """Learns a vocabulary from titles and texts of the first 500 million characters of the inputs."""
  return Vocabulary.train(_Texts(_as_inputs(inputs), format_name), size=size, lowercase=lowercase)


class _Texts:
  """Titles and texts of the inputs, which can be read again and again."""

  def __init__(self, inputs: Sequence[str], format_name: str | None):
    self._inputs, self._format_name = inputs, format_name

  def __iter__(self) -> Iterator[str]:
    room = _VOCABULARY_CHARACTERS
    for article in read_articles(self._inputs, rejections=Rejections(), format_name=self._format_name):
      if room <= 0:
        return
      room -= len(article.text)
      yield f"{article.title} {article.text}"


def build_passages(
  inputs,
  output_path,
  *,
  vocabulary: Vocabulary,
  passage_length: int,
  tagger: Tagger,
  passage_words: int | None = None,
  whole: bool | None = None,
  drop_titles: str | None = None,
  format_name: str | None = None,
  strict: bool = False,
  num_passages: int | None = None,
  description: dict[str, Any] | None = None,
  runner: Runner = THIS_PROCESS,
  shard_bytes: int = SHARD_BYTES,
  make_bar: Callable[[str, int], Bar] = NoBar,
) -> dict[str, Any]:
  """Reads articles, splits and tags them, and writes the store: the same one wherever the work is done.

  A build that was killed goes on from the shards that it had done when it is called again with the same inputs and
  settings; they lie in `.NAME.writing` beside the output. One that fails because of its input leaves nothing.

  Args:
    inputs: a path, or a list of what `find_sources` takes.
    output_path: the store's directory, which must not exist yet.
    vocabulary, passage_length, tagger, passage_words, whole, drop_titles: see `shards.Settings`.
    strict: refuse the first bad record.
    num_passages: stop when there are this many.
    description: goes into corpus.json: source, licence.
    make_bar: makes a progress bar of a description and a total, in bytes or examples of the inputs.

  Returns:
    What corpus.json says, with "rejected" and "left_out": counts by reason, and "rejected_records": the same in words.

  Raises:
    ValueError: nothing usable in the inputs, the same id twice, damage.
  """
  if whole and passage_words is not None:
    raise ValueError("whole passages can't be cut after a number of words; leave out --whole or --passage_words")
  output_path = pathlib.Path(output_path)
  refuse_existing(output_path)
  settings = Settings(vocabulary, passage_length, tagger, passage_words, whole, drop_titles)
  sources = find_sources(_as_inputs(inputs), format_name)
  scratch = output_path.with_name(f".{output_path.name}.writing")
  with _held(scratch):
    shards_dir = epath.Path(runner.shards_dir or scratch) / f"shards-{settings.digest}"
    shards_dir.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(sources, shards_dir, strict=strict)
    with contextlib.closing(_run(sources, settings, str(shards_dir), runner, shard_bytes, make_bar)) as names:
      for name in names:
        ledger.add(name)
        if num_passages is not None and ledger.num_passages >= num_passages:
          break
    if ledger.num_passages == 0:
      raise ValueError(f"{_name(sources)} gives an empty corpus: {ledger.describe()}")
    shutil.rmtree(scratch / "store", ignore_errors=True)
    with PassageWriter(output_path, vocabulary, passage_length=passage_length, scratch_dir=scratch / "store") as writer:
      with contextlib.closing(make_bar("joining", len(ledger.names))) as bar:
        for name in ledger.names:
          columns = read_columns(shards_dir / name)
          if num_passages is not None:
            columns = first_passages(columns, num_passages - writer.num_passages)
          writer.add_columns(columns)
          bar.update(1)
      result = {
        "num_articles": ledger.num_articles,
        "rejected": dict(ledger.bad.count),
        "left_out": dict(ledger.left_out.count),
        "tagger": tagger.name,
        "settings": _describe(settings, sources),
        **(description or {}),
      }
      writer.finish(result)
    shards_dir.rmtree(missing_ok=True)
  return result | {
    "num_passages": writer.num_passages,
    "num_spans": writer.num_spans,
    "rejected_records": ledger.bad.describe(),
  }


def _as_inputs(inputs) -> list[str]:
  return [str(inputs)] if isinstance(inputs, str | pathlib.PurePath) else [str(name) for name in inputs]


def _name(sources: Sequence[Source]) -> str:
  return sources[0].path + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")


def _describe(settings: Settings, sources: Sequence[Source]) -> dict[str, Any]:
  """What a reader of the card wants to know; the names of files differ from machine to machine and stay out."""
  return {
    "format": " ".join(sorted({source.format_name for source in sources})),
    "passage_words": settings.passage_words,
    "whole": settings.whole,
    "drop_titles": settings.drop_titles,
  }


@contextlib.contextmanager
def _held(scratch: pathlib.Path) -> Iterator[None]:
  """Holds the directory against another process; leaves it for the next try unless the build is done or can't be."""
  scratch.mkdir(parents=True, exist_ok=True)
  with open(scratch / "lock", "wb") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise RuntimeError(f"another process builds in {scratch}; wait for it, or choose another --output") from None
    try:
      yield
    except (ValueError, ImportError):
      shutil.rmtree(scratch, ignore_errors=True)
      raise
    shutil.rmtree(scratch, ignore_errors=True)


def _run(
  sources: Sequence[Source],
  settings: Settings,
  directory: str,
  runner: Runner,
  shard_bytes: int,
  make_bar: Callable[[str, int], Bar],
) -> Generator[str]:
  """Yields the names of the shards' files, in order, when they are built."""
  if runner.name != "processes":
    yield from run_beam(
      sources, settings, directory, shard_bytes=shard_bytes, runner=runner.name, options=runner.beam_options
    )
    return
  bar = make_bar("building", sum(source.format.size(source.path) for source in sources))
  steps: collections.deque[int] = collections.deque()  # how far each shard that isn't done yet brings the bar

  def shards() -> Iterator[Shard]:
    for number, source in enumerate(sources):
      position = 0
      for shard in cut_shards(number, source, shard_bytes):
        steps.append(shard.records[-1].position - position)
        position = shard.records[-1].position
        yield shard

  names = run_processes(shards(), settings, directory, runner.num_workers)
  with contextlib.closing(bar), contextlib.closing(names):
    for name in names:
      bar.update(steps.popleft())
      yield name
