"""The passage store: token ids, text, sentences and salient spans of a corpus, memory-mapped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np
import xxhash

from realm_jax.data.bucket_copy import local_copy
from realm_jax.data.columns import FIXED, RAGGED, Columns, to_columns
from realm_jax.data.packing import Tokens
from realm_jax.data.spans import KINDS, Span
from realm_jax.data.splitting import Passage
from realm_jax.data.vocabulary import Vocabulary

FORMAT = "realm-passages-2"
# Each ragged column has a companion `<name>_offset` with N + 1 entries.
_COLUMN_NAMES = (*FIXED, *RAGGED, *(f"{name}_offset" for name in RAGGED))


class PassageWriter:
  """Writes a store next to its final place, and moves it there when it is whole.

  Use as a context manager; `finish` makes the store visible, leaving without it removes what was written.
  """

  def __init__(self, path, vocabulary: Vocabulary, *, passage_length: int, scratch_dir=None):
    """scratch_dir is where to write before; it must be on the same disk as path."""
    self._path = pathlib.Path(path)
    refuse_existing(self._path)
    self._vocabulary = vocabulary
    self._passage_length = passage_length
    self._scratch = pathlib.Path(scratch_dir or self._path.with_name(f".{self._path.name}.writing-{os.getpid()}"))
    self._scratch.mkdir(parents=True)
    self._files = contextlib.ExitStack()
    self._file = {name: self._files.enter_context(_File(self._scratch / f"{name}.bin")) for name in _COLUMN_NAMES}
    self._end = dict.fromkeys(RAGGED, 0)
    for name in RAGGED:
      self._file[f"{name}_offset"].write(np.zeros(1, "<u8"))
    self.num_passages = 0
    self.num_sentences = 0
    self.num_spans = dict.fromkeys(KINDS, 0)

  def __enter__(self) -> PassageWriter:
    return self

  def __exit__(self, *exc) -> None:
    self._files.close()
    shutil.rmtree(self._scratch, ignore_errors=True)

  def add(self, passage: Passage, spans: Sequence[Span]) -> None:
    """Appends one passage; spans are character ranges in its body."""
    self.add_columns(to_columns([passage], [spans]))

  def add_columns(self, columns: Columns) -> None:
    """Appends many."""
    for name in FIXED:
      self._file[name].write(columns[name])
    for name in RAGGED:
      self._file[name].write(columns[name])
      offset = self._end[name] + np.cumsum(columns[f"{name}_count"], dtype="<u8")
      self._file[f"{name}_offset"].write(offset)
      self._end[name] = int(offset[-1]) if len(offset) else self._end[name]
    for kind, count in zip(KINDS, np.bincount(columns["span"][:, 3], minlength=len(KINDS))):
      self.num_spans[kind] += int(count)
    self.num_passages += len(columns["body_length"])
    self.num_sentences += len(columns["sentence_start"])

  def finish(self, description: dict[str, Any]) -> None:
    """Writes `corpus.json`, with description's fields (source, licence, ...), and moves the store to its place."""
    if self.num_passages == 0:
      raise ValueError("an empty corpus: no passage was added")
    # Rows are read as windows of P tokens, the last one too.
    self._file["token"].write(np.zeros(self._passage_length, "<u2"))
    self._files.close()
    with _File(self._scratch / "vocab.txt") as vocabulary:
      vocabulary.write(self._vocabulary.to_bytes())
    digest = {f"{name}.bin": file.digest for name, file in sorted(self._file.items())} | {
      "vocab.txt": vocabulary.digest
    }
    corpus: dict[str, Any] = {
      "format": FORMAT,
      "num_passages": self.num_passages,
      "passage_length": self._passage_length,
      "num_sentences": self.num_sentences,
      "num_spans": self.num_spans,
      "vocabulary_size": len(self._vocabulary),
      "lowercase": self._vocabulary.lowercase,
      "vocabulary_digest": self._vocabulary.digest,
      "content_digest": _json_digest(digest),
      "file_digest": digest,
      **description,
    }
    corpus["description_digest"] = _json_digest(corpus)
    with _File(self._scratch / "corpus.json") as file:
      file.write((json.dumps(corpus, indent=2, ensure_ascii=False) + "\n").encode())
    if self._path.exists():
      self._path.rmdir()  # empty, as checked at the start
    self._scratch.rename(self._path)


def refuse_existing(path: pathlib.Path) -> None:
  """Raises FileExistsError if something is there already; an empty directory is not in the way."""
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise FileExistsError(f"{path} exists; choose another --output or remove it")


class _File:
  """A file that knows the digest of what was written, and is on the disk when it is closed."""

  def __init__(self, path: pathlib.Path):
    self._file: BinaryIO = open(path, "wb")
    self._digest = xxhash.xxh3_128()

  def __enter__(self) -> _File:
    return self

  def __exit__(self, *exc) -> None:
    try:
      self._file.flush()
      os.fsync(self._file.fileno())
    finally:
      self._file.close()

  def write(self, data: bytes | np.ndarray) -> None:
    if isinstance(data, np.ndarray):
      data = data.tobytes()
    self._digest.update(data)
    self._file.write(data)

  @property
  def digest(self) -> str:
    return self._digest.hexdigest()


class PassageStore:
  """N passages of at most P tokens, read without loading them.

  Attributes:
    title_length_N, body_length_N: uint16, tokens.
    sentence_start, span: ragged, `sentence_start[sentence_offset[i]:sentence_offset[i + 1]]` belongs to passage i.
      A span is (first body token, last + 1, sentence, index into spans.KINDS).
    description: what corpus.json says.
  """

  def __init__(self, path):
    """Opens the store; one in a bucket is copied to the local disk first.

    Raises:
      FileNotFoundError: no store there.
      ValueError: another format, or a file that is cut off.
    """
    self.path = local_copy(str(path)) if "://" in str(path) else pathlib.Path(path)
    if not (self.path / "corpus.json").is_file():
      raise FileNotFoundError(f"no corpus at {self.path} (it has no corpus.json); make one with realm build_corpus")
    try:
      self.description = json.loads((self.path / "corpus.json").read_text(encoding="utf-8"))
    except ValueError as error:
      raise ValueError(
        f"{self.path / 'corpus.json'} is no JSON ({error}): the corpus is damaged; build it again"
      ) from None
    if self.description.get("format") != FORMAT:
      raise ValueError(
        f"{self.path} has the format {self.description.get('format')!r}, this version reads {FORMAT!r}; "
        "build the corpus again"
      )
    self.num_passages: int = self.description["num_passages"]
    self.passage_length: int = self.description["passage_length"]
    self.content_digest: str = self.description["content_digest"]
    n = self.num_passages
    self.title_length_N = self._map("title_length", "<u2", (n,))
    self.body_length_N = self._map("body_length", "<u2", (n,))
    # As plain arrays, for a piece of an np.memmap takes four times as long to take.
    self._offset = {name: np.asarray(self._map(f"{name}_offset", "<u8", (n + 1,))) for name in RAGGED}
    num_entries = {name: int(offset[-1]) for name, offset in self._offset.items()}
    num_entries["token"] += self.passage_length
    ragged = {name: self._map(name, dtype, (num_entries[name], *shape)) for name, (dtype, shape) in RAGGED.items()}
    self._id, self._title, self._body = (np.asarray(ragged[name]) for name in ("id", "title", "body"))
    self.sentence_start, self.sentence_offset = ragged["sentence_start"], self._offset["sentence_start"]
    self.span, self.span_offset = ragged["span"], self._offset["span"]
    # Row t is the P tokens from token t on, without a copy: a gather of rows then copies each in one piece.
    self._window = np.lib.stride_tricks.sliding_window_view(ragged["token"], self.passage_length)

  def __len__(self) -> int:
    return self.num_passages

  @property
  def num_tokens(self) -> int:
    """Of all titles and bodies."""
    return int(self._offset["token"][-1])

  def id(self, i: int) -> str:
    """The name of passage i, by which it is replaced or deleted."""
    return self._text("id", self._id, i)

  def title(self, i: int) -> str:
    """The title of passage i; it may be empty."""
    return self._text("title", self._title, i)

  def body(self, i: int) -> str:
    """The text of passage i, in whose characters answers are given."""
    return self._text("body", self._body, i)

  def rows_named(self, names: Iterable[str]) -> dict[str, list[int]]:
    """The passages of each name, in order: a passage's id, or its article's; a name that is not here is left out."""
    rows: dict[str, list[int]] = {}
    wanted = set(names)
    for i in range(len(self)) if wanted else ():
      passage = self.id(i)
      for name in wanted & {passage, passage.rpartition("#")[0]}:
        rows.setdefault(name, []).append(i)
    return rows

  def vocabulary(self) -> Vocabulary:
    """The one that the passages were cut with."""
    return Vocabulary.load(self.path / "vocab.txt", lowercase=self.description["lowercase"])

  def title_tokens(self, passage_id: np.ndarray) -> Tokens:
    """Titles of passages; the null passage (-1) has none."""
    length = np.where(passage_id < 0, 0, self.title_length_N[passage_id].astype(np.int32))
    return Tokens(self._rows(passage_id), np.zeros_like(length), length)

  def body_tokens(self, passage_id: np.ndarray) -> Tokens:
    """Bodies of passages; the null passage (-1) has none."""
    start = self.title_length_N[passage_id].astype(np.int32)
    length = np.where(passage_id < 0, 0, self.body_length_N[passage_id].astype(np.int32))
    return Tokens(self._rows(passage_id), start, length)

  def padded_tokens(self, passage_id: np.ndarray) -> np.ndarray:
    """uint16 [.., P]: the title's tokens, then the body's, then zeros; of the null passage only zeros."""
    length = np.where(passage_id < 0, 0, self.title_length_N[passage_id] + self.body_length_N[passage_id])
    # Row l keeps the first l tokens: a look-up is faster than a comparison for every token.
    keep = np.tri(self.passage_length + 1, self.passage_length, -1, bool) * np.uint16(0xFFFF)
    return self._rows(passage_id) & keep[length]

  def verify(self) -> None:
    """Reads every file and compares its digest; raises ValueError that names the first that differs."""
    description = {name: value for name, value in self.description.items() if name != "description_digest"}
    if self.description.get("description_digest") != _json_digest(description):
      raise ValueError(
        f"{self.path / 'corpus.json'} is not what was built (its digest differs); build the corpus again"
      )
    for name, digest in self.description["file_digest"].items():
      path = self.path / name
      if not path.is_file() or _file_digest(path) != digest:
        raise ValueError(f"{path} is not what was built (its digest differs); build the corpus again")

  def _rows(self, passage_id: np.ndarray) -> np.ndarray:
    """P tokens from the beginning of each passage on; past its end those of the next. -1 is the padding behind all."""
    return self._window[self._offset["token"][passage_id]]

  def _map(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    path = self.path / f"{name}.bin"
    expected = np.dtype(dtype).itemsize * math.prod(shape)
    size = path.stat().st_size if path.is_file() else 0
    if size != expected:
      raise ValueError(f"{path} has {size} bytes instead of {expected}: the corpus is damaged; build it again")
    if expected == 0:  # an empty file can't be mapped
      return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", shape=shape)

  def _text(self, name: str, data: np.ndarray, i: int) -> str:
    begin, end = self._offset[name][i : i + 2]
    return data[int(begin) : int(end)].tobytes().decode("utf-8")


def passage_uid(title: str, body: str) -> int:
  """The number by which Google's REALM knows a passage, in its released files too; empty texts: the null passage."""
  return int(hashlib.sha1(f"{title} <sep> {body}".encode()).hexdigest(), 16)


def _json_digest(content: dict[str, Any]) -> str:
  return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def _file_digest(path: pathlib.Path) -> str:
  digest = xxhash.xxh3_128()
  with open(path, "rb") as file:
    while piece := file.read(1 << 24):
      digest.update(piece)
  return digest.hexdigest()
