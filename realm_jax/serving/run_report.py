"""The state of a run directory: what is there, what it weighs, and what is missing."""

from __future__ import annotations

import json
from typing import Any

from realm_jax.config import STAGES, stored_config
from realm_jax.data.passages import PassageStore
from realm_jax.index.files import sizes_below
from realm_jax.index.journal import Journal, read_journal
from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import SnapshotError, read_manifest


def read_report(run_dir: RunDir) -> dict[str, Any]:
  """All that can be said of a run without reading its arrays, as JSON has it; sizes are in bytes.

  It may be taken while trainer and indexer work: what they delete meanwhile is as if it had gone before.

  Raises:
    FileNotFoundError: no config.json.
  """
  config = stored_config(run_dir.read_config())
  sizes = sizes_below(run_dir.path)
  checkpoints, exports = run_dir.checkpoint_steps(), run_dir.export_steps()
  journal = read_journal(run_dir)
  last_metrics = _last_metrics(run_dir)
  steps_done = max([*checkpoints, last_metrics.get("step", 0)], default=0)
  is_frozen = config.stage == "finetune" and not config.trains_passage_tower  # then no index of it is ever stale
  report: dict[str, Any] = {
    "path": str(run_dir.path),
    "stage": config.stage,
    "steps_done": steps_done,
    "num_steps": config.num_steps,
    "is_done": run_dir.is_done(),
    "corpus": config.corpus,
    "checkpoints": _with_sizes(run_dir.checkpoints, checkpoints, run_dir, sizes),
    "exports": _with_sizes(run_dir.retriever, exports, run_dir, sizes),
    "snapshots": [
      _snapshot(run_dir, v, None if is_frozen else steps_done, journal, checkpoints, sizes)
      for v in run_dir.snapshot_numbers()
    ],
    "adoptions": [{"step": step, "version": entry.version} for step, entry in sorted(journal.entries.items())],
    "damaged": [*(f"adoptions/{step}: {why}" for step, why in journal.damaged.items()),
                *(f"damaged/{name}" for name in run_dir.files.names(run_dir.damaged))],
    "last_metrics": last_metrics,
    "num_bytes": sum(sizes.values()),
  }  # fmt: skip
  return report | {"missing": _missing(run_dir, report)}


def describe(report: dict[str, Any]) -> str:
  """The report for people."""
  lines = [
    f"{report['path']}: {report['stage']}, {report['steps_done']} of {report['num_steps']} steps, "
    f"{'done' if report['is_done'] else 'not done'}, {_size(report['num_bytes'])}"
  ]
  for name in ("checkpoints", "exports"):
    lines += [f"{name}: " + (", ".join(f"{c['step']} ({_size(c['num_bytes'])})" for c in report[name]) or "none")]
  lines += ["snapshots:" if report["snapshots"] else "snapshots: none"]
  for s in report["snapshots"]:
    line = f"  {s['version']}: {s['state']}, {_size(s['num_bytes'])}"
    if "params_step" in s:
      line += f", {s['searcher']}, parameters of step {s['params_step']}, {s['age']} steps old"
    if s["adopted_by"]:
      line += f", adopted by checkpoint {', '.join(map(str, s['adopted_by']))}"
    lines.append(line)
  adoptions = [f"{a['version']} from step {a['step']}" for a in report["adoptions"]]
  lines += ["adopted: " + (", ".join(adoptions) or "none")]
  metrics = [f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in report["last_metrics"].items()]
  lines += ["metrics: " + (", ".join(metrics) or "none")]
  lines += [f"damaged: {name}" for name in report["damaged"]]
  lines += [f"missing: {m['what']}\n         {m['command']}" for m in report["missing"]]
  return "\n".join(lines)


def _with_sizes(directory, steps: list[int], run_dir: RunDir, sizes: dict[str, int]) -> list[dict[str, int]]:
  return [{"step": step, "num_bytes": _below(directory / str(step), run_dir, sizes)} for step in steps]


def _below(path, run_dir: RunDir, sizes: dict[str, int]) -> int:
  prefix = f"{path.relative_to(run_dir.path).as_posix()}/"
  return sum(size for name, size in sizes.items() if name.startswith(prefix))


def _snapshot(
  run_dir: RunDir, version: int, steps_done: int | None, journal: Journal, checkpoints: list[int], sizes: dict[str, int]
) -> dict[str, Any]:
  in_force = {step: max((s for s in journal.entries if s <= step), default=None) for step in checkpoints}
  found: dict[str, Any] = {
    "version": version,
    "state": "being deleted" if run_dir.files.read(run_dir.snapshot_deleting(version)) is not None else "committed",
    "num_bytes": _below(run_dir.snapshot(version), run_dir, sizes),
    # What a trainer that resumes from the checkpoint takes up again: what the indexer must not delete.
    "adopted_by": [c for c, step in in_force.items() if step is not None and journal.entries[step].version == version],
  }
  if run_dir.files.read(run_dir.snapshot_commit(version)) is None:
    return found | {"state": "not committed"}
  try:
    manifest = read_manifest(run_dir, version)
  except SnapshotError as error:
    return found | {"state": f"damaged ({error})"}
  step = manifest["params_step"]
  age = 0 if steps_done is None else steps_done - step
  return found | {"params_step": step, "age": age, "searcher": manifest["searcher"]}


def _last_metrics(run_dir: RunDir) -> dict[str, Any]:
  for line in reversed((run_dir.files.read(run_dir.metrics) or b"").splitlines()):
    try:
      return json.loads(line)
    except ValueError:  # half written
      continue
  return {}


def _missing(run_dir: RunDir, report: dict[str, Any]) -> list[dict[str, str]]:
  """What is missing, with the command that makes it."""
  missing = []
  try:
    PassageStore(report["corpus"])
  except (OSError, ValueError) as error:
    missing.append((str(error), f"realm build_corpus --input=FILE --output={report['corpus']}"))
  if not report["is_done"]:
    resumes = max((c["step"] for c in report["checkpoints"]), default=0)
    missing.append((
      f"the steps {resumes} to {report['num_steps']}, unless a trainer makes them now",
      f"realm train --workdir={run_dir.path} --config=...  with the run's own flags",
    ))  # fmt: skip
  if "retriever" in STAGES[report["stage"]] and report["exports"]:
    newest_export = report["exports"][-1]["step"]
    if not any(s.get("params_step", -1) >= newest_export for s in report["snapshots"]):
      missing.append((
        f"an index with the parameters of step {newest_export}, unless an indexer makes it now",
        f"realm refresh_index --workdir={run_dir.path} --once",
      ))  # fmt: skip
  return [{"what": what, "command": command} for what, command in missing]


def _size(num_bytes: int) -> str:
  power = min(len(f"{num_bytes}") - 1, 12) // 3
  return f"{num_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
