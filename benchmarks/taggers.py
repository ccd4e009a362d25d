"""Compares taggers of named entities on a corpus: spans a passage by kind, speed, and how far they agree.

  python benchmarks/taggers.py --corpus=corpora/mine --taggers=rules,spacy --num_passages=2000

The first tagger is judged by each of the others. A span counts as found exactly (both ends the same) or by an overlap.
Dates come by the same rule for all, and are left out of the comparison.
"""

import argparse
import bisect
import collections
import time

import numpy as np

from realm_jax.data.passages import PassageStore
from realm_jax.data.spans import Span, find_dates, make_tagger


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--corpus", required=True)
  parser.add_argument("--taggers", default="rules,spacy")
  parser.add_argument("--num_passages", type=int, default=2000)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  store = PassageStore(arguments.corpus)
  num_passages = min(arguments.num_passages, len(store))
  sample = np.sort(np.random.default_rng(arguments.seed).choice(len(store), num_passages, replace=False))
  texts = [store.body(int(i)) for i in sample]
  num_words = sum(len(text.split()) for text in texts)
  print(f"{num_passages} of {len(store)} passages of {store.path}, {num_words} words, seed {arguments.seed}")
  found = {}
  for name in arguments.taggers.split(","):
    tagger = make_tagger(name)
    begin = time.process_time()
    found[tagger.name] = tagger.tag(texts)
    seconds = time.process_time() - begin
    kinds = collections.Counter(span.kind for spans in found[tagger.name] for span in spans)
    counts = ", ".join(f"{kind} {count / num_passages:.2f}" for kind, count in kinds.most_common())
    print(f"{tagger.name}: {counts} a passage; {num_words / seconds:,.0f} words a second of one core")
  dates = sum(len(find_dates(text)) for text in texts)
  print(f"dates by rule: {dates / num_passages:.2f} a passage")
  (judged, spans), *others = found.items()
  for name, reference in others:
    for how, count in (("exact", count_equal), ("overlap", count_overlapping)):
      precision = sum(map(count, spans, reference)) / max(1, sum(map(len, spans)))
      recall = sum(map(count, reference, spans)) / max(1, sum(map(len, reference)))
      f1 = 2 * precision * recall / max(1e-9, precision + recall)
      print(f"{judged} against {name}, {how}: precision {precision:.3f}, recall {recall:.3f}, F1 {f1:.3f}")
    shares = ", ".join(f"{kind} {share:.3f}" for kind, share in recall_by_kind(spans, reference))
    print(f"{judged} finds (overlap) of {name}'s: {shares}")


def count_equal(spans: list[Span], others: list[Span]) -> int:
  ends = {(span.start, span.end) for span in others}
  return sum((span.start, span.end) in ends for span in spans)


def count_overlapping(spans: list[Span], others: list[Span]) -> int:
  """How many of the first overlap one of the others, which are sorted and don't overlap each other."""
  starts = [span.start for span in others]
  return sum(
    (place := bisect.bisect_left(starts, span.end)) > 0 and others[place - 1].end > span.start for span in spans
  )


def recall_by_kind(spans: list[list[Span]], reference: list[list[Span]]) -> list[tuple[str, float]]:
  result = []
  for kind in sorted({span.kind for row in reference for span in row}):
    rows = [[span for span in row if span.kind == kind] for row in reference]
    result.append((kind, sum(map(count_overlapping, rows, spans)) / sum(map(len, rows))))
  return result


if __name__ == "__main__":
  main()
