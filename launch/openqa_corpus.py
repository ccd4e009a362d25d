"""Chooses passages and training questions for launch/openqa_results.sh: python launch/openqa_corpus.py --help

The rule for the passages that are searched: they come in a random order. One is kept if it holds an answer to a
development question of which fewer than 5 were kept before; then the first of the others, until there are enough. So a
question with rare answers has all of the passages that hold them, and what is chosen depends on no retriever. Regular
expressions, which take long, are looked for in the first 40,000 passages of that order.

Training has passages of its own. A question is taken if one of BM25's best 20 among all passages holds an answer; the
best such one is its annotated passage, and the best one without an answer comes along (as in DPR, Karpukhin et al.
2020, for sets without annotation).
"""

import argparse
import collections
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from realm_jax.data.answers import has_answer, matchable
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import Question, read_questions
from realm_jax.index.bm25 import Bm25

_NUM_WANTED = 5  # passages with an answer
_NUM_FOR_REGEX = 40_000
_NUM_FOUND = 20  # of BM25's passages, for training
_NUM_AT_ONCE = 256  # questions


def choose_passages(store: PassageStore, dev: Sequence[str], num_passages: int) -> list[int]:
  """Rows of the store by the rule above, in their order there."""
  order = np.random.default_rng(0).permutation(len(store)).tolist()
  chosen: set[int] = set()
  texts: list[Question] = []
  for questions, regex, _ in map(read_questions, dev):
    if regex:
      chosen.update(_with_patterns(store, order[:_NUM_FOR_REGEX], questions))
    else:
      texts += questions
  chosen.update(_with_words(store, order, texts))
  print(f"{len(chosen)} passages hold an answer that was looked for; {num_passages - len(chosen)} more at random")
  for i in order:
    if len(chosen) >= num_passages:
      break
    chosen.add(i)
  return sorted(chosen)


def _with_patterns(store: PassageStore, rows: Iterable[int], questions: Sequence[Question]) -> Iterator[int]:
  """Yields the first rows in which the questions' patterns find something, as many for each question as are wanted."""
  left = dict.fromkeys(range(len(questions)), _NUM_WANTED)
  for i in rows:
    body = store.body(i)
    found = [b for b in left if has_answer(body, questions[b].answers, regex=True)]
    for b in found:
      left[b] -= 1
      if not left[b]:
        del left[b]
    if found:
      yield i


def _with_words(store: PassageStore, rows: Iterable[int], questions: Sequence[Question]) -> Iterator[int]:
  """The same for answers that are texts; one is looked for only in passages with its longest word."""
  looked_for: dict[str, set[tuple[int, str]]] = collections.defaultdict(set)
  for b, question in enumerate(questions):
    for answer in map(matchable, question.answers):
      if answer != "  ":
        looked_for[max(answer.split(), key=len)].add((b, answer))
  left = [_NUM_WANTED] * len(questions)
  for i in rows:
    words = matchable(store.body(i))
    pairs = {pair for word in looked_for.keys() & words.split() for pair in looked_for[word] if pair[1] in words}
    found = {b for b, _ in pairs if left[b]}
    for b in found:
      left[b] -= 1
    for b, answer in pairs:
      if not left[b]:
        looked_for[max(answer.split(), key=len)].discard((b, answer))
    if found:
      yield i


def write_passages(store: PassageStore, rows: Iterable[int], path: pathlib.Path) -> None:
  """Ready passages, for realm build_corpus --whole."""
  with open(path, "w", encoding="utf-8") as file:
    for i in rows:
      passage = {"id": store.id(i), "title": store.title(i), "text": store.body(i)}
      file.write(json.dumps(passage, ensure_ascii=False) + "\n")


def annotate(
  store: PassageStore, questions: Sequence[Question], num_questions: int
) -> tuple[list[Question], list[int]]:
  """The first questions of a random order to which BM25 finds a passage, that passage being annotated; and the rows."""
  bm25 = Bm25(store)
  order = np.random.default_rng(0).permutation(len(questions)).tolist()
  annotated: list[Question] = []
  rows: set[int] = set()
  for start in range(0, len(order), _NUM_AT_ONCE):
    some = [questions[b] for b in order[start : start + _NUM_AT_ONCE]]
    _, found_BK = bm25.retrieve([q.question for q in some], min(_NUM_FOUND, len(store)))
    for question, found in zip(some, found_BK.tolist()):
      holds = [has_answer(store.body(i), question.answers) for i in found]
      if any(holds) and len(annotated) < num_questions:
        right = found[holds.index(True)]
        rows.add(right)
        rows.update([i for i, has in zip(found, holds) if not has][:1])
        annotated.append(question._replace(annotated=(store.id(right),)))
  print(f"{len(annotated)} of {len(questions)} training questions taken, with {len(rows)} passages")
  return annotated, sorted(rows)


def write_questions(questions: Iterable[Question], path: pathlib.Path) -> None:
  with open(path, "w", encoding="utf-8") as file:
    for q in questions:
      record = {"question": q.question, "answer": q.answers, "annotated": q.annotated}
      file.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("output", type=pathlib.Path, help="directory to write to")
  parser.add_argument("--corpus", required=True, help="the whole corpus, from which passages are chosen")
  parser.add_argument("--dev", nargs="*", default=[], help="development questions")
  parser.add_argument("--train", nargs="*", default=[], help="training questions")
  parser.add_argument("--num_passages", type=int, default=10_000, help="that are searched")
  parser.add_argument("--num_train", type=int, default=4_000, help="training questions to take, at most")
  flags = parser.parse_args()
  flags.output.mkdir(parents=True, exist_ok=True)
  store = PassageStore(flags.corpus)
  if flags.dev:
    write_passages(store, choose_passages(store, flags.dev, flags.num_passages), flags.output / "passages.jsonl")
  if flags.train:
    questions = [q for name in flags.train for q in read_questions(name).questions]
    questions, rows = annotate(store, questions, flags.num_train)
    write_passages(store, rows, flags.output / "train_passages.jsonl")
    write_questions(questions, flags.output / "train.jsonl")


if __name__ == "__main__":
  main()
