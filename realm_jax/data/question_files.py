"""Reads questions with their answers from jsonl, json, tsv and csv files, record by record."""

from __future__ import annotations

import ast
import csv
import json
import pathlib
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from realm_jax.data.articles import numbered_lines

EXPECTED = (
  'expected .jsonl with {"question": text, "answer": [text, ...]} a line, DPR\'s .json with a list of '
  '{"question", "answers"}, or DPR\'s .tsv or .csv with  question<tab>[\'answer\', ...]  a line (or .gz, .xz of these)'
)


# Control characters other than tab, newline and carriage return don't occur in text; lone surrogates can't be encoded.
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
_COLUMN_NAMES = re.compile(rb'(?:\xef\xbb\xbf)?"?question"?[\t,]"?answers?"?\s*', re.IGNORECASE)
# A flat list of Python strings: what ast.literal_eval is shown can neither nest nor grow beyond its text.
_STRING_LIST = re.compile(r"""\[\s*(?:(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*(?:,\s*|(?=\])))*\]""", re.DOTALL)


class Record(NamedTuple):
  """A question as it stands in a file, or the reason why the record is none."""

  line: int
  question: str = ""
  answers: tuple[str, ...] = ()
  annotated: tuple[str, ...] = ()  # articles or passages that are marked as its evidence, by their ids
  fault: str = ""


class Fault(ValueError):
  """A record that is no question; the message is the reason."""


def read_records(path) -> Iterator[Record]:
  """Yields every record of a file, in order, the faulty ones too.

  Raises:
    ValueError: another kind of file, or one that is cut off or can't be decompressed.
  """
  suffixes = [s for s in pathlib.Path(path).suffixes if s not in (".gz", ".xz")]
  kind = suffixes[-1] if suffixes else ""
  if kind == ".jsonl":
    yield from _read_lines(path, parse_json_line)
  elif kind in (".tsv", ".csv"):
    yield from _read_lines(path, parse_columns)
  elif kind == ".json":
    yield from _read_list(path)
  else:
    raise ValueError(f"{path} is no file of questions that is known by its name; {EXPECTED}")


def _read_lines(path, parse) -> Iterator[Record]:
  for number, line in numbered_lines(path):
    if not line.strip() or (number == 1 and _COLUMN_NAMES.fullmatch(line)):
      continue
    try:
      yield Record(number, *parse(_decode(line)))
    except Fault as fault:
      yield Record(number, fault=str(fault))


def parse_json_line(line: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
  """Question, answers and annotated evidence of a line of JSON; raises Fault."""
  try:
    value = json.loads(line)
  except (ValueError, RecursionError):
    raise Fault("no valid JSON") from None
  return _from_object(value)


def _from_object(value: Any) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
  if not isinstance(value, dict):
    raise Fault("JSON that is no object")
  annotated = value.get("annotated", [])
  annotated = [annotated] if isinstance(annotated, str) else annotated
  if not isinstance(annotated, list) or not all(isinstance(name, str) for name in annotated):
    raise Fault('"annotated" that is no list of ids')
  question, answers = checked(value.get("question"), value.get("answer", value.get("answers")))
  return question, answers, (*annotated, *_positive_passages(value.get("positive_ctxs")))


def _positive_passages(passages: Any) -> Iterator[str]:
  """The ids of DPR's positive passages, which its sets spell in two ways and which not all of its files have."""
  for passage in passages if isinstance(passages, list) else ():
    if isinstance(passage, dict):
      name = passage.get("passage_id", passage.get("psg_id"))
      if isinstance(name, str) or type(name) is int:
        yield str(name)


def parse_columns(line: str) -> tuple[str, tuple[str, ...]]:
  """A question and a list of answers as Python writes it, or one answer as it stands, between them a tab or comma."""
  line = line.rstrip("\r\n")
  delimiter = "\t" if "\t" in line else ","
  try:
    (columns,) = csv.reader([line], delimiter=delimiter, strict=True)
  except (csv.Error, ValueError):
    # A question may begin with a quotation mark that quotes no column.
    columns = line.split(delimiter)
  if len(columns) != 2:
    raise Fault(f"{len(columns)} column{'s' if len(columns) != 1 else ''} instead of 2")
  question, answers = (column.strip() for column in columns)
  return checked(question, _parse_list(answers) if answers.startswith("[") else answers)


def _parse_list(text: str) -> list[str]:
  if not _STRING_LIST.fullmatch(text):
    raise Fault("answers that begin with [ and are no list of strings")
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # "\d" in a pattern is no escape of Python's, which keeps it as it stands
      return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    raise Fault("answers that begin with [ and are no list of strings") from None


def _read_list(path) -> Iterator[Record]:
  """DPR's json: one list, which is read whole."""
  lines = [line for _, line in numbered_lines(path)]
  try:
    text = _decode(b"".join(lines))
  except Fault as fault:
    raise ValueError(f"{path} holds {fault}; {EXPECTED}") from None
  decoder, space = json.JSONDecoder(), re.compile(r"\s*")

  def skip(position: int) -> int:
    return space.match(text, position).end()  # type: ignore[union-attr]

  position, line = skip(0), 1 + text.count("\n", 0, skip(0))
  if text[position : position + 1] != "[":
    raise ValueError(f"{path} doesn't begin with [, so it is no list; {EXPECTED}")
  opener = "["
  while text[position : position + 1] == opener:
    begin = skip(position + 1)
    line += text.count("\n", position, begin)
    if opener == "[" and text[begin : begin + 1] == "]":
      position = begin
      break
    try:
      value, end = decoder.raw_decode(text, begin)
    except (ValueError, RecursionError) as error:
      raise ValueError(f"{path}, line {line}: no valid JSON ({error}); is the file cut off? Fetch it again") from None
    try:
      yield Record(line, *_from_object(value))
    except Fault as fault:
      yield Record(line, fault=str(fault))
    position = skip(end)
    line += text.count("\n", begin, position)
    opener = ","
  if text[position : position + 1] != "]" or text[position + 1 :].strip():
    raise ValueError(f"{path}, line {line}: the list doesn't end as it should; is the file cut off? Fetch it again")


def checked(question: Any, answers: Any) -> tuple[str, tuple[str, ...]]:
  """Question and answers without the space around them; raises Fault with the reason where one is missing."""
  if not isinstance(question, str) or not question.strip():
    raise Fault("no text as question")
  if answers is None:
    raise Fault("no answer")
  answers = [answers] if isinstance(answers, str) else answers
  if not isinstance(answers, list | tuple) or not all(isinstance(a, str) for a in answers):
    raise Fault("answers that are no text")
  if not answers or not all(a.strip() for a in answers):
    raise Fault("no answer" if not any(a.strip() for a in answers) else "an empty answer")
  for text in (question, *answers):
    if _NOT_TEXT.search(text):
      raise Fault("control characters, so no text")
  return question.strip(), tuple(answers)


def _decode(data: bytes) -> str:
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError:
    raise Fault("bytes that are not UTF-8") from None
