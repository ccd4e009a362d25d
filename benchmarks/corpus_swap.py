"""Replaces facts in documents and asks again, without training.

  python benchmarks/corpus_swap.py --workdir=runs/demo/finetune --output=runs/swap

Section 5.3 of the paper: with another corpus the answer is another one, and nothing is trained. Each question of the
sample encyclopedia whose answer can be replaced by another one's of the same form is asked with its fact as it was and
as it was changed; the other questions show what the change leaves alone.
"""

import argparse
import collections
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from realm_jax.data.answers import exact_match, has_answer
from realm_jax.data.sample import SAMPLE_PASSAGES, SAMPLE_QUESTIONS
from realm_jax.library import open_qa

MONTHS = "January February March April May June July August September October November December".split()

Documents = Mapping[str, tuple[str, str]]  # id -> title and text


class Question(NamedTuple):
  """A question with the document that answers it."""

  text: str
  answers: Sequence[str]
  document: str


class Swap(NamedTuple):
  """A fact's value, what takes its place, and the documents that hold the fact."""

  question: Question
  old: str
  new: str
  documents: tuple[str, ...]


class Asked(NamedTuple):
  """A question's answers before and after an edition."""

  question: Question
  swap: Swap | None  # of the question's own fact
  before: str
  after: str


def find_swaps(documents: Documents, questions: Sequence[Question]) -> list[Swap]:
  """The questions whose fact can be replaced.

  The value is the first answer that stands in the question's document as whole words. The new one is the next, by the
  alphabet, of the values of the same form that questions with the same two first words ask for ("in what", a year; "who
  was", two names) and that neither stands in these documents or in the question nor shares a word with the old one. A
  fact is held by the question's document, and by every other one that has both its title and the value.
  """
  value_of = {q: v for q in questions if (v := next((a for a in q.answers if _holds(documents[q.document], a)), None))}
  values = collections.defaultdict(set)
  for question, value in value_of.items():
    values[_kind(question, value)].add(value)
  swaps = []
  for question, old in value_of.items():
    title, _ = documents[question.document]
    held_by = tuple(
      name
      for name, document in documents.items()
      if name == question.document or (_holds(document, old) and _holds(document, title))
    )
    others = sorted(values[_kind(question, old)] - {old})
    later = [v for v in others if v > old]
    for new in (*later, *others[: len(others) - len(later)]):
      is_new = not any(_holds(documents[name], new) for name in held_by) and not has_answer(question.text, [new])
      if is_new and not set(new.lower().split()) & set(old.lower().split()):
        swap = Swap(question, old, new, held_by)
        # An alias that stays would leave the old fact in the document.
        if not has_answer(edited(documents, [swap])[question.document][1], question.answers):
          swaps.append(swap)
        break
  return swaps


def make_editions(swaps: Sequence[Swap], num_documents: int) -> list[list[Swap]]:
  """Parts in which no document is changed twice and half of the documents stay as they are."""
  editions = []
  waiting = list(swaps)
  while waiting:
    touched: set[str] = set()
    edition, rest = [], []
    for swap in waiting:
      now_touched = touched | set(swap.documents)
      is_apart = len(now_touched) == len(touched) + len(swap.documents)
      if is_apart and (not edition or len(now_touched) <= num_documents // 2):
        edition.append(swap)
        touched = now_touched
      else:
        rest.append(swap)
    editions.append(edition)
    waiting = rest
  return editions


def edited(documents: Documents, swaps: Sequence[Swap]) -> Documents:
  """The documents with the swaps' values replaced, in the texts, as whole words."""
  result = dict(documents)
  for swap in swaps:
    for name in swap.documents:
      title, text = result[name]
      result[name] = (title, re.sub(_whole(swap.old), lambda _, new=swap.new: new, text))
  return result


def compare(
  questions: Sequence[Question], edition: Sequence[Swap], before: Sequence[str], after: Sequence[str]
) -> tuple[list[Asked], list[Asked]]:
  """The questions whose fact was changed, and those whose document stayed as it was."""
  swap_of = {swap.question: swap for swap in edition}
  touched = {name for swap in edition for name in swap.documents}
  asked = [Asked(q, swap_of.get(q), *answers) for q, *answers in zip(questions, before, after)]
  return [a for a in asked if a.swap], [a for a in asked if a.question.document not in touched]


def summarize(swapped: Sequence[Asked], untouched: Sequence[Asked]) -> dict[str, float]:
  """Numbers of questions."""
  swaps = [(a, a.swap) for a in swapped if a.swap]
  right = [(a, swap) for a, swap in swaps if exact_match(a.before, a.question.answers)]
  right_untouched = [a for a in untouched if exact_match(a.before, a.question.answers)]
  return {
    "swapped": len(swapped),
    "right_before": len(right),
    "of_these_new_value": sum(exact_match(a.after, [swap.new]) for a, swap in right),
    "of_these_old_value": sum(exact_match(a.after, a.question.answers) for a, _ in right),
    "right_after": sum(exact_match(a.after, [swap.new]) for a, swap in swaps),
    "old_value_after": sum(exact_match(a.after, a.question.answers) for a, _ in swaps),
    "untouched": len(untouched),
    "untouched_same_answer": sum(a.after == a.before for a in untouched),
    "untouched_right_before": len(right_untouched),
    "of_these_right_after": sum(exact_match(a.after, a.question.answers) for a in right_untouched),
  }


def answer(model: str, documents: Documents, questions: Sequence[Question], workdir: pathlib.Path) -> list[str]:
  """The model's answers with these documents; only their passages are embedded."""
  reader = open_qa(model, documents.values(), workdir=str(workdir))
  return [answer.text for answer in reader.answer([q.text for q in questions])]


def read_sample() -> tuple[dict[str, tuple[str, str]], list[Question]]:
  """The sample encyclopedia with the questions of its three parts."""
  records = [json.loads(line) for line in SAMPLE_PASSAGES.read_text().splitlines()]
  rows = [json.loads(line) for path in SAMPLE_QUESTIONS.values() for line in path.read_text().splitlines()]
  documents = {record["id"]: (record["title"], record["text"]) for record in records}
  return documents, [Question(row["question"], tuple(row["answer"]), row["passage"]) for row in rows]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", required=True, help="a fine-tuned run")
  parser.add_argument("--output", required=True, type=pathlib.Path, help="where to write the corpora and their indexes")
  parser.add_argument("--editions", type=int, help="stop after so many [all]")
  parser.add_argument("--show", type=int, default=5, help="changed answers to print")
  flags = parser.parse_args()
  documents, questions = read_sample()
  swaps = find_swaps(documents, questions)
  editions = make_editions(swaps, len(documents))[: flags.editions]
  print(f"{len(questions)} questions, {len(swaps)} with a fact that can be replaced, {len(editions)} editions")
  before = answer(flags.workdir, documents, questions, flags.output / "original")
  total: collections.Counter[str] = collections.Counter()
  shown: list[Asked] = []
  for number, edition in enumerate(editions, 1):
    after = answer(flags.workdir, edited(documents, edition), questions, flags.output / f"edition-{number}")
    swapped, untouched = compare(questions, edition, before, after)
    total.update(summarize(swapped, untouched))
    shown += [a for a in swapped if a.before != a.after and exact_match(a.before, a.question.answers)]
  print(json.dumps(total, indent=1))
  for a in shown[: flags.show]:
    print(f"{a.question.text}  {a.before} -> {a.after}  (the documents now say {a.swap.new})")


def _kind(question: Question, value: str) -> tuple[str, ...]:
  return (*question.text.lower().split()[:2], *map(_form, value.split()))


def _form(word: str) -> str:
  if word in MONTHS:
    return "month"
  if word[0].isdigit():
    return "year" if re.fullmatch(r"\d{4}", word) else "number"
  return "name" if word[0].isupper() else "word"


def _holds(document: tuple[str, str], value: str) -> bool:
  return value in document[1] and re.search(_whole(value), document[1]) is not None


def _whole(value: str) -> str:
  return rf"(?<!\w){re.escape(value)}(?!\w)"


if __name__ == "__main__":
  main()
