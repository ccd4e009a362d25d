"""Measures realm ask: seconds until a new process has answered, and questions a second when it is given many.

  python benchmarks/ask.py --workdir=runs/finetune

The first are those from the start of the process to its answer to one question, the median of some processes; the
second those of one process after its first 64 answers, with which all is compiled.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from realm_jax.data.questions import read_questions
from realm_jax.data.sample import SAMPLE_QUESTIONS

_WORKDIR = flags.DEFINE_string("workdir", None, "A fine-tuned run with an index.", required=True)
_QUESTIONS = flags.DEFINE_integer("questions", 704, "Questions of the second part, of the sample's 726.", 65, 726)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Processes of the first part, of which the median counts.", 1)
_FIRST = 64  # answers that come together


def main(argv: list[str]) -> None:
  del argv
  questions = [q.question for q in read_questions(str(SAMPLE_QUESTIONS["train"])).questions][: _QUESTIONS.value]
  print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
  first = statistics.median(answered_at(questions[0])[0] for _ in range(_REPEATS.value))
  print(f"a new process has answered after {first:.1f} s (median of {_REPEATS.value})")
  with tempfile.TemporaryDirectory() as scratch:
    path = pathlib.Path(scratch) / "questions.txt"
    path.write_text("".join(f"{question}\n" for question in questions), encoding="utf-8")
    seconds = answered_at(f"--questions={path}")
  assert len(seconds) == len(questions)
  rate = (len(seconds) - _FIRST) / (seconds[-1] - seconds[_FIRST - 1])
  print(
    f"{len(seconds)} questions: the first {_FIRST} answered after {seconds[_FIRST - 1]:.1f} s, then {rate:.1f} a second"
  )
  print(f"load {os.getloadavg()[0]:.1f}")


def answered_at(*arguments: str) -> list[float]:
  """Seconds from the start of a process to each of its answers."""
  begin = time.monotonic()
  command = [sys.executable, "-u", "-m", "realm_jax.cli", "ask", f"--workdir={_WORKDIR.value}", "--json", *arguments]
  seconds = []
  with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
    assert process.stdout and process.stderr
    for line in process.stdout:
      json.loads(line)
      seconds.append(time.monotonic() - begin)
    said = process.stderr.read()
  if process.returncode:
    raise RuntimeError(f"realm ask ended with {process.returncode}: {said}")
  return seconds


if __name__ == "__main__":
  app.run(main)
