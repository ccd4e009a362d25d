"""Reads parquet files with the columns id, text and (if there is one) title."""

from __future__ import annotations

import json
from collections.abc import Iterator

from etils import epath

from realm_jax.data.articles import file_size
from realm_jax.data.formats import Format, Record
from realm_jax.data.formats_lines import parse_jsonl

_BATCH = 64  # rows in memory at once


def _read(path: str) -> Iterator[Record]:
  import pyarrow  # noqa: PLC0415 150 ms
  from pyarrow import parquet  # noqa: PLC0415

  number, size = 0, file_size(path)
  try:
    with epath.Path(path).open("rb") as raw, parquet.ParquetFile(raw) as file:
      names = file.schema_arrow.names
      missing = [name for name in ("id", "text") if name not in names]
      if missing:
        raise ValueError(f"{path} has no column {' or '.join(missing)}, only {', '.join(names)}; rename its columns")
      columns = [name for name in ("id", "title", "text") if name in names]
      num_rows = file.metadata.num_rows
      for batch in file.iter_batches(_BATCH, columns=columns):
        for row in batch.to_pylist():
          number += 1
          # What JSON can't hold is no id and no text, and parse_jsonl says so.
          data = json.dumps(row, ensure_ascii=True, default=lambda value: [str(value)]).encode()
          yield Record(number, data, size * number // num_rows)
  except (pyarrow.ArrowException, OSError) as error:
    if isinstance(error, OSError) and error.errno is not None:
      raise
    raise ValueError(f"{path} is no sound parquet file after row {number} ({error}); fetch it again") from error


PARQUET = Format("row", _read, parse_jsonl, file_size)
