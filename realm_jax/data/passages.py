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
from typing import Any

import numpy as np
import xxhash

from realm_jax.data.packing import Tokens
from realm_jax.data.spans import KINDS, Span
from realm_jax.data.splitting import Passage
from realm_jax.data.vocabulary import Vocabulary

FORMAT = "realm-passages-1"

# Ragged fields have a companion `<name>_offset` with N + 1 entries.
_FIELDS: dict[str, tuple[str, tuple[int, ...]]] = {
  "title_length": ("<u2", ()),
  "body_length": ("<u2", ()),
}
_RAGGED: dict[str, tuple[str, tuple[int, ...]]] = {
  "id": ("u1", ()),
  "title": ("u1", ()),
  "body": ("u1", ()),
  "sentence_start": ("<u2", ()),  # body token
  "span": ("<u2", (4,)),  # first and last + 1 body token, sentence, kind
}


class PassageWriter:
  """Writes a store next to its final place, and moves it there when it is whole.

  Use as a context manager; `finish` makes the store visible, leaving without it removes what was written.
  """

  def __init__(self, path, vocabulary: Vocabulary, *, passage_length: int):
    self._path = pathlib.Path(path)
    if self._path.exists() and (not self._path.is_dir() or any(self._path.iterdir())):
      raise FileExistsError(f"{self._path} exists; choose another --output or remove it")
    self._vocabulary = vocabulary
    self._passage_length = passage_length
    self._scratch = self._path.with_name(f".{self._path.name}.writing-{os.getpid()}")
    self._scratch.mkdir(parents=True)
    self._files = contextlib.ExitStack()
    names = ["token", *_FIELDS, *_RAGGED, *(f"{name}_offset" for name in _RAGGED)]
    self._file = {name: self._files.enter_context(open(self._scratch / f"{name}.bin", "wb")) for name in names}
    self._end = dict.fromkeys(_RAGGED, 0)
    for name in _RAGGED:
      self._file[f"{name}_offset"].write(np.uint64(0).tobytes())
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
    body = passage.body_encoding
    row = np.zeros(self._passage_length, "<u2")
    tokens = np.concatenate([passage.title_token_id, body.token_id])
    row[: len(tokens)] = tokens
    self._file["token"].write(row.tobytes())
    self._write("title_length", len(passage.title_token_id))
    self._write("body_length", len(body.token_id))
    span_token = _spans_to_tokens(spans, body.char_range, passage.sentence_start)
    for kind in span_token[:, 3]:
      self.num_spans[KINDS[kind]] += 1
    self._append("id", passage.id.encode())
    self._append("title", passage.title.encode())
    self._append("body", passage.body.encode())
    self._append("sentence_start", passage.sentence_start)
    self._append("span", span_token)
    self.num_passages += 1
    self.num_sentences += len(passage.sentence_start)

  def finish(self, description: dict[str, Any]) -> None:
    """Writes `corpus.json`, with description's fields (source, licence, ...), and moves the store to its place."""
    if self.num_passages == 0:
      raise ValueError("an empty corpus: no passage was added")
    self._files.close()
    self._vocabulary.save(self._scratch / "vocab.txt")
    digest = {p.name: _file_digest(p) for p in sorted(self._scratch.iterdir())}
    corpus = {
      "format": FORMAT,
      "num_passages": self.num_passages,
      "passage_length": self._passage_length,
      "num_sentences": self.num_sentences,
      "num_spans": self.num_spans,
      "vocabulary_size": len(self._vocabulary),
      "lowercase": self._vocabulary.lowercase,
      "vocabulary_digest": self._vocabulary.digest,
      "content_digest": xxhash.xxh3_128_hexdigest(json.dumps(digest, sort_keys=True).encode()),
      "file_digest": digest,
      **description,
    }
    (self._scratch / "corpus.json").write_text(
      json.dumps(corpus, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    if self._path.exists():
      self._path.rmdir()  # empty, as checked at the start
    self._scratch.rename(self._path)

  def _write(self, name: str, value: Any) -> None:
    self._file[name].write(np.asarray(value, _FIELDS[name][0]).tobytes())

  def _append(self, name: str, value: bytes | np.ndarray) -> None:
    dtype, shape = _RAGGED[name]
    data = value if isinstance(value, bytes) else value.astype(dtype).tobytes()
    self._end[name] += len(data) // (np.dtype(dtype).itemsize * math.prod(shape))
    self._file[name].write(data)
    self._file[f"{name}_offset"].write(np.uint64(self._end[name]).tobytes())


class PassageStore:
  """N passages of at most P tokens, read without loading them.

  Attributes:
    token_NP: uint16, each row the title's tokens, then the body's, then zeros.
    title_length_N, body_length_N: uint16, tokens.
    sentence_start, span: ragged, `sentence_start[sentence_offset[i]:sentence_offset[i + 1]]` belongs to passage i.
      A span is (first body token, last + 1, sentence, index into spans.KINDS).
    description: what corpus.json says.
  """

  def __init__(self, path):
    """Opens the store.

    Raises:
      FileNotFoundError: no store there.
      ValueError: another format, or a file that is cut off.
    """
    self.path = pathlib.Path(path)
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
    self.token_NP = self._map("token", "<u2", (n, self.passage_length))
    self.title_length_N = self._map("title_length", "<u2", (n,))
    self.body_length_N = self._map("body_length", "<u2", (n,))
    self._offset = {name: self._map(f"{name}_offset", "<u8", (n + 1,)) for name in _RAGGED}
    ragged = {
      name: self._map(name, dtype, (int(self._offset[name][-1]), *shape)) for name, (dtype, shape) in _RAGGED.items()
    }
    self._id, self._title, self._body = ragged["id"], ragged["title"], ragged["body"]
    self.sentence_start, self.sentence_offset = ragged["sentence_start"], self._offset["sentence_start"]
    self.span, self.span_offset = ragged["span"], self._offset["span"]

  def __len__(self) -> int:
    return self.num_passages

  def id(self, i: int) -> str:
    return self._text("id", self._id, i)

  def title(self, i: int) -> str:
    return self._text("title", self._title, i)

  def body(self, i: int) -> str:
    return self._text("body", self._body, i)

  def vocabulary(self) -> Vocabulary:
    return Vocabulary.load(self.path / "vocab.txt", lowercase=self.description["lowercase"])

  def title_tokens(self, passage_id: np.ndarray) -> Tokens:
    """Titles of passages; the null passage (-1) has none."""
    length = np.where(passage_id < 0, 0, self.title_length_N[passage_id].astype(np.int32))
    return Tokens(self.token_NP[passage_id], np.zeros_like(length), length)

  def body_tokens(self, passage_id: np.ndarray) -> Tokens:
    """Bodies of passages; the null passage (-1) has none."""
    start = self.title_length_N[passage_id].astype(np.int32)
    length = np.where(passage_id < 0, 0, self.body_length_N[passage_id].astype(np.int32))
    return Tokens(self.token_NP[passage_id], start, length)

  def verify(self) -> None:
    """Reads every file and compares its digest; raises ValueError that names the first that differs."""
    for name, digest in self.description["file_digest"].items():
      path = self.path / name
      if not path.is_file() or _file_digest(path) != digest:
        raise ValueError(f"{path} is not what was built (its digest differs); build the corpus again")

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


def _spans_to_tokens(spans: Iterable[Span], char_range: np.ndarray, sentence_start: np.ndarray) -> np.ndarray:
  """Character spans -> [S, 4] body tokens strictly inside each; spans without any, or across sentences, are dropped."""
  rows = []
  for span in spans:
    first = int(np.searchsorted(char_range[:, 0], span.start, side="left"))
    end = int(np.searchsorted(char_range[:, 1], span.end, side="right"))
    if first >= end:
      continue
    sentence = int(np.searchsorted(sentence_start, first, side="right")) - 1
    if int(np.searchsorted(sentence_start, end - 1, side="right")) - 1 == sentence:
      rows.append((first, end, sentence, KINDS.index(span.kind)))
  return np.array(rows, np.int64).reshape(-1, 4)


def _file_digest(path: pathlib.Path) -> str:
  digest = xxhash.xxh3_128()
  with open(path, "rb") as file:
    while piece := file.read(1 << 24):
      digest.update(piece)
  return digest.hexdigest()
