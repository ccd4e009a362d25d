"""Shows the state of a run directory, and what is missing in it; or the passages that a question finds.

  realm inspect runs/pretrain
  realm inspect runs/pretrain --question="Who discovered radium?" --before=runs/ict
  realm inspect runs/pretrain --question="[MASK] was found by the Curies." --answer=Radium
  realm inspect runs/finetune --question="Who discovered radium?" --answer="Marie Curie"

With a question it ranks the passages by the run's newest checkpoint, and by what --before names: another run, or an
older checkpoint of this one by its step. With an answer it adds which of the passages that are read the gradient of
the answer's likelihood pushes up, and which down. docs/inspect.md explains the output.
"""

from __future__ import annotations

import json
import sys

from absl import flags

from realm_jax import cli
from realm_jax.index.run_dir import RunDir
from realm_jax.serving import ranks
from realm_jax.serving.open_qa import OpenQA
from realm_jax.serving.run_report import describe, read_report


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("question", None, "Show what this question finds.", flag_values=values)
  flags.DEFINE_string("before", None, "With --question: a run, or a step, to compare with.", flag_values=values)
  flags.DEFINE_string("answer", None, "With --question: its answer, or what its [MASK] hides.", flag_values=values)
  flags.DEFINE_integer("k", 5, "With --question: how many of the best passages.", 1, flag_values=values)
  flags.DEFINE_bool("json", False, "Print JSON.", flag_values=values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  if len(positional) != 1:
    raise ValueError("give one run directory:  realm inspect RUN")
  if values.question is None and (values.before is not None or values.answer is not None):
    raise ValueError("--before and --answer say more of what a --question finds; give one")
  [workdir] = positional
  if values.question is None:
    report = read_report(RunDir(workdir))
    print(json.dumps(report, indent=2) if values.json else describe(report))
    return
  if not values.question.strip():
    raise ValueError("an empty question; give one as --question='...'")
  if values.answer is not None and not values.answer.strip():
    raise ValueError("an empty answer; give one as --answer='...'")
  found = ranks.compare(
    values.question, OpenQA.load(workdir), ranks.load_before(workdir, values.before), k=values.k, answer=values.answer
  )
  if values.json:
    print(json.dumps([passage._asdict() for passage in found]))
  else:
    print(ranks.describe(found, values.before, values.answer))


if __name__ == "__main__":
  sys.exit(cli.run(["inspect", *sys.argv[1:]]))
