"""Question sets by name: a file of one's own or a set of TFDS, whole or the training or development part of it."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from realm_jax.data.articles import Rejections
from realm_jax.data.question_files import EXPECTED, Record, read_records

SPLITS = ("train", "dev", "test", "all")
_ASKED_BEFORE = "a question asked before, whose answers were added to the first's"


class Question(NamedTuple):
  """A question with its right answers, which may be regular expressions."""

  question: str
  answers: tuple[str, ...]
  annotated: tuple[str, ...] = ()  # articles or passages that are said to hold it, by their ids


class QuestionSet(NamedTuple):
  """What was read, and what was skipped of it, in words."""

  questions: list[Question]
  answers_are_regex: bool
  skipped: str


def read_questions(name: str, *, regex: bool = False, strict: bool = False) -> QuestionSet:
  """Reads the questions that a name stands for.

  A name is a file (see `question_files`) or a set of TFDS (see `question_tasks.TFDS_SETS`), and may end in a split:
    mine.jsonl            all of a file
    mine.jsonl:dev        the tenth of it that Google's hash of the question chooses; mine.jsonl:train is the rest
    nq_open:train         TFDS's training questions without that tenth; nq_open:dev is it, nq_open:test the official
                          test or development set, nq_open:all (or nq_open) the training questions with that tenth

  Args:
    name: as above; a set of CuratedTREC, by its file name, has regular expressions as answers.
    regex: the answers are regular expressions, whatever the name.
    strict: refuse the first faulty record instead of skipping it.

  Raises:
    ValueError: no such set or split, another kind of file, one that is cut off or that holds no question.
  """
  base, split = split_name(name)
  regex = regex or is_curated_trec(base)
  rejections = Rejections()
  questions = _valid(base, _records(base, split), rejections, regex=regex, strict=strict)
  if not questions:
    raise ValueError(f"{base} holds no question: {rejections.describe() or 'it is empty'}; {EXPECTED}")
  if split in ("train", "dev"):
    wanted = is_dev([q.question for q in questions]) == (split == "dev")
    questions = [q for q, is_wanted in zip(questions, wanted) if is_wanted]
    if not questions:
      raise ValueError(f"none of the questions of {base} falls into the split {split!r}; take {base}:all")
  return QuestionSet(questions, regex, rejections.describe())


def split_name(name: str) -> tuple[str, str]:
  """ "x.jsonl:dev" -> "x.jsonl", "dev"; without a split it is "all"."""
  base, colon, split = str(name).rpartition(":")
  if colon and split in SPLITS:
    return base, split
  if colon and re.fullmatch(r"\w*", split):
    raise ValueError(f"{name} has the unknown split {split!r}; the splits are {', '.join(SPLITS)}")
  return str(name), "all"


def is_curated_trec(name: str) -> bool:
  """By the file's name alone; a directory may hold more."""
  return "curatedtrec" in re.sub(r"[^a-z]", "", pathlib.Path(name).name.lower())


def is_dev(questions: Sequence[str]) -> np.ndarray:
  """bool [n]: the tenth of the questions that is held out, by the hash that Google's splits of NQ-open, WebQuestions
  and CuratedTREC were made with: FarmHash64 modulo 100,000 is a multiple of 10.
  """
  import tensorflow as tf  # noqa: PLC0415 seconds to import, and most names have no split

  return tf.strings.to_hash_bucket_fast(list(questions), 100_000).numpy() % 10 == 0


def _is_known(base: str) -> bool:
  return "." not in base and "/" not in base


def _records(base: str, split: str) -> Iterable[Record]:
  if _is_known(base):
    from realm_jax.data.question_tasks import tfds_records  # noqa: PLC0415 imports seqio

    return tfds_records(base, split)
  if split == "test":
    raise ValueError(f"a file has no test split of its own ({base}:test): name the file of the test questions")
  return read_records(base)


def _valid(
  name: str, records: Iterable[Record], rejections: Rejections, *, regex: bool, strict: bool
) -> list[Question]:
  """The questions, each once, with all of its answers."""
  answers_of: dict[str, dict[str, None]] = {}
  annotated_of: dict[str, dict[str, None]] = {}
  for record in records:
    fault = record.fault
    if not fault and regex and not all(map(_compiles, record.answers)):
      fault = "an invalid regular expression"
    if not fault and record.question in answers_of:
      fault = _ASKED_BEFORE
      answers_of[record.question].update(dict.fromkeys(record.answers))
      annotated_of[record.question].update(dict.fromkeys(record.annotated))
    if fault and strict:
      raise ValueError(f"{name}, line {record.line}: a record with {fault}; mend it, or leave out --strict to skip it")
    if fault:
      rejections.add(fault, record.line)
    else:
      answers_of[record.question] = dict.fromkeys(record.answers)
      annotated_of[record.question] = dict.fromkeys(record.annotated)
  return [Question(q, tuple(answers), tuple(annotated_of[q])) for q, answers in answers_of.items()]


def _compiles(pattern: str) -> bool:
  try:
    re.compile(pattern)
  except (re.error, RecursionError, OverflowError):
    return False
  return True
