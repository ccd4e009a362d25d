"""Finds hard negatives for the stage ict: for each passage of a corpus, those that BM25 takes for similar.

  realm mine_negatives --corpus=corpora/mine --output=corpora/mine-negatives
  realm mine_negatives --corpus=gs://mine/corpora/wiki --output=gs://mine/negatives --num_neighbours=32

Train with --config.hard_negatives=corpora/mine-negatives --config.num_hard_negatives=1 on the same corpus.
Left out are the passage itself and those that hold one of its sentences. A search that was stopped goes on where it was
when the same command is given again. Its time grows with the square of the number of passages: docs/loop.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import tqdm
from absl import flags

from realm_jax import cli
from realm_jax.data.passages import PassageStore
from realm_jax.index.neighbours import mine_neighbours


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("corpus", None, "A passage store.", required=True, flag_values=values)
  flags.DEFINE_string("output", None, "Directory to write.", required=True, flag_values=values)
  flags.DEFINE_integer("num_neighbours", 16, "Passages to keep for each, to draw from.", 1, flag_values=values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  if positional:
    raise ValueError(f"unexpected {positional[0]!r}")
  store = PassageStore(values.corpus)
  store.verify()

  def show(begins: Iterable[int]) -> Iterable[int]:
    return tqdm.tqdm(begins, desc="searching", unit="part", mininterval=1.0)

  num_found = mine_neighbours(store, values.output, values.num_neighbours, show)
  print(f"{values.output}: {num_found} neighbours of {len(store)} passages")


if __name__ == "__main__":
  sys.exit(cli.run(["mine_negatives", *sys.argv[1:]]))
