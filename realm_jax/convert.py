"""Converts weights: HF's directories or hub ids and TensorFlow checkpoints to runs, and runs to HF's safetensors.

  realm convert --input=google/realm-cc-news-pretrained-openqa --corpus=corpora/mine --to=realm --output=runs/realm
  realm convert --input=cc_news_pretrained/embedder,cc_news_pretrained/bert --to=hf --output=realm-hf
  realm convert --input=runs/finetune --to=hf --output=mine-hf

Several inputs become one model: the first tower is the query tower, a second one the passage tower. A model that is
only to be trained on needs no conversion: give it to realm train as --config.init. docs/checkpoints.md says more.
"""

from __future__ import annotations

import pathlib
import shutil
import sys
import uuid

import ml_dtypes
import numpy as np
from absl import flags

from realm_jax import cli
from realm_jax.config import stored_config
from realm_jax.data.passages import PassageStore
from realm_jax.index import snapshot as snapshots
from realm_jax.index.digest import tree_digest
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir
from realm_jax.index.tower_export import TowerWriter
from realm_jax.model.retriever import passage_tower_params
from realm_jax.training.checkpoint import Checkpoints
from realm_jax.weights import names
from realm_jax.weights.compact import compact
from realm_jax.weights.contents import Embeddings, Weights, from_tree, with_shared_towers
from realm_jax.weights.hf_export import write_hf
from realm_jax.weights.recognition import BLOCK_EMB
from realm_jax.weights.run_config import run_config
from realm_jax.weights.source import merge, read_weights

# Fields of the config on how passages are read.
_READING = ("joint_length", "num_passages", "num_inference_passages", "reads_null_passage")
_ROWS = 1 << 16  # passages' embeddings read at once


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_list(
    "input", None, "Run directory, HF directory or hub id, TensorFlow checkpoint; several by commas.",
    required=True, flag_values=values,
  )  # fmt: skip
  flags.DEFINE_string("output", None, "Directory to write; it must not exist.", required=True, flag_values=values)
  flags.DEFINE_enum(
    "to", None, ["realm", "hf", "compact"], "What to write; compact is hf in a quarter of the size, for --config.init.",
    required=True, flag_values=values,
  )  # fmt: skip
  flags.DEFINE_string("corpus", None, "With --to=realm: the passage store of the run.", flag_values=values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  if positional:
    raise ValueError(f"unexpected {positional[0]!r}")
  if values.to == "realm" and not values.corpus:
    raise ValueError("a run belongs to a corpus: give --corpus, built with the model's vocabulary (--vocab)")
  output = pathlib.Path(values.output).expanduser().resolve()
  if output.exists():
    raise FileExistsError(f"{output} exists; choose another --output or remove it")
  store = PassageStore(values.corpus) if values.to == "realm" else None
  weights = merge([_read(name, store) for name in values.input])
  scratch = output.with_name(f".{output.name}.writing-{uuid.uuid4().hex[:8]}")
  scratch.mkdir(parents=True)
  try:
    if store is None:
      weights = with_shared_towers(weights)._replace(block_emb=None) if values.to == "compact" else weights
      classes = write_hf(scratch, weights)
      if values.to == "compact":
        for below in classes:
          compact(scratch / below)
      written = [f"{pathlib.Path(values.output, below)}: {name}" for below, name in classes.items()]
    else:
      weights = _without_foreign_index(weights, store)
      written = [f"{values.output}: {_write_run(RunDir(scratch), weights, store, values.output)}"]
    scratch.rename(output)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  print("\n".join([*_describe(weights), *written]))


def _read(name: str, target: PassageStore | None) -> Weights:
  run_dir = RunDir(name)
  if run_dir.checkpoints.exists():
    return _read_run(name, run_dir, target)
  return read_weights(name)


def _read_run(name: str, run_dir: RunDir, target: PassageStore | None) -> Weights:
  """A run's newest checkpoint, with its index if that was made by the same parameters, and of the target if there is
  one."""
  config = stored_config(run_dir.read_config())
  step, params = restore_params(run_dir)
  store = PassageStore(config.corpus)
  weights = from_tree(f"{name} (step {step})", params)
  digest = tree_digest(passage_tower_params(params["retriever"])) if "retriever" in params else None
  model = config.model.to_dict() | {"vocab_size": store.description["vocabulary_size"]}
  if names.READER not in weights.parts:
    model = {field: value for field, value in model.items() if "span" not in field}
  versions = run_dir.snapshot_versions()[-1:]
  is_current = versions and snapshots.read_manifest(run_dir, versions[0])["params_digest"] == digest
  is_current = is_current and (target is None or target.content_digest == store.content_digest)
  return weights._replace(
    model=model,
    block_emb=_block_emb(snapshots.load(run_dir, versions[0], store)) if is_current else None,
    vocabulary=store.vocabulary(),
    stage=config.stage,
    reading={field: config[field] for field in _READING},
  )


def _block_emb(snapshot: snapshots.Snapshot) -> Embeddings:
  emb_ND = snapshot.passage_emb_ND
  return Embeddings(emb_ND.shape, lambda rows: emb_ND[rows].astype(np.float32))


def _without_foreign_index(weights: Weights, store: PassageStore) -> Weights:
  if weights.block_emb is None or weights.block_emb.shape[0] in (0, len(store)):
    return weights
  why = f"{weights.block_emb.shape[0]:,} embeddings are not of the corpus' {len(store):,} passages"
  return weights._replace(block_emb=None, unused=weights.unused | {BLOCK_EMB: why})


def _write_run(run_dir: RunDir, weights: Weights, store: PassageStore, output: str) -> str:
  """A run whose training took place elsewhere; returns what it is. It will be moved to `output`."""
  config = run_config(weights, store)
  params = weights.tree()
  run_dir.write_config(config.to_dict())
  checkpoints = Checkpoints(run_dir, keep=1)
  checkpoints.save_params(0, params)
  checkpoints.close()
  tower_params = passage_tower_params(params["retriever"])
  tower_writer = TowerWriter(run_dir)
  tower_writer.write(0, tower_params)
  tower_writer.close()
  run_dir.done.write_text("done\n")
  if not weights.block_emb or not weights.block_emb.shape[0]:
    refresh = f"realm refresh_index --once --workdir={output}"
    return f"a run of the stage {config.stage} without an index; make one with {refresh}"
  emb_ND = np.empty(weights.block_emb.shape, ml_dtypes.bfloat16)
  for begin in range(0, len(emb_ND), _ROWS):
    emb_ND[begin : begin + _ROWS] = weights.block_emb.read(slice(begin, begin + _ROWS))
  snapshots.publish(run_dir, emb_ND, store, params_step=0, params_digest=tree_digest(tower_params))
  return f"a run of the stage {config.stage} with an index, whose row i is taken for passage i of the corpus"


def _describe(weights: Weights) -> list[str]:
  """What was taken, what was assumed, and what was left and why."""
  lines = [f"read {len(weights.tensors)} tensors of {weights.where}"]
  lines += [f"  {network}: {', '.join(parts)}" for network, parts in weights.parts.items()]
  lines += [f"  block_emb: {weights.block_emb.shape[0]:,} passages"] if weights.block_emb else []
  assumed = ", ".join(f"{field}={value}" for field, value in weights.assumed.items())
  lines += [f"assumed, for want of a config.json: {assumed}"] if assumed else []
  lines += [] if weights.vocabulary else ["without a vocabulary: whether it is the corpus' can't be checked"]
  for why in dict.fromkeys(weights.unused.values()):
    first, *others = (name for name, reason in weights.unused.items() if reason == why)
    lines.append(f"unused: {first}{f' and {len(others)} more' if others else ''}: {why}")
  return lines


if __name__ == "__main__":
  sys.exit(cli.run(["convert", *sys.argv[1:]]))
