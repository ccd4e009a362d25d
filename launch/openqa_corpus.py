"""Chooses passages and training questions for launch/openqa_results.sh: python launch/openqa_corpus.py --help

The rule for passages: they come in a random order. One is kept if it holds an answer to a development question of which
fewer than 10 were kept before, or to a training question of which none was; then the first of the others, until there
are enough. So a question with rare answers has all of the passages that hold them, and what is chosen depends on
neither retriever. Regular expressions, which take long, are looked for in the first 100,000 passages of that order.
"""

import argparse
import collections
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from realm_jax.data.answers import has_answer, matchable
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import Question, read_questions

_NUM_FOR_DEV, _NUM_FOR_TRAIN = 10, 1  # passages with an answer
_NUM_FOR_REGEX = 100_000


def choose_passages(store: PassageStore, dev: Sequence[str], train: Sequence[str], num_passages: int) -> list[int]:
  """Rows of the store by the rule above, in their order there."""
  order = np.random.default_rng(0).permutation(len(store)).tolist()
  chosen: set[int] = set()
  texts: list[tuple[Question, int]] = []
  for names, wanted in ((dev, _NUM_FOR_DEV), (train, _NUM_FOR_TRAIN)):
    for questions, regex, _ in map(read_questions, names):
      if regex:
        chosen.update(_with_patterns(store, order[:_NUM_FOR_REGEX], questions, wanted))
      else:
        texts += [(question, wanted) for question in questions]
  chosen.update(_with_words(store, order, texts))
  print(f"{len(chosen)} passages hold an answer that was looked for; {num_passages - len(chosen)} more at random")
  for i in order:
    if len(chosen) >= num_passages:
      break
    chosen.add(i)
  return sorted(chosen)


def _with_patterns(store: PassageStore, rows: Iterable[int], questions: Sequence[Question], wanted: int):
  """Yields rows with what the questions' patterns find, at most so many for each question."""
  left = dict.fromkeys(range(len(questions)), wanted)
  for i in rows:
    body = store.body(i)
    found = [b for b in left if has_answer(body, questions[b].answers, regex=True)]
    for b in found:
      left[b] -= 1
      if not left[b]:
        del left[b]
    if found:
      yield i


def _with_words(store: PassageStore, rows: Iterable[int], questions: Sequence[tuple[Question, int]]):
  """Yields rows with an answer, at most so many for each question as stand beside it."""
  looked_for: dict[str, set[tuple[int, str]]] = collections.defaultdict(set)
  words_of: dict[int, list[tuple[str, str]]] = {}
  for b, (question, _) in enumerate(questions):
    answers = {answer for answer in map(matchable, question.answers) if answer != "  "}
    words_of[b] = [(max(answer.split(), key=len), answer) for answer in answers]
    for word, answer in words_of[b]:
      looked_for[word].add((b, answer))
  left = [wanted for _, wanted in questions]
  for i in rows:
    words = matchable(store.body(i))
    found = {b for word in looked_for.keys() & words.split() for b, answer in looked_for[word] if answer in words}
    for b in found:
      left[b] -= 1
      if not left[b]:
        for word, answer in words_of[b]:
          looked_for[word].discard((b, answer))
          if not looked_for[word]:
            del looked_for[word]
    if found:
      yield i


def write_passages(store: PassageStore, rows: Iterable[int], path: pathlib.Path) -> None:
  """Ready passages, for realm build_corpus --whole."""
  with open(path, "w", encoding="utf-8") as file:
    for i in rows:
      passage = {"id": store.id(i), "title": store.title(i), "text": store.body(i)}
      file.write(json.dumps(passage, ensure_ascii=False) + "\n")


def write_questions(names: Iterable[str], path: pathlib.Path) -> None:
  """Several sets as one."""
  questions = [q for name in names for q in read_questions(name).questions]
  path.write_text(
    "".join(json.dumps({"question": q.question, "answer": q.answers}, ensure_ascii=False) + "\n" for q in questions),
    encoding="utf-8",
  )


def keep_readable(retrieved: pathlib.Path, path: pathlib.Path) -> None:
  """Of DPR's json of questions with their best passages, those questions to which one of these holds an answer."""
  cases = json.loads(retrieved.read_text(encoding="utf-8"))
  kept = [case for case in cases if any(passage["has_answer"] for passage in case["ctxs"])]
  lines = (json.dumps({"question": c["question"], "answer": c["answers"]}, ensure_ascii=False) + "\n" for c in kept)
  path.write_text("".join(lines), encoding="utf-8")
  print(f"{path}: {len(kept)} of {len(cases)} questions")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("output", type=pathlib.Path, help="directory to write to")
  parser.add_argument("--corpus", help="the whole corpus; writes passages.jsonl and train.jsonl")
  parser.add_argument("--dev", nargs="*", default=[], help="development questions")
  parser.add_argument("--train", nargs="*", default=[], help="training questions, whose answers are texts")
  parser.add_argument("--num_passages", type=int, default=30_000)
  parser.add_argument("--retrieved", type=pathlib.Path, help="DPR's json of train.jsonl; writes readable.jsonl")
  flags = parser.parse_args()
  flags.output.mkdir(parents=True, exist_ok=True)
  if flags.corpus:
    store = PassageStore(flags.corpus)
    rows = choose_passages(store, flags.dev, flags.train, flags.num_passages)
    write_passages(store, rows, flags.output / "passages.jsonl")
    write_questions(flags.train, flags.output / "train.jsonl")
  elif flags.retrieved:
    keep_readable(flags.retrieved, flags.output / "readable.jsonl")
  else:
    parser.error("give --corpus, or --retrieved")


if __name__ == "__main__":
  main()
