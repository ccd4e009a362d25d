"""Reads questions with their answers."""

from __future__ import annotations

import json
from typing import NamedTuple

from realm_jax.data.articles import numbered_lines


class Question(NamedTuple):
  question: str
  answers: tuple[str, ...]


def read_questions(path) -> list[Question]:
  """jsonl with {"question": ..., "answer": [...]} a line, plain, .gz or .xz.

  Raises:
    ValueError: names the first line that is none, a file without questions, or one that is cut off.
  """
  questions = []
  for number, line in numbered_lines(path):
    if line.strip():
      try:
        questions.append(_parse_question(json.loads(line.decode("utf-8"))))
      except (ValueError, RecursionError) as error:
        raise ValueError(
          f'{path}, line {number}: {error}; expected {{"question": text, "answer": [text, ...]}}'
        ) from None
  if not questions:
    raise ValueError(f'{path} holds no question; expected {{"question": text, "answer": [text, ...]}} a line')
  return questions


def _parse_question(record) -> Question:
  if not isinstance(record, dict):
    raise ValueError("JSON that is no object")
  question, answers = record.get("question"), record.get("answer")
  if not isinstance(question, str) or not question.strip():
    raise ValueError('no text in "question"')
  answers = [answers] if isinstance(answers, str) else answers
  if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
    raise ValueError('no text in "answer"')
  return Question(question.strip(), tuple(answers))
