"""The columns that a passage store consists of, and how passages become columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from realm_jax.data.spans import KINDS, Span
from realm_jax.data.splitting import Passage

# name -> dtype and shape of an entry. A ragged column has any number of entries a passage.
FIXED: dict[str, tuple[str, tuple[int, ...]]] = {
  "title_length": ("<u2", ()),
  "body_length": ("<u2", ()),
}
RAGGED: dict[str, tuple[str, tuple[int, ...]]] = {
  "token": ("<u2", ()),  # the title's, then the body's
  "id": ("u1", ()),
  "title": ("u1", ()),
  "body": ("u1", ()),
  "sentence_start": ("<u2", ()),  # body token
  "span": ("<u2", (4,)),  # first and last + 1 body token, sentence, kind
}

Columns = dict[str, np.ndarray]
"""FIXED and RAGGED columns by name, and for each ragged one `<name>_count`: its entries in each passage (uint32)."""


def to_columns(passages: Sequence[Passage], spans: Iterable[Sequence[Span]]) -> Columns:
  """Passages with their salient spans, which are character ranges in the bodies."""
  rows: dict[str, list[np.ndarray]] = {name: [] for name in RAGGED}
  for passage, found in zip(passages, spans, strict=True):
    body = passage.body_encoding
    rows["token"].append(np.concatenate([passage.title_token_id, body.token_id]))
    for name, text in (("id", passage.id), ("title", passage.title), ("body", passage.body)):
      rows[name].append(np.frombuffer(text.encode(), np.uint8))
    rows["sentence_start"].append(passage.sentence_start)
    rows["span"].append(_spans_to_tokens(found, body.char_range, passage.sentence_start))
  columns = {
    "title_length": np.array([len(p.title_token_id) for p in passages], "<u2"),
    "body_length": np.array([len(p.body_encoding.token_id) for p in passages], "<u2"),
  }
  for name, (dtype, shape) in RAGGED.items():
    columns[f"{name}_count"] = np.array([len(row) for row in rows[name]], "<u4")
    columns[name] = np.concatenate([np.zeros((0, *shape), dtype), *(row.astype(dtype) for row in rows[name])])
  return columns


def first_passages(columns: Columns, num_passages: int) -> Columns:
  """The same columns, cut off after that many passages."""
  first: Columns = {name: columns[name][:num_passages] for name in FIXED}
  for name in RAGGED:
    first[f"{name}_count"] = count = columns[f"{name}_count"][:num_passages]
    first[name] = columns[name][: int(count.sum(dtype=np.int64))]
  return first


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
