"""What a reader of one input format gives: records in order, and the function that makes an article of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from realm_jax.data.articles import Article


class Record(NamedTuple):
  """A piece of the input that may be an article, not looked into yet."""

  number: int  # counted from 1
  data: bytes
  position: int  # how much of the input has been read, in the units of Format.size
  problem: str = ""  # why data is missing


class Format(NamedTuple):
  """Reading is split in two: `read` finds the records, one process a file; `parse` does the work, in all processes."""

  noun: str  # what a record is called
  read: Callable[[str], Iterator[Record]]
  parse: Callable[[bytes], Article]  # raises BadRecord, LeftOut
  size: Callable[[str], int]  # of an input, for the progress bar
  is_ready: bool = False  # records are passages
  is_wikipedia: bool = False  # lists and disambiguation pages are left out, as by ORQA
