"""Measures how long fine-tuning looks for the answers of a question in its beam, which it does on the host.

  python benchmarks/answers.py --corpus=corpora/mine --questions=nq.train.jsonl

The beam of a question are the passages that BM25 finds. It is searched by normalising each text, and in the way of
training where no passage has been asked for before, and where all have been; and it is made a batch of, where all have
been. Each question is put in all ways, one after the other, and all must find the same. Regular expressions are
searched for in each text, and not again for a question that comes again. Times are the process', in which other load
hardly counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import ml_dtypes
import numpy as np
from absl import app, flags

from realm_jax.data.answer_finder import AnswerFinder
from realm_jax.data.answers import has_answer, has_words, matchable
from realm_jax.data.passages import PassageStore
from realm_jax.data.queries import QuestionSource
from realm_jax.data.questions import read_questions
from realm_jax.index.bm25 import Bm25
from realm_jax.index.retrieve import BatchAssembler
from realm_jax.index.snapshot import Snapshot

_CORPUS = flags.DEFINE_string("corpus", None, "A passage store (realm build_corpus).", required=True)
_QUESTIONS = flags.DEFINE_string("questions", None, "A question file.", required=True)
_BEAM_SIZE = flags.DEFINE_integer("beam_size", 5000, "Passages a question.", 1)
_NUM = flags.DEFINE_integer("num", 50, "Questions, spread over the file.", 1)
_NUM_READ = 5  # passages, as in the paper


def main(argv: list[str]) -> None:
  del argv
  store = PassageStore(_CORPUS.value)
  vocabulary = store.vocabulary()
  questions, regex, _ = read_questions(_QUESTIONS.value)
  questions = questions[:: max(1, len(questions) // _NUM.value)][: _NUM.value]
  beam_BR = Bm25(store).retrieve([q.question for q in questions], min(_BEAM_SIZE.value, len(store)))[1]
  print(f"{len(store)} passages of up to {store.passage_length} wordpieces, beams of {beam_BR.shape[1]}")
  print(f"{len(questions)} questions; {os.cpu_count()} cores, load {' '.join(f'{x:.1f}' for x in os.getloadavg())}\n")
  source = QuestionSource(questions, vocabulary, seed=0, query_length=64, max_masks=1)
  snapshot = Snapshot(1, {}, np.zeros((len(store), 128), ml_dtypes.bfloat16), None)
  assembler = BatchAssembler(store, vocabulary, joint_length=320)

  def look(finder: AnswerFinder, b: int) -> np.ndarray:
    return (finder.have_match if regex else finder.have_answer)(beam_BR[b], questions[b].answers)

  def by_each_text(b: int) -> np.ndarray:
    if regex:
      return np.array([has_answer(store.body(i), questions[b].answers, regex=True) for i in beam_BR[b].tolist()])
    words = [matchable(answer) for answer in questions[b].answers]
    return np.array([has_words(matchable(store.body(i)), words) for i in beam_BR[b].tolist()])

  def batch(b: int) -> np.ndarray:
    queries, answers = source.rows(np.array([b])), [questions[b].answers]
    made = assembler.question_batch(queries, answers, beam_BR[b : b + 1], snapshot, _NUM_READ, regex=regex)
    return made.beam_has_answer_BR[0]

  seen = AnswerFinder(store, vocabulary)
  for b in range(len(questions)):
    look(seen, b)
    batch(b)
  ways: dict[str, Callable[[int], np.ndarray]] = {
    "by each text": by_each_text,
    "in training, first time": lambda b: look(AnswerFinder(store, vocabulary), b),
    "in training, again": lambda b: look(seen, b),
    "the whole batch, again": batch,
  }
  seconds: dict[str, list[float]] = {way: [] for way in ways}
  num_held = []
  for b, question in enumerate(questions):
    found = []
    for way, run in ways.items():
      start = time.process_time()
      found.append(run(b))
      seconds[way].append(time.process_time() - start)
    if any((other != found[0]).any() for other in found):
      raise SystemExit(f"the ways differ for {question}")
    num_held.append(found[0].sum())
  print(f"{'milliseconds a question':<28}{'median':>10}{'mean':>10}{'most':>10}")
  for way, each in seconds.items():
    print(f"  {way:<26}{1e3 * np.median(each):10.1f}{1e3 * np.mean(each):10.1f}{1e3 * np.max(each):10.1f}")
  print(f"\npassages of a beam with an answer: median {np.median(num_held):.0f}, most {np.max(num_held)}")


if __name__ == "__main__":
  app.run(main)
