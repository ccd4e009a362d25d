"""Reads ORQA's blocks: two TFRecord files side by side, blocks.tfr and titles.tfr, of one string a record."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from etils import epath

from realm_jax.data.articles import (
  MAX_RECORD_BYTES,
  TOO_LONG,
  Article,
  BadRecord,
  decode,
  file_size,
  make_article,
  naming_damage,
  open_bytes,
)
from realm_jax.data.formats import Format, Record

_BAD_CRC = "a wrong checksum (crc32c)"
_CHUNK = 4096  # bytes that one look-up covers


def crc32c(data: bytes) -> int:
  """The checksum of TFRecord (Castagnoli's polynomial), thousands of bytes at a time.

  A CRC is linear: the register after n bytes is the xor of what each byte alone would leave after the n - 1 - i bytes
  that follow it. Table row k holds that for k bytes to follow.
  """
  table = _crc_table()
  array = np.frombuffer(data, np.uint8)
  register = 0xFFFFFFFF
  for begin in range(0, len(array), _CHUNK):
    piece = array[begin : begin + _CHUNK].copy()
    head = min(4, len(piece))
    # The register so far acts like a xor on the next four bytes; what a shorter piece leaves of it moves down.
    piece[:head] ^= np.frombuffer(struct.pack("<I", register), np.uint8)[:head]
    last = np.arange(len(piece) - 1, -1, -1)
    terms = np.bitwise_xor.reduce(table[last, piece])  # type: ignore[call-overload]
    register = int(terms) ^ (register >> (8 * head))
  return register ^ 0xFFFFFFFF


@functools.cache
def _crc_table() -> np.ndarray:
  byte = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    byte = np.where(byte & 1, (byte >> 1) ^ np.uint32(0x82F63B78), byte >> 1)
  table = np.empty((_CHUNK, 256), np.uint32)
  table[0] = byte
  for k in range(1, _CHUNK):
    table[k] = (table[k - 1] >> 8) ^ byte[table[k - 1] & 0xFF]
  return table


def masked_crc(data: bytes) -> int:
  """TFRecord stores this instead, so that a checksum of data that holds checksums is sound."""
  crc = crc32c(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_tfrecords(path: str) -> Iterator[Record]:
  """Yields the records of a plain or compressed file; one with a wrong checksum has a problem instead of data.

  Raises:
    ValueError: the file is cut off, or the length of a record is damaged, so that the next can't be found.
  """
  number = 0
  with open_bytes(path) as (file, raw):
    while True:
      with naming_damage(path, f"after record {number}"):
        header = file.read(12)
        if not header:
          return
        number += 1
        length, length_crc = struct.unpack("<QI", header) if len(header) == 12 else (0, 0)
        if masked_crc(header[:8]) != length_crc:
          raise ValueError(
            f"{path}, record {number}: a wrong checksum of its length, so no record after it can be found; "
            "fetch the file again"
          )
        data, crc = _body(file, length)
        if len(crc) != 4:
          raise ValueError(f"{path} ends within record {number}; it is cut off, fetch it again")
      if data is None:
        yield Record(number, b"", raw.tell(), TOO_LONG)
      elif masked_crc(data) != struct.unpack("<I", crc)[0]:
        yield Record(number, b"", raw.tell(), _BAD_CRC)
      else:
        yield Record(number, data, raw.tell())


def _body(file: BinaryIO, length: int) -> tuple[bytes | None, bytes]:
  """Data (None if it is too long) and checksum."""
  if length <= MAX_RECORD_BYTES:
    return file.read(length), file.read(4)
  while length > 0:
    piece = file.read(min(length, MAX_RECORD_BYTES))
    if not piece:
      return None, b""
    length -= len(piece)
  return None, file.read(4)


def _read_blocks(path: str) -> Iterator[Record]:
  titles_path = _titles_path(path)
  blocks, titles = read_tfrecords(path), read_tfrecords(titles_path)
  number = 0
  while True:
    block, title = next(blocks, None), next(titles, None)
    if block is None and title is None:
      return
    if block is None or title is None:
      shorter, longer = (path, titles_path) if block is None else (titles_path, path)
      raise ValueError(f"{shorter} has {number} records, {longer} more; they don't belong together, or one is cut off")
    number += 1
    problem = block.problem or title.problem
    # The number is the block's id in ORQA's files, which counts from 0.
    head = json.dumps(number - 1).encode() + b"\x00" + title.data + b"\x00"
    yield Record(number, b"" if problem else head + block.data, block.position, problem)


def _titles_path(path: str) -> str:
  blocks = epath.Path(path)
  titles = blocks.with_name(blocks.name.replace("blocks", "titles"))
  if titles == blocks or not titles.is_file():
    raise FileNotFoundError(
      f"{path} needs its titles beside it: ORQA's blocks are two files, such as blocks.tfr and titles.tfr"
    )
  return str(titles)


def parse_block(data: bytes) -> Article:
  """A passage of ORQA's from its id, title and text, with NUL bytes between them; raises BadRecord."""
  id_, title, text = data.split(b"\x00", 2)
  if b"\x00" in text:
    raise BadRecord("control characters, so no text")
  return make_article({"id": id_.decode(), "title": decode(title), "text": decode(text)})


ORQA = Format("record", _read_blocks, parse_block, file_size, is_ready=True)
