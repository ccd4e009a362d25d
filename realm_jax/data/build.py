"""Builds a passage store from a file of articles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from realm_jax.data.articles import Article, Rejections, read_articles
from realm_jax.data.passages import PassageWriter
from realm_jax.data.spans import Tagger, salient_spans
from realm_jax.data.splitting import split_articles
from realm_jax.data.vocabulary import Vocabulary

_CHUNK = 512  # articles in memory at once


def train_vocabulary(input_path, *, size: int, lowercase: bool) -> Vocabulary:
  """Learns a vocabulary from titles and texts of a file of articles."""
  return Vocabulary.train(_Texts(input_path), size=size, lowercase=lowercase)


class _Texts:
  """Titles and texts of a file, which can be read again and again."""

  def __init__(self, input_path):
    self._input_path = input_path

  def __iter__(self) -> Iterator[str]:
    for article in read_articles(self._input_path, rejections=Rejections()):
      yield f"{article.title} {article.text}"


def build_passages(
  input_path,
  output_path,
  *,
  vocabulary: Vocabulary,
  passage_length: int,
  tagger: Tagger,
  whole: bool = False,
  strict: bool = False,
  num_passages: int | None = None,
  description: dict[str, Any] | None = None,
  progress: Callable[[Iterator[Article]], Iterator[Article]] = lambda articles: articles,
) -> dict[str, Any]:
  """Reads articles, splits and tags them, and writes the store.

  Args:
    input_path: jsonl, see `read_articles`.
    output_path: the store's directory, which must not exist yet.
    whole: the articles are ready passages, see `split_articles`.
    strict: refuse the first bad line.
    num_passages: stop when there are this many.
    description: goes into corpus.json: source, licence.
    progress: wraps the articles, to show how far it is.

  Returns:
    What corpus.json says, with "rejected": counts by reason, and "rejected_lines": the same in words.

  Raises:
    ValueError: nothing usable in the input, or what `read_articles` raises.
  """
  rejections = Rejections()
  articles = read_articles(input_path, rejections=rejections, strict=strict)
  num_read = 0
  with PassageWriter(output_path, vocabulary, passage_length=passage_length) as writer:
    for chunk in _chunks(progress(articles)):
      num_read += len(chunk)
      passages = list(split_articles(chunk, vocabulary, passage_length=passage_length, whole=whole))
      if num_passages is not None:
        passages = passages[: num_passages - writer.num_passages]
      for passage, spans in zip(passages, salient_spans([p.body for p in passages], tagger)):
        writer.add(passage, spans)
      if writer.num_passages == num_passages:
        break
    if writer.num_passages == 0:
      reasons = rejections.describe() or ("no text has a wordpiece" if num_read else "the file has no line")
      raise ValueError(f'{input_path} gives an empty corpus: {reasons}; expected {{"id", "title", "text"}} a line')
    result = {
      "num_articles": num_read,
      "rejected": dict(rejections.count),
      "tagger": tagger.name,
      **(description or {}),
    }
    writer.finish(result)
  return result | {
    "num_passages": writer.num_passages,
    "num_spans": writer.num_spans,
    "rejected_lines": rejections.describe(),
  }


def _chunks(articles: Iterable[Article]) -> Iterator[tuple[Article, ...]]:
  articles = iter(articles)  # once: a progress bar starts anew with each iter()
  while chunk := tuple(itertools.islice(articles, _CHUNK)):
    yield chunk
