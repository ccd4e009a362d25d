"""Keeps on disk what a slow tagger found, so that another build of the same text doesn't wait for it again."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np
import xxhash
from etils import epath

from realm_jax.data.files import write_whole
from realm_jax.data.spans import KINDS, Span, Tagger


class CachedTagger:
  """A tagger that looks for a file with the digest of the texts and the tagger's name before it calls the other one."""

  def __init__(self, tagger: Tagger, directory: str):
    self.name = tagger.name
    self._tagger, self._directory = tagger, directory

  def tag(self, texts: Sequence[str]) -> list[list[Span]]:
    digest = xxhash.xxh3_128_hexdigest(json.dumps([self.name, KINDS, *texts]).encode())
    path = epath.Path(self._directory) / f"{digest}.npz"
    if path.exists():
      # A damaged file is as good as none.
      with contextlib.suppress(zipfile.BadZipFile, ValueError, KeyError, EOFError, zlib.error):
        return _from_bytes(path.read_bytes())
    found = self._tagger.tag(texts)
    write_whole(path, _to_bytes(found))
    return found


def _to_bytes(found: Sequence[Sequence[Span]]) -> bytes:
  rows = [(s.start, s.end, KINDS.index(s.kind)) for spans in found for s in spans]
  content = io.BytesIO()
  np.savez_compressed(
    content, span=np.array(rows, np.int32).reshape(-1, 3), count=np.array([len(spans) for spans in found], np.int32)
  )
  return content.getvalue()


def _from_bytes(content: bytes) -> list[list[Span]]:
  with np.load(io.BytesIO(content), allow_pickle=False) as file:
    rows = [Span(start, end, KINDS[kind]) for start, end, kind in file["span"].tolist()]
    ends = np.cumsum(file["count"]).tolist()
  return [rows[begin:end] for begin, end in zip([0, *ends], ends)]
