"""Answers questions, each with the passage it was read from and the answer marked in it.

  realm ask --workdir=runs/finetune "Who discovered radium?"
  realm ask --workdir=runs/finetune --questions=questions.txt --json > answers.jsonl
  realm ask --workdir=runs/finetune --checkpoint=best "Who discovered radium?"
  realm ask --workdir=runs/finetune --num_answers=3 "Who discovered radium?"
  realm ask --workdir=runs/finetune --no_answer_above=0.5 "Who discovered radium?"

Without a question it asks for one, until an empty line or the end of input. --questions takes a file with a question
on each line, or any that  realm evaluate  takes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

import tqdm
from absl import flags

from realm_jax import cli
from realm_jax.data.articles import numbered_lines
from realm_jax.data.questions import read_questions
from realm_jax.serving.open_qa import Answer, OpenQA

_CHUNK = 64  # questions between two updates of the progress bar


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", None, "A fine-tuned run directory.", required=True, flag_values=values)
  flags.DEFINE_string("checkpoint", None, "Its step, or best [the newest].", flag_values=values)
  flags.DEFINE_integer(
    "num_passages", None, "Passages to read for each question [the config's num_inference_passages].", 1,
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_string("questions", None, "A file of questions, answered in its order.", flag_values=values)
  flags.DEFINE_float(
    "no_answer_above", None, "Say that there is no answer where the null passage is more probable than this [never].",
    0.0, 1.0, flag_values=values,
  )  # fmt: skip
  flags.DEFINE_integer(
    "num_answers", 1, "Answers to a question, each from another passage; as many as the run reads at most.", 1,
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_bool("json", False, "Print one JSON object a line for each question.", flag_values=values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  if positional and values.questions:
    raise ValueError("give questions, or --questions=FILE, not both")
  if not all(question.strip() for question in positional):
    raise ValueError('an empty question; give one, such as "Who discovered radium?", or none to be asked for it')
  questions = questions_of(values.questions) if values.questions else positional
  open_qa = OpenQA.load(values.workdir, values.checkpoint, num_passages=values.num_passages)
  open_qa.warn_of_cut_passages()
  open_qa.check_no_answer(values.no_answer_above)
  form = functools.partial(format_json if values.json else format_answer, no_answer_above=values.no_answer_above)
  if not questions:
    for question in _typed():
      print(form(question, open_qa.answers([question], values.num_answers)[0], open_qa), flush=True)
  with tqdm.tqdm(total=len(questions), desc="answering", unit="q", disable=not values.questions) as bar:
    for begin in range(0, len(questions), _CHUNK):
      chunk = questions[begin : begin + _CHUNK]
      found = open_qa.answers(chunk, values.num_answers)
      answered = [form(question, answers, open_qa) for question, answers in zip(chunk, found)]
      bar.write("\n".join(answered), file=sys.stdout)
      bar.update(len(chunk))


def questions_of(name: str) -> Sequence[str]:
  """The questions that a file or a name stands for.

  Raises:
    ValueError: there is none, or the file can't be read as its name says.
  """
  if not pathlib.Path(name).is_file() or re.search(r"\.(jsonl|json|tsv|csv)(\.(gz|xz))?$", name):
    questions, _, skipped = read_questions(name)
    if skipped:
      print(f"{name}: skipped {skipped}", file=sys.stderr)
    return [q.question for q in questions]
  try:
    lines = [line.decode("utf-8-sig").strip() for _, line in numbered_lines(name)]
  except UnicodeDecodeError as error:
    raise ValueError(f"{name} holds bytes that are not UTF-8 ({error.reason}); give a text file") from error
  if not any(lines):
    raise ValueError(f"{name} holds no question; write one on each line")
  return [line for line in lines if line]


def format_answer(
  question: str, answers: Sequence[Answer], open_qa: OpenQA, *, no_answer_above: float | None = None
) -> str:
  """Question, best answer with its probability, the passage with the answer marked, and where that came from; further
  answers follow in the same form with their numbers.
  """
  answer = answers[0]
  marks = ("\033[1;7m", "\033[0m") if sys.stdout.isatty() else ("[[", "]]")
  description = open_qa.store.description
  source = ", ".join(description[field] for field in ("source", "license") if description.get(field))
  numbers = _numbers(answer)
  if answer.null_probability is not None:
    numbers += f", no answer {answer.null_probability:.2f}"
  said = f"{answer.text}  ({numbers})"
  if answer.is_withheld(no_answer_above):
    said = f"no answer  (at best {answer.text}: {numbers})"
  lines = [f"Q: {question}", f"A: {said}"]
  for number, a in enumerate(answers, 1):
    if number > 1:
      lines.append(f"{number}. {a.text}  ({_numbers(a)})")
    lines.append(f"   {a.title}: {a.marked(*marks)}")
    lines.append(f"   passage {a.passage_id} of {open_qa.config.corpus}{f' ({source})' if source else ''}")
  return "".join(f"{line}\n" for line in lines)


def _numbers(answer: Answer) -> str:
  return f"probability {answer.probability:.2f}, retrieval score {answer.retrieval_score:.1f}"


def format_json(
  question: str, answers: Sequence[Answer], open_qa: OpenQA, *, no_answer_above: float | None = None
) -> str:
  """The same as one line of JSON; start and end are the characters of the passage that the answer covers.

  Where there is no answer, is_answered is false and the rest is the best span all the same. Where more than one
  is asked for, further_answers lists the others.
  """
  answer, *further = answers
  is_answered = not answer.is_withheld(no_answer_above)
  record = {"question": question, "is_answered": is_answered, **answer.record(further), "corpus": open_qa.config.corpus}
  return json.dumps(record, ensure_ascii=False)


def _typed() -> Iterator[str]:
  """Questions from the terminal or a pipe; only a terminal is shown a prompt."""
  prompt = "question: " if sys.stdin.isatty() else ""
  if prompt:
    with contextlib.suppress(ImportError):  # not on every platform
      import readline  # noqa: F401, PLC0415 from now on input() has arrow keys and earlier questions
  try:
    while question := input(prompt).strip():
      yield question
  except EOFError:
    if prompt:
      print()  # the end of input leaves the cursor behind it


if __name__ == "__main__":
  sys.exit(cli.run(["ask", *sys.argv[1:]]))
