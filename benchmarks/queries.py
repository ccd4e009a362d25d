"""Measures how many queries a second are made ready for the device, and how fast questions are cut into tokens.

  python benchmarks/queries.py --corpus=corpora/mine

For each kind of query: drawn by NumPy alone, as whole batches through seqio (what training uses), and as single
examples that seqio puts together to batches (what a seqio mixture uses). Medians of repeats that take turns, so that
other load on the machine falls on all alike; compare the columns of one run, not two runs.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

from realm_jax.data.mixing import masked_sentences
from realm_jax.data.passages import PassageStore
from realm_jax.data.queries import QuerySource, QuestionSource, SentenceSource, text_tokens
from realm_jax.data.questions import read_questions
from realm_jax.data.sample import SAMPLE_QUESTIONS
from realm_jax.data.tasks import make_task, query_batches
from realm_jax.data.vocabulary import Vocabulary

_CORPUS = flags.DEFINE_string("corpus", None, "A passage store (realm build_corpus).", required=True)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 512, "Queries a batch.", 1)
_QUERY_LENGTH = flags.DEFINE_integer("query_length", 96, "Tokens a query.", 3)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Measurements of each, of which the median counts.", 1)


def main(argv: list[str]) -> None:
  del argv
  store = PassageStore(_CORPUS.value)
  vocabulary = store.vocabulary()
  questions = read_questions(str(SAMPLE_QUESTIONS["train"])).questions
  draw = {"seed": 0, "query_length": _QUERY_LENGTH.value, "max_masks": 10}
  path = _CORPUS.value
  sources: dict[str, QuerySource] = {
    "sentences (ict)": SentenceSource(store, **draw),
    "salient spans": masked_sentences(store, masking="salient_span", **draw),
    "random spans": masked_sentences(store, masking="random_span", **draw),
    "random tokens": masked_sentences(store, masking="random_token", **draw),
    "salient spans, a mixture": masked_sentences(
      store, masking="salient_span", mixture=f"{path}:0.3,{path}/:0.7", **draw
    ),
    "questions": QuestionSource(questions, vocabulary, **draw),
  }
  print(f"{len(store)} passages, batches of {_BATCH_SIZE.value}, {_QUERY_LENGTH.value} tokens a query")
  print(f"{os.cpu_count()} cores, load {' '.join(f'{x:.1f}' for x in os.getloadavg())}; queries a second:\n")
  rates = measure({(kind, way): w(s) for kind, s in sources.items() for way, w in WAYS.items()})
  print_table(list(WAYS), {kind: [rates[kind, way] for way in WAYS] for kind in sources})
  print("\nmasked tokens a query, of which predicted, and tokens a query without [CLS] and [SEP]:\n")
  for kind in ("salient spans", "random spans", "random tokens"):
    batch = sources[kind].draw(np.arange(20_000))
    masked = (batch.token_id_BQ == vocabulary.mask_id).sum(1).mean()
    print(f"  {kind:<26}{masked:6.2f}{batch.mask_weight_BM.sum(1).mean():6.2f}{batch.num_tokens_B.mean() - 2:7.1f}")
  texts = [q.question for q in questions] * 8
  print(f"\n{len(texts)} questions cut into tokens, a second:\n")
  print_table(["a second"], {name: [rate] for name, rate in measure(tokenizing(texts, vocabulary)).items()})
  print(f"\nload at the end {' '.join(f'{x:.1f}' for x in os.getloadavg())}")


# A timing returns queries made and seconds.
Timing = Callable[[], tuple[int, float]]


def drawn_alone(source: QuerySource) -> Timing:
  numbers = [np.arange(_BATCH_SIZE.value * t, _BATCH_SIZE.value * (t + 1)) for t in range(100)]

  def timing():
    start = time.perf_counter()
    for number in numbers:
      source.draw(number)
    return len(numbers) * _BATCH_SIZE.value, time.perf_counter() - start

  return timing


def through_seqio(source: QuerySource) -> Timing:
  return lambda: consume(query_batches("queries", source, batch_size=_BATCH_SIZE.value), 100)


def put_together_by_seqio(source: QuerySource) -> Timing:
  def timing():
    dataset = make_task("queries", source).get_dataset(None, split="train", shuffle=False)
    return consume(dataset.batch(_BATCH_SIZE.value).prefetch(2).as_numpy_iterator(), 20)

  return timing


WAYS = {"drawn": drawn_alone, "seqio, batches": through_seqio, "seqio, examples": put_together_by_seqio}


def consume(batches, count: int) -> tuple[int, float]:
  """Times `count` batches after the first two, which build the pipeline."""
  for _ in itertools.islice(batches, 2):
    pass
  start = time.perf_counter()
  for _ in itertools.islice(batches, count):
    pass
  return count * _BATCH_SIZE.value, time.perf_counter() - start


def tokenizing(texts: list[str], vocabulary: Vocabulary) -> dict[str, Timing]:
  """The tokenizers library's batch call, and ours around it."""
  library = vocabulary._tokenizer

  def timing_of(cut: Callable[[list[str]], object]) -> Timing:
    def timing():
      start = time.perf_counter()
      cut(texts)
      return len(texts), time.perf_counter() - start

    return timing

  return {
    "tokenizers, encode_batch": timing_of(lambda t: library.encode_batch(t, add_special_tokens=False)),
    "tokenizers, encode_batch_fast": timing_of(lambda t: library.encode_batch_fast(t, add_special_tokens=False)),
    "ours, rows of ids": timing_of(lambda t: text_tokens(t, vocabulary)),
    "ours, ids and characters": timing_of(vocabulary.encode),
  }


def measure(timings: dict) -> dict:
  """Median rates; the timings take turns."""
  rates: dict = {key: [] for key in timings}
  for _ in range(_REPEATS.value):
    for key, timing in timings.items():
      count, seconds = timing()
      rates[key].append(count / seconds)
  return {key: statistics.median(values) for key, values in rates.items()}


def print_table(columns: list[str], rows: dict[str, list[float]]) -> None:
  print(" " * 34 + "".join(f"{c:>17}" for c in columns))
  for name, values in rows.items():
    print(f"  {name:<32}" + "".join(f"{value:>17,.0f}" for value in values))


if __name__ == "__main__":
  app.run(main)
