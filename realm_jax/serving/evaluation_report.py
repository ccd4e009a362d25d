"""Writes an evaluation as one HTML page that needs no other file, no script and no network."""

from __future__ import annotations

import collections
import html
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from realm_jax.serving.evaluation import KINDS
from realm_jax.serving.evaluation_charts import histogram, line_chart

_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 sans-serif; max-width: 1120px; margin: 1.5em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse }} td, th {{ padding: .15em .8em; border-bottom: 1px solid #ddd; text-align: right }}
td:first-child, th:first-child, td.note {{ text-align: left }} svg {{ margin: .4em; font-family: sans-serif }}
summary {{ cursor: pointer }} mark {{ background: #ffe08a }} .passage {{ margin: .5em 0 .5em 1.5em }}
.note {{ color: #666; font-size: 13px }} .holds {{ color: #286a28 }}
</style></head><body>
"""
_MEANING = {
  "right": "the answer matches",
  "alias": "the answer contains a right one, or is part of one",
  "not read": "a passage that was given to the reader holds an answer",
  "not retrieved": "a passage of the corpus holds an answer, none that was given to the reader does",
  "not in the corpus": "no passage holds an answer",
}

if TYPE_CHECKING:
  from realm_jax.serving.open_qa import Answer


class ShownPassage(NamedTuple):
  """A passage with the span that the reader marked in it; nothing is marked where start and end are the same."""

  title: str
  text: str
  start: int
  end: int
  has_answer: bool
  scores: str


class Case(NamedTuple):
  """A question, what became of it, and passages that were read for it."""

  question: str
  answers: Sequence[str]
  prediction: str | None  # "": no answer; None: nothing was read
  kind: str
  passages: Sequence[ShownPassage]
  num_more: int = 0  # passages that were read besides


def shown_answer(answer: Answer, *, has_answer: bool) -> ShownPassage:
  """A passage that was read."""
  scores = (
    f"probability {answer.probability:.3f}, retrieval score {answer.retrieval_score:.2f}, "
    f"reader score {answer.reader_score:.2f}"
  )
  return ShownPassage(answer.title, answer.passage, answer.start, answer.end, has_answer, scores)


def make_report(
  title: str,
  result: Mapping[str, Any],
  cases: Sequence[Case],
  metrics: bytes | None,
  *,
  over_null_B: Sequence[float] | None = None,
) -> str:
  """The page.

  Args:
    result: scores by name, with their intervals in `interval_95`, and what else the evaluation found.
    cases: all questions.
    metrics: the content of the run's metrics.jsonl, if it has one.
    over_null_B: each question's answer over the null passage, in nats, where the reader reads that.
  """
  cases_of = collections.defaultdict(list)
  for number, case in enumerate(cases, 1):
    cases_of[case.kind].append(f'<details id="q{number}"><summary>{_summary(number, case)}</summary>{_body(case)}')
  sections = [
    f'<h3 id="{kind.replace(" ", "-")}">{kind}: {len(cases_of[kind])}</h3>'
    + "".join(f"{text}</details>\n" for text in cases_of[kind])
    for kind in KINDS
  ]
  kinds = [
    f'<tr><td><a href="#{kind.replace(" ", "-")}">{kind}</a><td>{len(cases_of[kind])}'
    f"<td>{100 * len(cases_of[kind]) / len(cases):.1f} %<td class=note>{_MEANING[kind]}</tr>"
    for kind in KINDS
  ]
  reads = "exact_match" in result
  unread = "" if reads else "<p class=note>Nothing was read: all that was retrieved counts as given.</p>"
  return (
    _HEAD.format(title=html.escape(title))
    + f"<h1>{html.escape(title)}</h1><h2>Scores</h2>{_scores(result)}{_recall_chart(result)}"
    + f"<h2>Outcomes</h2><table>{''.join(kinds)}<tr><th>all<th>{len(cases)}<th><th></tr></table>{unread}"
    + (_over_null(over_null_B) if reads else "")
    + f"<h2>Training</h2>{_training(metrics)}<h2>Questions</h2>{''.join(sections)}</body></html>\n"
  )


def _scores(result: Mapping[str, Any]) -> str:
  rows = [
    f"<tr><td>{html.escape(name)}<td>{result[name]:.2f}<td>{low:.2f} to {high:.2f}</tr>"
    for name, (low, high) in result["interval_95"].items()
  ]
  facts = [
    f"<li>{html.escape(name)}: {html.escape(str(value))}</li>"
    for name, value in result.items()
    if name not in result["interval_95"] and not isinstance(value, dict) and value != ""
  ]
  return f"<table><tr><th>score<th>%<th>95 % interval</tr>{''.join(rows)}</table><ul class=note>{''.join(facts)}</ul>"


def _recall_chart(result: Mapping[str, Any]) -> str:
  lines: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
  intervals = collections.defaultdict(list)
  for name, interval in result["interval_95"].items():
    kind, at, k = name.partition("recall@")
    if at:
      rule = {"": "whole words", "token_": "DPR's tokens", "substring_": "Google's substring"}[kind]
      lines[rule].append((int(k), result[name]))
      intervals[rule].append(interval)
  return line_chart("recall@k, %", "k", lines, intervals=intervals) if lines else ""


def _over_null(over_null_B: Sequence[float] | None) -> str:
  if over_null_B is None:
    return (
      "<p class=note>No histogram of retrieval utility, question by question: this reader has not read the null "
      "passage, so that there is no likelihood without a passage to compare with (reads_null_passage).</p>"
    )
  return (
    histogram("answer over null passage, questions", "nats", over_null_B)
    + "<p class=note>Each question's log-likelihood of the span that was marked, given the passages that were read, "
    'minus that of the null passage, which says "no answer".</p>'
  )


def _training(metrics: bytes | None) -> str:
  """A curve for each number in metrics.jsonl."""
  lines, num_damaged = [], 0
  for text in (metrics or b"").splitlines():
    try:
      line = json.loads(text)
      lines.append({name: float(value) for name, value in line.items() if value is not None} | {"step": line["step"]})
    except (ValueError, TypeError, KeyError, AttributeError):
      num_damaged += 1
  if not lines:
    return "<p class=note>No metrics.jsonl in the run.</p>"
  names = dict.fromkeys(name for line in lines for name in line if name != "step")
  curves = [
    line_chart(name.replace("_", " "), "step", {name: [(line["step"], line[name]) for line in lines if name in line]})
    for name in names
  ]
  notes = f"<p class=note>{num_damaged} damaged lines of metrics.jsonl are left out.</p>" if num_damaged else ""
  if utility := [line["retrieval_utility"] for line in lines if "retrieval_utility" in line]:
    curves.append(histogram("retrieval utility, logged values", "nats", utility))
    notes += (
      "<p class=note>The histogram counts the lines of metrics.jsonl: each is the mean of the steps since the line "
      "before it.</p>"
    )
  return "".join(curves) + notes


def _summary(number: int, case: Case) -> str:
  answer = "" if case.prediction is None else f" → <b>{html.escape(case.prediction) or '<i>no answer</i>'}</b>"
  return f"{number}. {html.escape(case.question)}{answer}"


def _body(case: Case) -> str:
  answers = "; ".join(map(html.escape, case.answers))
  more = f"<p class=note>{case.num_more} more passages were read</p>" if case.num_more else ""
  return f"<p class=note>right: {answers}</p>{''.join(map(_passage, case.passages))}{more}"


def _passage(passage: ShownPassage) -> str:
  before, span, after = (
    html.escape(piece)
    for piece in (passage.text[: passage.start], passage.text[passage.start : passage.end], passage.text[passage.end :])
  )
  marked = f"{before}<mark>{span}</mark>{after}" if span else before + after
  holds = ' <span class="holds">holds an answer</span>' if passage.has_answer else ""
  return (
    f'<div class="passage"><b>{html.escape(passage.title)}</b> '
    f'<span class="note">{html.escape(passage.scores)}</span>{holds}<br>{marked}</div>'
  )
