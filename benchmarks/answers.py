"""Measures how long fine-tuning looks for the answers of a question in its beam, which it does on the host.

  python benchmarks/answers.py --corpus=corpora/mine --questions=nq.train.jsonl

The beam of a question are the passages that BM25 finds. Each is searched in three ways that take turns: by normalising
its text, and by its wordpieces, where no passage has been asked for before and where all have been. Regular expressions
are searched for in each text. All ways must agree. Times are the process', in which other load hardly counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

from realm_jax.data.answer_finder import AnswerFinder
from realm_jax.data.answers import has_answer, has_words, matchable
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import read_questions
from realm_jax.index.bm25 import Bm25

_CORPUS = flags.DEFINE_string("corpus", None, "A passage store (realm build_corpus).", required=True)
_QUESTIONS = flags.DEFINE_string("questions", None, "A question file.", required=True)
_BEAM_SIZE = flags.DEFINE_integer("beam_size", 5000, "Passages a question.", 1)
_NUM = flags.DEFINE_integer("num", 50, "Questions, spread over the file.", 1)


def main(argv: list[str]) -> None:
  del argv
  store = PassageStore(_CORPUS.value)
  vocabulary = store.vocabulary()
  questions, regex, _ = read_questions(_QUESTIONS.value)
  questions = questions[:: max(1, len(questions) // _NUM.value)][: _NUM.value]
  beam_size = min(_BEAM_SIZE.value, len(store))
  beam_BR = Bm25(store).retrieve([q.question for q in questions], beam_size)[1]
  print(f"{len(store)} passages of up to {store.passage_length} wordpieces, beams of {beam_size}")
  print(f"{len(questions)} questions; {os.cpu_count()} cores, load {' '.join(f'{x:.1f}' for x in os.getloadavg())}\n")
  finder = AnswerFinder(store, vocabulary)
  for row_R in beam_BR:
    finder.have_answer(row_R, ["answer"])

  def by_text(row_R: np.ndarray, answers: tuple[str, ...]) -> np.ndarray:
    words = [matchable(answer) for answer in answers]
    return np.array([has_words(matchable(store.body(i)), words) for i in row_R.tolist()])

  def by_pattern(row_R: np.ndarray, answers: tuple[str, ...]) -> np.ndarray:
    return np.array([has_answer(store.body(i), answers, regex=True) for i in row_R.tolist()])

  ways: dict[str, Callable[[np.ndarray, tuple[str, ...]], np.ndarray]] = {
    "by each text": by_text,
    "by wordpieces, new": lambda row_R, answers: AnswerFinder(store, vocabulary).have_answer(row_R, answers),
    "by wordpieces, again": finder.have_answer,
  }
  if regex:
    ways = {"by each text": by_pattern}
  seconds: dict[str, list[float]] = {way: [] for way in ways}
  num_held = []
  for question, row_R in zip(questions, beam_BR):
    found = []
    for way, look in ways.items():
      start = time.process_time()
      found.append(look(row_R, question.answers))
      seconds[way].append(time.process_time() - start)
    if any((other != found[0]).any() for other in found):
      raise SystemExit(f"the ways differ for {question}")
    num_held.append(found[0].sum())
  print(f"{'milliseconds a question':<26}{'median':>10}{'mean':>10}{'most':>10}")
  for way, each in seconds.items():
    print(f"  {way:<24}{1e3 * np.median(each):10.1f}{1e3 * np.mean(each):10.1f}{1e3 * np.max(each):10.1f}")
  print(f"\npassages of a beam with an answer: median {np.median(num_held):.0f}, most {np.max(num_held)}")


if __name__ == "__main__":
  app.run(main)
