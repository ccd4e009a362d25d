"""Writes corpus and questions of the paper's Table 2 in small: python launch/table2_data.py --help

Only questions that the corpus can answer are of use to compare retrievers with. Kept are those for which one of BM25's
best passages among all leads holds an answer, and the leads of the articles of such passages are the corpus; other
articles' leads fill it up. So that retrieval doesn't favour BM25, any passage with an answer counts as right later.
"""

import argparse
import json
import lzma
import pathlib
import random

from realm_jax.data.answers import has_answer
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import Question, read_questions
from realm_jax.index.bm25 import Bm25

_TOP = 3  # of BM25's passages: a question's words are in them, so that an answer there is rarely by chance
_LONGEST_ANSWER = 8  # words


def supported(store: PassageStore, questions: list[Question]) -> list[tuple[Question, set[str]]]:
  """The questions with an answer in BM25's best passages, and the titles of these."""
  passage_id_BK = Bm25(store).retrieve([q.question for q in questions], _TOP)[1]
  found = []
  for question, row in zip(questions, passage_id_BK.tolist()):
    answers = [a for a in question.answers if len(a.split()) <= _LONGEST_ANSWER]
    titles = {store.title(i) for i in row if has_answer(store.body(i), answers)}
    if titles:
      found.append((Question(question.question, tuple(answers)), titles))
  return found


def write_questions(questions: list[Question], path: pathlib.Path) -> None:
  lines = (json.dumps({"question": q.question, "answer": q.answers}, ensure_ascii=False) + "\n" for q in questions)
  path.write_text("".join(lines), encoding="utf-8")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("output", type=pathlib.Path, help="directory: articles.jsonl, train.jsonl and dev.jsonl")
  parser.add_argument("--store", required=True, help="passages of all leads")
  parser.add_argument("--leads", required=True, help="the articles that it was built from, jsonl.xz")
  parser.add_argument("--questions", nargs="+", required=True, help="jsonl files")
  parser.add_argument("--num_passages", type=int, default=20_500, help="in the corpus, about")
  parser.add_argument("--num_dev", type=int, default=1000, help="questions that are not trained on")
  flags = parser.parse_args()
  rng = random.Random(0)
  store = PassageStore(flags.store)
  found = supported(store, [q for name in flags.questions for q in read_questions(name).questions])
  rng.shuffle(found)
  size: dict[str, int] = {}
  for i in range(len(store)):
    size[store.title(i)] = size.get(store.title(i), 0) + 1
  titles: set[str] = set()
  questions = []
  num_passages = 0
  for question, its_titles in found:
    new = sum(size[title] for title in its_titles - titles)
    if num_passages + new <= 0.9 * flags.num_passages:
      questions.append(question)
      titles |= its_titles
      num_passages += new
  others = sorted(size.keys() - titles)
  rng.shuffle(others)
  while num_passages < flags.num_passages:
    title = others.pop()
    titles.add(title)
    num_passages += size[title]
  flags.output.mkdir(parents=True, exist_ok=True)
  with (
    lzma.open(flags.leads, "rt", encoding="utf-8") as lines,
    open(flags.output / "articles.jsonl", "w", encoding="utf-8") as file,
  ):
    file.writelines(line for line in lines if json.loads(line)["title"] in titles)
  write_questions(questions[flags.num_dev :], flags.output / "train.jsonl")
  write_questions(questions[: flags.num_dev], flags.output / "dev.jsonl")
  print(f"{len(questions)} of {len(found)} questions, {len(titles)} articles, about {num_passages} passages")


if __name__ == "__main__":
  main()
