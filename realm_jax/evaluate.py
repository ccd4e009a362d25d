"""Evaluates a run on questions: recall@1/5/20, and for a fine-tuned run exact match and F1.

  realm evaluate --workdir=runs/finetune --questions=dev.jsonl
  realm evaluate --bm25 --corpus=corpora/mine --questions=dev.jsonl
  realm evaluate --table=runs/ict,runs/pretrain,runs/finetune

--questions takes a file: .jsonl with {"question": ..., "answer": [...]} a line, or DPR's .json, .tsv or .csv (and .gz
or .xz of these); or a set of TFDS: nq_open, web_questions, trivia_qa or squad_open. A split may follow: FILE:dev is the
tenth of a file that Google's hash holds out, FILE:train the rest, nq_open:test TFDS's own test questions. A file whose
name has CuratedTREC in it holds regular expressions. Scores and predictions go to the run's evaluation/ directory.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
from typing import Any

import tqdm
from absl import flags

from realm_jax import cli
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import read_questions, split_name
from realm_jax.index.bm25 import Bm25
from realm_jax.index.run_dir import RunDir
from realm_jax.serving.evaluation import RECALL_AT, answerable, evaluate_answers, evaluate_retrieval


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", None, "The run to evaluate.", flag_values=values)
  flags.DEFINE_string("questions", None, "File or TFDS set, whole or with a split; see above.", flag_values=values)
  flags.DEFINE_bool("bm25", False, "Evaluate BM25 over the corpus instead of a retriever.", flag_values=values)
  flags.DEFINE_string("corpus", None, "The passage store, with --bm25 and no --workdir.", flag_values=values)
  flags.DEFINE_bool(
    "regex", False, "Answers are regular expressions, as they always are in CuratedTREC.", flag_values=values
  )
  flags.DEFINE_bool("strict", False, "Refuse the first faulty question instead of skipping it.", flag_values=values)
  flags.DEFINE_bool(
    "answerable", False, "Leave out questions without an answer anywhere in the corpus.", flag_values=values
  )
  flags.DEFINE_bool("retrieval_only", False, "Measure recall alone.", flag_values=values)
  flags.DEFINE_string("name", None, "Name of the result [the questions' file name].", flag_values=values)
  flags.DEFINE_list("table", None, "Print the stored results of these runs as one table, and end.", flag_values=values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  if positional:
    raise ValueError(f"unexpected {positional[0]!r}")
  if values.table:
    print(format_table(values.table))
    return
  if not values.questions or not (values.workdir or (values.bm25 and values.corpus)):
    raise ValueError("give --questions with --workdir, or with --bm25 and --corpus, or --table")
  questions, regex, skipped = read_questions(values.questions, regex=values.regex, strict=values.strict)
  if skipped:
    print(f"{values.questions}: skipped {skipped}", file=sys.stderr)
  num_read = len(questions)
  from realm_jax.serving.open_qa import OpenQA  # noqa: PLC0415 after the flags, so that --help is quick

  open_qa = None if values.bm25 else OpenQA.load(values.workdir)
  store = open_qa.store if open_qa else PassageStore(values.corpus or RunDir(values.workdir).read_config()["corpus"])
  if values.answerable:
    questions = answerable(store, questions, regex=regex)
    if not questions:
      raise ValueError(f"no passage of {store.path} holds an answer to any of the {num_read} questions")
  result: dict[str, Any] = {"num_questions": len(questions), "num_questions_read": num_read}
  result |= evaluate_retrieval(open_qa or Bm25(store), store, questions, regex=regex)
  predictions = None
  if open_qa:
    result["params_step"] = open_qa.snapshot.params_step
    if open_qa.can_read and not values.retrieval_only:
      chunks = [questions[i : i + 64] for i in range(0, len(questions), 64)]
      answers = [a for c in tqdm.tqdm(chunks, desc="reading") for a in open_qa.answer([q.question for q in c])]
      result |= evaluate_answers(answers, questions, regex=regex)
      predictions = [
        {"question": q.question, "prediction": a.text, "answer": list(q.answers), **a._asdict()}
        for q, a in zip(questions, answers)
      ]
  if values.workdir:
    name = values.name or ("bm25." if values.bm25 else "") + result_name(values.questions)
    _store(RunDir(values.workdir), name, result, predictions)
  print(json.dumps(result))


def result_name(questions: str) -> str:
  """ "data/nq.dev.jsonl.gz:dev" -> "nq.dev.dev"."""
  base, split = split_name(questions)
  stem = re.sub(r"(\.(jsonl|json|tsv|csv))?(\.(gz|xz))?$", "", pathlib.Path(base).name)
  return stem if questions == base else f"{stem}.{split}"


def _store(run_dir: RunDir, name: str, result: dict, predictions: list[dict] | None) -> None:
  run_dir.evaluation.mkdir(parents=True, exist_ok=True)
  if predictions is not None:
    lines = "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions)
    run_dir.files.replace(run_dir.evaluation / f"{name}.predictions.jsonl", lines)
  run_dir.files.replace(run_dir.evaluation / f"{name}.json", json.dumps(result, indent=2) + "\n")


def _format(value: float | None) -> str:
  return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.1f}"


def _index_use(run_dir: RunDir) -> dict[str, float]:
  """Snapshots adopted, and the mean age of the one in force over all steps."""
  if not run_dir.adoption_steps():
    return {}
  lines = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
  steps = [line["step"] for line in lines]
  weights = [b - a for a, b in zip([0, *steps], steps)]
  age = sum(line["index_age"] * w for line, w in zip(lines, weights)) / sum(weights)
  return {"snapshots": len(run_dir.adoption_steps()), "mean_index_age": age}


def format_table(workdirs: list[str]) -> str:
  """All results stored in runs, a line each."""
  columns = [*(f"recall@{k}" for k in RECALL_AT), "exact_match", "f1", "snapshots", "mean_index_age"]
  rows = []
  for workdir in workdirs:
    run_dir = RunDir(workdir)
    paths = sorted(run_dir.evaluation.glob("*.json")) if run_dir.evaluation.exists() else []
    if not paths:
      raise FileNotFoundError(f"no results in {run_dir.evaluation}; make them with realm evaluate --workdir={workdir}")
    for path in paths:
      result = json.loads(path.read_text()) | ({} if path.name.startswith("bm25") else _index_use(run_dir))
      cells = [_format(result.get(c)) for c in columns]
      rows.append([f"{run_dir.path.name} {path.stem}", str(result["num_questions"]), *cells])
  header = ["run, questions", "number", *columns]
  widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
  return "\n".join(
    "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
    for row in [header, *rows]
  )


if __name__ == "__main__":
  sys.exit(cli.run(["evaluate", *sys.argv[1:]]))
