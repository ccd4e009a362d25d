"""Results of evaluations, for people: one in lines, those of several runs as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from realm_jax.index.run_dir import RunDir
from realm_jax.serving.evaluation import RECALL_AT


def describe(result: Mapping[str, Any]) -> str:
  """What `realm evaluate` found: facts, and each score with its interval, in percent."""
  compared = dict(result.get("compared", {}))
  difference = compared.pop("difference", {})
  facts = {k: v for k, v in result.items() if k not in {*result["interval_95"], "interval_95", "compared"}}
  parts = {k: v for k, v in facts.items() if isinstance(v, Mapping)} | {"compared": compared}
  lines = [_listed({k: v for k, v in facts.items() if k not in parts})]
  lines += [f"{name}: {_listed(part)}" for name, part in parts.items() if part]
  rows = [["", "percent", "95 % interval", *(["difference", "95 % interval"] if difference else [])]]
  for name, interval in result["interval_95"].items():
    rows.append([name, f"{result[name]:.1f}", _interval(interval)])
    if name in difference:
      rows[-1] += [f"{difference[name]:+.1f}", _interval(difference["interval_95"][name])]
  return "\n".join([*lines, "", *_aligned(rows)])


def _listed(values: Mapping[str, Any]) -> str:
  """{"a": 1, "b": {"25": 2.0}, "c": None} -> "a 1, b@25 2.0"."""
  flat = {
    f"{name}@{k}" if k else name: v
    for name, value in values.items()
    for k, v in (value.items() if isinstance(value, Mapping) else [("", value)])
  }
  return ", ".join(f"{name} {value}" for name, value in flat.items() if value not in (None, ""))


def _interval(interval: Sequence[float]) -> str:
  return f"{interval[0]:.1f} to {interval[1]:.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """The first column to the left, the others to the right; a row may be shorter than others."""
  widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
  return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _format(value: Any) -> str:
  return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def _index_use(run_dir: RunDir) -> dict[str, float]:
  """Snapshots adopted, and the mean age of the one in force over all steps."""
  if not run_dir.adoption_steps():
    return {}
  lines = [line for line in map(_metrics, (run_dir.files.read(run_dir.metrics) or b"").splitlines()) if line]
  if not lines:
    return {}
  steps = [line["step"] for line in lines]
  weights = [b - a for a, b in zip([0, *steps], steps)]
  age = sum(line["index_age"] * w for line, w in zip(lines, weights)) / sum(weights)
  return {"snapshots": len(run_dir.adoption_steps()), "mean_index_age": age}


def _metrics(line: bytes) -> dict[str, float]:
  """Of a step with an index; empty where the line is being written, or was when the run was killed."""
  try:
    metrics = json.loads(line)
  except ValueError:
    return {}
  return metrics if "index_age" in metrics else {}


def format_table(workdirs: list[str]) -> str:
  """All results stored in runs, a line each."""
  columns = [*(f"recall@{k}" for k in RECALL_AT), "exact_match", "f1", "snapshots", "mean_index_age"]
  rows = []
  for workdir in workdirs:
    run_dir = RunDir(workdir)
    names = [n for n in run_dir.files.names(run_dir.evaluation) if n.endswith(".json") and not n.endswith(".dpr.json")]
    paths = [run_dir.evaluation / n for n in names]
    if not paths:
      raise FileNotFoundError(f"no results in {run_dir.evaluation}; make them with realm evaluate --workdir={workdir}")
    for path in paths:
      result = json.loads(path.read_text()) | ({} if path.name.startswith("bm25") else _index_use(run_dir))
      cells = [_format(result.get(c)) for c in columns]
      rows.append([f"{run_dir.path.name} {path.stem}", str(result["num_questions"]), *cells])
  return "\n".join(_aligned([["run, questions", "number", *columns], *rows]))
