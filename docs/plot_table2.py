"""Prints the paper's Table 2 in small and plots its Figure 4: python docs/plot_table2.py RUNS OUT.svg

RUNS is what launch/table2.sh wrote. A run that has not been evaluated is left out; the table says how many seeds a mean
is of.
"""

import json
import pathlib
import re
import statistics
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "realm"  # the same run gives the same file

import matplotlib.pyplot as plt
import numpy as np

# Row of launch/table2.py: its name, and the pre-training whose retriever it has.
ROWS = {
  "realm": ("REALM", "realm"),
  "realm_retriever": ("REALM's retriever, baseline reader", "realm"),
  "realm_reader": ("baseline retriever, REALM's reader", "start"),
  "baseline": ("baseline", "start"),
  "random_token": ("random token masks", "random_token"),
  "random_span": ("random span masks", "random_span"),
  "stale": ("index 30 times staler", "stale"),
  "frozen": ("REALM with its retriever frozen (not in the paper)", "frozen"),
}
MASKINGS = {"realm": "salient span", "random_span": "random span", "random_token": "random token"}


def results(runs: pathlib.Path, pattern: str, score: str) -> list[float]:
  """A score of all evaluated runs whose names match."""
  paths = (path for path in sorted(runs.glob("*/evaluation/dev.json")) if re.fullmatch(pattern, path.parts[-3]))
  return [json.loads(path.read_text())[score] for path in paths]


def describe(values: list[float]) -> str:
  """Mean, sample standard deviation over the seeds, and their number."""
  if not values:
    return "-"
  spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
  return f"{statistics.mean(values):.1f}{spread} ({len(values)})"


def table(runs: pathlib.Path) -> str:
  lines = ["| | exact match | F1 | recall@5 before fine-tuning |", "|---|---|---|---|"]
  for row, (name, retriever) in ROWS.items():
    finetuned = rf"{row}\.finetune\.\d+"
    recall = results(runs, retriever if retriever == "start" else rf"{retriever}\.\d+", "recall@5")
    cells = [describe(results(runs, finetuned, score)) for score in ("exact_match", "f1")]
    lines.append(f"| {name} | {cells[0]} | {cells[1]} | {describe(recall)} |")
  return "\n".join(lines)


def plot(runs: pathlib.Path, output: str) -> None:
  figure, axis = plt.subplots(figsize=(6, 4))
  for name, label in MASKINGS.items():
    paths = [path.parent / "metrics.jsonl" for path in sorted(runs.glob(f"{name}.[0-9]*/DONE"))]
    if not paths:
      continue
    runs_lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    step = [line["step"] for line in runs_lines[0]]
    utility = np.array([[line["retrieval_utility"] for line in lines] for lines in runs_lines])
    axis.plot(step, utility.mean(0), label=f"{label} masking")
    axis.fill_between(step, utility.min(0), utility.max(0), alpha=0.2, linewidth=0)
  axis.axhline(0, color="black", linewidth=0.6)
  axis.set_xlabel("pre-training steps")
  axis.set_ylabel("retrieval utility, nats")
  axis.grid(alpha=0.3)
  axis.legend()
  figure.tight_layout()
  figure.savefig(output, metadata={"Date": None})


def main(runs: str, output: str) -> None:
  print(table(pathlib.Path(runs)))
  plot(pathlib.Path(runs), output)


if __name__ == "__main__":
  main(*sys.argv[1:])
