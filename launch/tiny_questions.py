"""Writes a training corpus and training questions of realm-tiny: python launch/tiny_questions.py --help

Questions of SQuAD and, if given, HotpotQA, and cloze questions made from the corpus itself: a sentence in which "what",
"who", "which" or "when" stands for a salient span, which is the answer (Lewis et al. 2019).
"""

import argparse
import itertools
import json
import lzma
import pathlib
import random

from realm_jax.data.answers import has_answer
from realm_jax.data.passages import PassageStore
from realm_jax.data.spans import KINDS
from realm_jax.data.vocabulary import Vocabulary

_NUM_ARTICLES = 6000  # lead sections; with those of the questions about 35,000 passages
_SHORTEST, _LONGEST, _LONGEST_ANSWER = 8, 60, 8  # wordpieces of a cloze question's sentence and of its answer


def write_articles(
  squad: str, hotpotqa: str | None, leads: str | None, output: pathlib.Path, num_hotpotqa: int | None = None
) -> None:
  """articles.jsonl, and real.jsonl with the questions whose passages are in it."""
  questions, passages = [], {}
  for line in open(squad, encoding="utf-8"):
    record = json.loads(line)
    name = passages[record["title"].replace("_", " "), record["context"]] = f"squad-{len(passages)}"
    for question in record["questions"]:
      if question["answers"]:
        answers = sorted({answer["text"] for answer in question["answers"]})
        questions.append({"question": question["question"], "answer": answers, "annotated": [name]})
  for line in itertools.islice(open(hotpotqa, encoding="utf-8"), num_hotpotqa) if hotpotqa else ():
    record = json.loads(line)
    names = [
      passages.setdefault((passage["title"], passage["text"]), f"hotpotqa-{len(passages)}")
      for passage in record["passages"]
    ]
    if any(has_answer(passage["text"], record["answer"]) for passage in record["passages"]):  # not "yes" and "no"
      questions.append({"question": record["question"], "answer": record["answer"], "annotated": names})
  with open(output / "articles.jsonl", "w", encoding="utf-8") as file:
    for (title, text), name in passages.items():
      file.write(json.dumps({"id": name, "title": title, "text": text}, ensure_ascii=False) + "\n")
    if leads:
      with lzma.open(leads, "rt", encoding="utf-8") as lines:
        file.writelines(itertools.islice(lines, _NUM_ARTICLES))
  write(questions, output / "real.jsonl")


def write_questions(corpus: str, output: pathlib.Path, num_rounds: int, num_cloze: int) -> None:
  """questions.jsonl: the real ones, and cloze questions of the corpus."""
  rng = random.Random(0)
  store = PassageStore(corpus)
  vocabulary = store.vocabulary()
  cloze = {
    question["question"]: question
    for _ in range(num_rounds)
    for i in range(len(store))
    for question in cloze_questions(store, vocabulary, i, rng)
  }
  real = [json.loads(line) for line in open(output / "real.jsonl", encoding="utf-8")]
  questions = real + rng.sample(list(cloze.values()), min(num_cloze, len(cloze)))
  rng.shuffle(questions)
  write(questions, output / "questions.jsonl")


def cloze_questions(store: PassageStore, vocabulary: Vocabulary, i: int, rng: random.Random):
  """At most two of a passage, other ones in each round."""
  begin, end = (int(x) for x in store.span_offset[i : i + 2])
  body = store.body(i)
  char_range = vocabulary.encode([body])[0].char_range
  starts = [int(x) for x in store.sentence_start[int(store.sentence_offset[i]) : int(store.sentence_offset[i + 1])]]
  starts.append(int(store.body_length_N[i]))
  for row in rng.sample(range(begin, end), min(2, end - begin)):
    first, last, sentence, kind = (int(x) for x in store.span[row])
    low, high = starts[sentence], starts[sentence + 1]
    if _SHORTEST <= high - low <= _LONGEST and last - first <= _LONGEST_ANSWER:
      word = "when" if KINDS[kind] == "date" else rng.choice(["who", "what", "which"])
      before = body[char_range[low, 0] : char_range[first, 0]]
      after = body[char_range[last - 1, 1] : char_range[high - 1, 1]]
      answer = body[char_range[first, 0] : char_range[last - 1, 1]]
      yield {"question": f"{before}{word}{after.rstrip(' .')}?", "answer": [answer]}


def write(questions, path: pathlib.Path) -> None:
  path.write_text("".join(json.dumps(q, ensure_ascii=False) + "\n" for q in questions), encoding="utf-8")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("output", type=pathlib.Path, help="directory to write to")
  parser.add_argument("--squad", help="jsonl: title, context, questions with their answers")
  parser.add_argument("--hotpotqa", help="jsonl: question, answer, passages with title and text")
  parser.add_argument("--num_hotpotqa", type=int, help="that many of HotpotQA's questions alone [all]")
  parser.add_argument("--leads", help="jsonl.xz of articles")
  parser.add_argument("--corpus", help="built from articles.jsonl: then the questions are written, else articles.jsonl")
  parser.add_argument("--rounds", type=int, default=1, help="with --corpus: times that each passage is asked about")
  parser.add_argument("--cloze", type=int, default=20_000, help="with --corpus: cloze questions at most")
  flags = parser.parse_args()
  flags.output.mkdir(parents=True, exist_ok=True)
  if flags.corpus:
    write_questions(flags.corpus, flags.output, flags.rounds, flags.cloze)
  elif flags.squad:
    write_articles(flags.squad, flags.hotpotqa, flags.leads, flags.output, flags.num_hotpotqa)
  else:
    parser.error("give --squad, or --corpus")


if __name__ == "__main__":
  main()
