"""Trains and evaluates every row of the paper's Table 2 in small: python launch/table2.py RUNS --seeds 0 1 2

launch/table2.sh prepares what it needs in RUNS and calls it. All in one process, so that little is compiled twice. What
is done stays done: started again, it goes on.
"""

import argparse
import pathlib

from realm_jax import cli
from realm_jax.config_source import read_config
from realm_jax.data.passages import PassageStore
from realm_jax.index import snapshot as snapshots
from realm_jax.index.run_dir import RunDir
from realm_jax.training.loop import train

# Each row's retriever and reader: of a pre-training, or "start", what all pre-trainings start from.
ROWS = {
  "realm": ("realm", "realm"),
  "realm_retriever": ("realm", "start"),
  "realm_reader": ("start", "realm"),
  "baseline": ("start", "start"),
  "random_token": ("random_token", "random_token"),
  "random_span": ("random_span", "random_span"),
  "stale": ("stale", "stale"),
  "frozen": ("frozen", "frozen"),  # not the paper's: what the reader's part of pre-training brings
}


class Grid:
  """The runs below one directory."""

  def __init__(self, runs: pathlib.Path, num_steps: int | None = None):
    self._runs, self._num_steps = runs, num_steps
    self._store = PassageStore(runs / "corpus")

  def finish_row(self, row: str, seed: int) -> None:
    """Pre-trains, fine-tunes and evaluates one row, as far as that has not been done."""
    retriever, reader = ROWS[row]
    for name in {retriever, reader} - {"start"}:
      self.pretrain(name, seed)
    run = self._runs / f"{row}.finetune.{seed}"
    init = self._runs / (f"{retriever}.{seed}" if retriever != "start" else "start")
    init_reader = self._runs / (f"{reader}.{seed}" if reader != "start" else "reading")
    self._train("finetune", run, seed, init, init_reader, questions=str(self._runs / "train.jsonl"))
    self.evaluate(run)

  def pretrain(self, name: str, seed: int) -> None:
    run = self._runs / f"{name}.{seed}"
    self._train(name, run, seed, self._runs / "start", self._runs / "reading")
    self.evaluate(run, "--retrieval_only")

  def evaluate(self, run: pathlib.Path, *flags: str) -> None:
    if not (run / "evaluation" / "dev.json").exists():
      _check(cli.run(["evaluate", f"--workdir={run}", f"--questions={self._runs / 'dev.jsonl'}", "--name=dev", *flags]))

  def _train(
    self, name: str, run: pathlib.Path, seed: int, init: pathlib.Path, init_reader: pathlib.Path, **fields: str
  ) -> None:
    run_dir = RunDir(run)
    if run_dir.is_done():
      return
    print(f"== {run.name}", flush=True)
    config = read_config(f"configs/table2.py:{name}")
    config.update(corpus=str(self._runs / "corpus"), init=str(init), init_reader=str(init_reader), seed=seed, **fields)
    config.num_steps = self._num_steps or config.num_steps
    if not run_dir.snapshot_versions():
      self._copy_index(RunDir(init), run_dir)
    train(config, run_dir)

  def _copy_index(self, source: RunDir, run_dir: RunDir) -> None:
    """The passages are embedded already by the tower that the run starts from."""
    newest = snapshots.load(source, source.snapshot_versions()[-1], self._store)
    snapshots.publish(
      run_dir, newest.passage_emb_ND, self._store, params_step=0, params_digest=newest.manifest["params_digest"]
    )


def _check(status: int) -> None:
  if status:
    raise SystemExit(status)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("runs", type=pathlib.Path, help="with corpus, start, reading, train.jsonl and dev.jsonl")
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
  parser.add_argument("--num_steps", type=int, help="of each training, to try the whole through [the config's]")
  flags = parser.parse_args()
  grid = Grid(flags.runs, flags.num_steps)
  grid.evaluate(flags.runs / "start", "--retrieval_only")
  for seed in flags.seeds:  # seed by seed: a table that is not finished has all of its rows
    for row in flags.rows:
      grid.finish_row(row, seed)


if __name__ == "__main__":
  main()
