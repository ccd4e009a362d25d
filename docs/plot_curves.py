"""Plots loss, retrieval utility and index age of a run: python docs/plot_curves.py RUN OUT.svg"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "realm"  # the same run gives the same file

import matplotlib.pyplot as plt


def main(run: str, output: str) -> None:
  lines = [json.loads(line) for line in (pathlib.Path(run) / "metrics.jsonl").read_text().splitlines()]
  names = [name for name in ("loss", "retrieval_utility", "null_mass", "index_age") if name in lines[0]]
  figure, axes = plt.subplots(len(names), 1, sharex=True, figsize=(7, 1.8 * len(names)))
  for axis, name in zip(axes, names):
    axis.plot([line["step"] for line in lines], [line[name] for line in lines])
    axis.set_ylabel(name.replace("_", " "))
    axis.grid(alpha=0.3)
  axes[names.index("retrieval_utility")].axhline(0, color="black", linewidth=0.6)
  axes[-1].set_xlabel("step")
  figure.tight_layout()
  figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
  main(*sys.argv[1:])
