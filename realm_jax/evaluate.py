"""Evaluates a run on questions: recall@k, and for a fine-tuned run exact match and F1, each with its interval.

  realm evaluate --workdir=runs/finetune --questions=dev.jsonl --report=report.html
  realm evaluate --workdir=runs/finetune --questions=dev.jsonl --every_checkpoint
  realm evaluate --workdir=runs/finetune --questions=test.jsonl --checkpoint=best
  realm evaluate --workdir=runs/finetune --questions=dev.jsonl --bm25
  realm evaluate --workdir=runs/finetune --questions=dev.jsonl --retriever=runs/other
  realm evaluate --workdir=runs/pretrain --questions=dev.jsonl --closed_book
  realm evaluate --bm25 --corpus=corpora/mine --questions=dev.jsonl --recall_at=1,5,10,20,50,100
  realm evaluate --predictions=mine.jsonl --questions=dev.jsonl --compare=theirs.jsonl
  realm evaluate --table=runs/ict,runs/pretrain,runs/finetune

--questions takes a file: .jsonl with {"question": ..., "answer": [...]} a line, or DPR's .json, .tsv or .csv (and .gz
or .xz of these); or a set of TFDS: nq_open, web_questions, trivia_qa or squad_open. A split may follow: FILE:dev is the
tenth of a file that Google's hash holds out, FILE:train the rest, nq_open:test TFDS's own test questions. A file whose
name has CuratedTREC in it holds regular expressions. Scores, predictions, DPR's json and TREC's files go to the run's
evaluation/ directory. docs/evaluation.md defines all of them.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
from typing import Any

import tqdm
from absl import flags
from etils import epath

from realm_jax import cli
from realm_jax.data.files import write_whole
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import Question, read_questions, split_name
from realm_jax.index.bm25 import Bm25
from realm_jax.index.run_dir import RunDir
from realm_jax.serving.evaluation import (
  KINDS,
  RECALL_AT,
  Retrieves,
  answer_scores,
  answerable,
  longer_than_any_span,
  summarize,
)
from realm_jax.serving.evaluation_files import dpr_json, predictions_jsonl, trec_qrels, trec_run
from realm_jax.serving.evaluation_predictions import read_predictions
from realm_jax.serving.evaluation_report import make_report
from realm_jax.serving.evaluation_run import (
  Evaluated,
  answers_over_null,
  evaluate_run,
  report_cases,
  with_closed_book,
)
from realm_jax.serving.evaluation_summary import describe, format_table


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", None, "The run to evaluate.", flag_values=values)
  flags.DEFINE_string("questions", None, "File or TFDS set, whole or with a split; see above.", flag_values=values)
  flags.DEFINE_string("checkpoint", None, "Its step, or best [the newest].", flag_values=values)
  flags.DEFINE_bool(
    "every_checkpoint", False, "Find the kept checkpoint with the best exact match first, and evaluate that.",
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_bool("bm25", False, "Take BM25's passages; a fine-tuned run's reader reads them.", flag_values=values)
  flags.DEFINE_string(
    "retriever", None, "Take the passages of this run's retriever; that of --workdir reads them.", flag_values=values
  )
  flags.DEFINE_bool(
    "closed_book", False, "Also let the reader fill in answers without passages, by its masked-word head.",
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_string("corpus", None, "The passage store, where there is no --workdir.", flag_values=values)
  flags.DEFINE_list("recall_at", [str(k) for k in RECALL_AT], "The k of recall@k.", flag_values=values)
  flags.DEFINE_bool(
    "regex", False, "Answers are regular expressions, as they always are in CuratedTREC.", flag_values=values
  )
  flags.DEFINE_bool("strict", False, "Refuse the first faulty question instead of skipping it.", flag_values=values)
  flags.DEFINE_bool(
    "answerable", False, "Leave out questions without an answer anywhere in the corpus.", flag_values=values
  )
  flags.DEFINE_float(
    "no_answer_above", None, "Give no answer where the null passage is more probable than this [never].", 0.0, 1.0,
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_integer(
    "num_answers", 1, "Answers to a question in the file of predictions, each from another passage; the first counts.",
    1, flag_values=values,
  )  # fmt: skip
  flags.DEFINE_integer(
    "num_passages", None, "Passages to read for each question [the config's num_inference_passages].", 1,
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_bool("retrieval_only", False, "Measure recall alone.", flag_values=values)
  flags.DEFINE_string(
    "predictions", None, "Score these predictions, a jsonl file, without a model.", flag_values=values
  )
  flags.DEFINE_string("compare", None, "Predictions to compare with, question by question.", flag_values=values)
  flags.DEFINE_string("report", None, "Write an HTML page with all questions here.", flag_values=values)
  flags.DEFINE_string("name", None, "Name of the result [the questions' file name].", flag_values=values)
  flags.DEFINE_list("table", None, "Print the stored results of these runs as one table, and end.", flag_values=values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  if positional:
    raise ValueError(f"unexpected {positional[0]!r}")
  if values.table:
    print(format_table(values.table))
    return
  _check(values)
  questions, regex, skipped = read_questions(values.questions, regex=values.regex, strict=values.strict)
  if skipped:
    print(f"{values.questions}: skipped {skipped}", file=sys.stderr)
  result: dict[str, Any] = {"num_questions": len(questions), "num_questions_read": len(questions), "skipped": skipped}
  run_dir = RunDir(values.workdir) if values.workdir else None
  config = run_dir.read_config() if run_dir else {}
  corpus = values.corpus or config.get("corpus")
  store = PassageStore(corpus) if corpus else None
  can_read = config.get("stage") == "finetune"
  reads = can_read and not values.retrieval_only
  if values.no_answer_above is not None and not reads:
    raise ValueError("--no_answer_above is for answers: give a fine-tuned run, without --retrieval_only")
  if values.num_passages and not reads:
    raise ValueError("--num_passages are for a reader: give a fine-tuned run, without --retrieval_only")
  if values.compare and not (reads or values.predictions):
    raise ValueError("--compare needs answers: give a fine-tuned run without --retrieval_only, or --predictions")
  if store and values.answerable:
    questions = _only_answerable(store, questions, regex)
    result["num_questions"] = len(questions)
  if store and can_read and not regex:
    too_long_B = longer_than_any_span(questions, store.vocabulary(), config["model"]["max_span_width"])
    result["num_longer_than_any_span"] = int(too_long_B.sum())
  # Before the run is evaluated, which may take long: a faulty file is told of at once.
  compared = read_predictions(values.compare, questions) if values.compare else None
  checkpoint = values.checkpoint
  if values.every_checkpoint:
    if not (run_dir and reads):
      raise ValueError("--every_checkpoint compares answers: give a fine-tuned run, without --retrieval_only")
    result["exact_match_of_step"] = choose_checkpoint(
      run_dir, questions, values.questions, regex=regex, num_passages=values.num_passages
    )
    checkpoint = "best"
  evaluated = None
  if values.predictions:
    predictions, faults = read_predictions(values.predictions, questions)
    scores = answer_scores(predictions, questions, regex=regex)
    is_answerable_B = answerable(store, questions, regex=regex) if store else None
    result |= faults
  else:
    assert store  # _check has seen to it
    evaluated, facts = _evaluate(values, checkpoint, store, questions, regex=regex, reads=reads)
    scores, is_answerable_B = evaluated.scores, evaluated.is_answerable_B
    result |= facts
  if is_answerable_B is not None:
    result["num_answerable"] = int(is_answerable_B.sum())
  result |= summarize(scores)
  if compared:
    their_scores = answer_scores(compared[0], questions, regex=regex)
    difference = summarize({name: scores[name] - score for name, score in their_scores.items()})
    result["compared"] = compared[1] | {"difference": difference}
  if evaluated and store:
    _write(values, run_dir, result, store, questions, evaluated)
  print(describe(result) if sys.stdout.isatty() else json.dumps(result))


def _check(values: flags.FlagValues) -> None:
  """Refuses flags that don't go together."""
  if not values.questions or not (values.predictions or values.workdir or (values.bm25 and values.corpus)):
    raise ValueError(
      "give --questions with --workdir, with --bm25 and --corpus, or with --predictions; or give --table alone"
    )
  if values.workdir and values.corpus:
    raise ValueError("a run is evaluated over its own corpus: give --workdir or --corpus")
  if values.every_checkpoint and (values.checkpoint or values.predictions or values.bm25 or values.retriever):
    raise ValueError("--every_checkpoint takes them all: leave out --checkpoint, --predictions, --bm25 and --retriever")
  if values.predictions and (values.report or values.bm25 or values.retriever or values.retrieval_only):
    raise ValueError(
      "--predictions are scored without passages: leave out --report, --bm25, --retriever and --retrieval_only"
    )
  if values.retriever and (values.bm25 or not values.workdir):
    raise ValueError("--retriever finds passages for the reader of --workdir: give that, and leave out --bm25")
  if values.predictions and values.no_answer_above is not None:
    raise ValueError("--predictions are scored as they are, an empty one as no answer: leave out --no_answer_above")
  if values.closed_book and (values.predictions or not values.workdir):
    raise ValueError("--closed_book needs a reader: give a pre-trained or fine-tuned --workdir, without --predictions")
  if values.answerable and not (values.corpus or values.workdir):
    raise ValueError("--answerable needs the corpus: give --corpus or --workdir")
  if not all(k.isdecimal() and int(k) > 0 for k in values.recall_at):
    raise ValueError(f"--recall_at={','.join(values.recall_at)}: give numbers of passages, as 1,5,20")
  if values.report:
    _check_report(values.report)


def _check_report(report: str) -> None:
  """Whether a page can be written there, before the run is evaluated, which may take hours."""
  path = epath.Path(report)
  if report.endswith("/") or path.is_dir():
    raise ValueError(f"--report={report} is a directory; give the page a name in it, --report={path / 'report.html'}")
  if "://" in report:
    return
  parent = next(p for p in pathlib.Path(report).absolute().parents if p.exists())
  if not parent.is_dir() or not os.access(parent, os.W_OK):
    why = "can't be written to" if parent.is_dir() else "is no directory"
    raise ValueError(f"--report={report}: {parent} {why}; give another path")


def _only_answerable(store: PassageStore, questions: list[Question], regex: bool) -> list[Question]:
  kept = [q for q, is_in in zip(questions, answerable(store, questions, regex=regex)) if is_in]
  if not kept:
    raise ValueError(f"no passage of {store.path} holds an answer to any of the {len(questions)} questions")
  return kept


def choose_checkpoint(
  run_dir: RunDir, questions: list[Question], name: str, *, regex: bool = False, num_passages: int | None = None
) -> dict[int, float]:
  """Lets every kept checkpoint answer, and writes the run's best.json: the earliest one with the best exact match.

  Args:
    name: what the questions are called in best.json.
    num_passages: as `OpenQA.load` takes it.

  Returns:
    Exact match of each step, in percent.
  """
  from realm_jax.serving.open_qa import OpenQA  # noqa: PLC0415 so that --help is quick

  exact_match = {}
  for step in run_dir.checkpoint_steps():
    open_qa = OpenQA.load(run_dir.path, str(step), num_passages=num_passages)
    predictions = [answer.text for answer in open_qa.answer([q.question for q in questions])]
    exact_match[step] = summarize(answer_scores(predictions, questions, regex=regex))["exact_match"]
    print(f"checkpoint {step}: exact match {exact_match[step]}", file=sys.stderr)
  best = max(exact_match, key=lambda step: exact_match[step])
  content = {
    "step": best, "exact_match_of_step": exact_match, "questions": name, "num_questions": len(questions),
    "num_passages": open_qa.config.num_passages,
  }  # fmt: skip
  run_dir.files.replace(run_dir.best, json.dumps(content, indent=2) + "\n")
  return exact_match


def _evaluate(
    values: flags.FlagValues, checkpoint: str | None, store: PassageStore, questions: list[Question], *, regex: bool,
    reads: bool,
) -> tuple[Evaluated, dict[str, Any]]:  # fmt: skip
  """What `evaluate_run` finds, and the facts of it that the result names."""
  facts: dict[str, Any] = {}
  open_qa = None
  if reads or values.closed_book or not values.bm25:
    from realm_jax.serving.open_qa import OpenQA  # noqa: PLC0415 so that --help is quick

    open_qa = OpenQA.load(values.workdir, checkpoint, num_passages=values.num_passages)
    open_qa.check_no_answer(values.no_answer_above)
    if reads:
      open_qa.warn_of_cut_passages()
    facts |= {"params_step": open_qa.snapshot.params_step, "checkpoint": open_qa.step}
  retriever: Retrieves = open_qa if open_qa and not values.bm25 else Bm25(store)
  if values.retriever:
    retriever = _other_retriever(values.retriever, store)
  recall_at = sorted({int(k) for k in values.recall_at})
  reader = open_qa if reads else None
  evaluated = evaluate_run(
      retriever, reader, store, questions, recall_at=recall_at, regex=regex, no_answer_above=values.no_answer_above,
      num_kept=values.num_answers,
  )  # fmt: skip
  facts |= {"outcomes": {kind: evaluated.kinds.count(kind) for kind in KINDS}}
  if open_qa and values.closed_book:
    filled_in = tqdm.tqdm(open_qa.closed_book_answers([q.question for q in questions]), "closed book", len(questions))
    evaluated = with_closed_book(evaluated, list(filled_in), questions, regex=regex)
  return evaluated, facts | ({"num_passages": evaluated.num_read, "selective": evaluated.selective} if reader else {})


def _other_retriever(workdir: str, store: PassageStore) -> Retrieves:
  from realm_jax.serving.open_qa import OpenQA  # noqa: PLC0415 so that --help is quick

  other = OpenQA.load(workdir, None)
  if other.store.content_digest != store.content_digest:
    raise ValueError(f"{workdir} has the corpus {other.store.path}, --workdir {store.path}; they must be the same")
  return other


def result_name(questions: str) -> str:
  """ "data/nq.dev.jsonl.gz:dev" -> "nq.dev.dev"."""
  base, split = split_name(questions)
  stem = re.sub(r"(\.(jsonl|json|tsv|csv))?(\.(gz|xz))?$", "", pathlib.Path(base).name)
  return stem if questions == base else f"{stem}.{split}"


def _write(
    values: flags.FlagValues, run_dir: RunDir | None, result: dict, store: PassageStore, questions: list[Question],
    evaluated: Evaluated,
) -> None:  # fmt: skip
  """The run's files, where there is a run, and the report, where it is asked for; says where they are."""
  other = "bm25." if values.bm25 else f"{RunDir(values.retriever).path.name}." if values.retriever else ""
  more = f"{values.num_passages}passages." if values.num_passages else ""
  name = values.name or other + more + result_name(values.questions)
  if run_dir:
    contents = {
      "json": json.dumps(result, indent=2) + "\n",
      "dpr.json": dpr_json(store, questions, evaluated.retrieved),
      "trec": trec_run(store, evaluated.retrieved, f"{run_dir.path.name}.{name}"),
      "qrels": trec_qrels(store, evaluated.retrieved),
    }
    if evaluated.answers and evaluated.predictions:
      best = [a[: values.num_answers] for a in evaluated.answers]
      contents["predictions.jsonl"] = predictions_jsonl(questions, evaluated.predictions, best)
    if evaluated.closed_book:
      contents["closed_book.jsonl"] = predictions_jsonl(questions, evaluated.closed_book)
    run_dir.evaluation.mkdir(parents=True, exist_ok=True)
    for suffix, content in contents.items():
      run_dir.files.replace(run_dir.evaluation / f"{name}.{suffix}", content)
    print(f"{run_dir.evaluation} has {', '.join(f'{name}.{suffix}' for suffix in contents)}", file=sys.stderr)
  if values.report:
    metrics = run_dir.files.read(run_dir.metrics) if run_dir else None
    cases = report_cases(evaluated, store, questions)
    title = f"{name}, {values.workdir or values.corpus}"
    page = make_report(title, result, cases, metrics, over_null_B=answers_over_null(evaluated))
    write_whole(epath.Path(values.report), page.encode())
    print(f"{values.report} shows all questions", file=sys.stderr)


if __name__ == "__main__":
  sys.exit(cli.run(["evaluate", *sys.argv[1:]]))
