"""Reads data sets of TFDS: `tfds:wikipedia/20230601.en`, or `tfds:DIR` for one that lies prepared in a directory."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from realm_jax.data.articles import Article, BadRecord, make_article, parse_json
from realm_jax.data.formats import Format, Record
from realm_jax.data.spans import Span

PREFIX = "tfds:"
# Their examples are passages or sentences.
_READY = ("salient_span_wikipedia", "realm_passages")
_KIND = {
  **{"date": "date", "person": "person", "per": "person", "location": "location", "loc": "location"},
  **{"organization": "organization", "org": "organization", "misc": "misc"},
}


def _builder(path: str):
  import tensorflow_datasets as tfds  # noqa: PLC0415 a second, and TensorFlow where the data set needs it

  name = path.removeprefix(PREFIX)
  if pathlib.Path(name).is_dir():
    return tfds.builder_from_directory(name)
  try:
    return tfds.builder(name)
  except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
    raise ValueError(
      f"TFDS has no data set {name!r} ({str(error).splitlines()[0]}); see `tfds.list_builders()`"
    ) from error


def _examples(path: str) -> Iterable[dict[str, Any]]:
  """All examples of the split `train`, in the order of the files."""
  import tensorflow_datasets as tfds  # noqa: PLC0415

  builder = _builder(path)
  builder.download_and_prepare()
  features = set(builder.info.features)
  if not {"title", "text"} <= features:
    raise ValueError(f"{path} has the features {sorted(features)}; expected title and text")
  if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
    return builder.as_data_source(split="train")
  # One file after the other: the default mixes 16, in an order that may change with the version.
  read_config = tfds.ReadConfig(interleave_cycle_length=1)
  return tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False, read_config=read_config))


def _read(path: str) -> Iterator[Record]:
  # The articles of TFDS have no ids; the number is stable, as its files are.
  for number, example in enumerate(_examples(path), 1):
    record = {"id": example.get("id", number - 1), "title": example["title"], "text": example["text"]}
    for name, keys in (("spans", ("start", "limit", "type")), ("sentences", ("start",))):
      if name in example:
        record[name] = {key: list(example[name][key]) for key in keys}
    # Surrogate escapes carry what isn't UTF-8 to the parser, which rejects it.
    yield Record(number, json.dumps(record, default=_plain).encode(), number)


def _plain(value: Any) -> str | int:
  return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else int(value)


def _parse(data: bytes) -> Article:
  record = parse_json(data)
  article = make_article(record)
  # Offsets count bytes, from the text's beginning before it was stripped.
  text = record["text"].encode()
  lost = len(record["text"]) - len(record["text"].lstrip())
  if "sentences" in record:
    starts = [max(0, _characters(text, start) - lost) for start in record["sentences"]["start"]]
    article = article._replace(sentence_starts=tuple(starts))
  if "spans" in record:
    columns = record["spans"]
    spans = [
      Span(_characters(text, start) - lost, _characters(text, limit) - lost, _KIND.get(type_.lower(), "entity"))
      for start, limit, type_ in zip(columns["start"], columns["limit"], columns["type"], strict=True)
    ]
    if any(not 0 <= span.start < span.end <= len(article.text) for span in spans):
      raise BadRecord("a span or sentence outside of the text")
    article = article._replace(spans=tuple(sorted(spans)))
  return article


def _characters(text: bytes, num_bytes: int) -> int:
  """How many characters that many bytes at the beginning are."""
  if not 0 <= num_bytes <= len(text):
    raise BadRecord("a span or sentence outside of the text")
  try:
    return len(text[:num_bytes].decode())
  except UnicodeDecodeError:
    raise BadRecord("a span or sentence that begins or ends within a character") from None


def _size(path: str) -> int:
  splits = _builder(path).info.splits
  return splits["train"].num_examples if "train" in splits else 0


TFDS = Format("example", _read, _parse, _size)
TFDS_PASSAGES = TFDS._replace(is_ready=True)
TFDS_WIKIPEDIA = TFDS._replace(is_wikipedia=True)


def tfds_format(path: str) -> str:
  """Which of these three fits a data set, by its name."""
  parts = pathlib.PurePath(path.removeprefix(PREFIX)).parts
  if any(name in parts for name in _READY):
    return "tfds-passages"
  return "tfds-wikipedia" if "wikipedia" in parts else "tfds"
