"""Answers questions, each with the passage it was read from and the answer marked in it.

  realm ask --workdir=runs/finetune "Who discovered radium?"

Without a question it asks for one, until an empty line.
"""

from __future__ import annotations

import json
import sys

from absl import flags

from realm_jax import cli
from realm_jax.serving.open_qa import Answer, OpenQA


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", None, "A fine-tuned run directory.", required=True, flag_values=values)
  flags.DEFINE_bool("json", False, "Print one JSON object a question.", flag_values=values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  open_qa = OpenQA.load(values.workdir)
  questions = positional or iter(lambda: input("question: ").strip(), "")
  for question in questions:
    answer = open_qa.answer([question])[0]
    if values.json:
      print(json.dumps({"question": question, **answer._asdict()}, ensure_ascii=False))
    else:
      print(format_answer(question, answer, color=sys.stdout.isatty()))


def format_answer(question: str, answer: Answer, *, color: bool) -> str:
  """Question, answer with its probability, and the passage with the answer marked."""
  marks = ("\033[1;7m", "\033[0m") if color else ("[[", "]]")
  return (
    f"Q: {question}\n"
    f"A: {answer.text}  (probability {answer.probability:.2f}, retrieval score {answer.retrieval_score:.1f})\n"
    f"   {answer.title}: {answer.marked(*marks)}\n"
  )


if __name__ == "__main__":
  sys.exit(cli.run(["ask", *sys.argv[1:]]))
