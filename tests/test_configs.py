"""Every config builds, and each of its keys is read."""

import ast
import importlib.util
import inspect
import math
import pathlib
import re

import jax.numpy as jnp
import pytest

from realm_jax import config as config_module
from realm_jax.config import (
  STAGES,
  check_numbers,
  flat_fields,
  make_reader,
  make_retriever,
  make_tower,
  paper_config,
  question_config,
  stored_config,
)

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def build_all(path):
  """The config of a file, or one for each stage or variant if the file takes that."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert module.__doc__, f"{path.name} doesn't say what it is"
  rows = ("reading", "realm", "random_span", "random_token", "stale", "frozen", "finetune")
  choices = {
    "stage": STAGES, "variant": ("paper", "improved"), "row": rows, "name": ("before", "reader", "finetune")
  }  # fmt: skip
  (names,) = [choices[parameter] for parameter in inspect.signature(module.get_config).parameters] or [()]
  return [module.get_config(name) for name in names] or [module.get_config()]


def leaf_keys(config, prefix=""):
  for key, value in config.items():
    if hasattr(value, "items"):
      yield from leaf_keys(value, f"{prefix}{key}.")
    else:
      yield prefix + key


def test_there_are_configs_for_all_stages():
  assert {"demo", "ict", "pretrain", "finetune"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("name", ["finetune", "nq", "openqa", "table2", "trec", "wq"])
def test_configs_of_questions_say_what_to_expect_and_what_it_costs(name):
  text = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8")))
  assert re.search(r"^Expected: .*?\d", text, re.MULTILINE)
  assert re.search(r"\bCost\b[^.]*?\d+ (hours|minutes)", text)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds(path):
  for config in build_all(path):
    assert config.stage in STAGES and config.is_locked
    assert set(leaf_keys(config)) == set(leaf_keys(paper_config(config.stage)))
    assert config.joint_length <= config.model.max_length and config.query_length <= config.model.max_length
    assert config.model.hidden_size % config.model.num_heads == 0
    with pytest.raises(AttributeError):
      config.no_such_field = 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_describes_models(path):
  for config in build_all(path):
    retriever, reader, tower = (make(config.model, 1000) for make in (make_retriever, make_reader, make_tower))
    assert retriever.bert == reader.bert == tower.bert
    assert (tower.bert["vocab_size"], tower.bert["num_layers"]) == (1000, config.model.num_layers)
    assert retriever.retrieval_size == tower.retrieval_size == config.model.retrieval_size
    assert reader.max_span_width == config.model.max_span_width


def test_models_take_the_configs_type_attention_and_remat():
  model = paper_config("pretrain").model
  model.update(dtype="bfloat16", attention="xla", remat="layer")
  bert = make_reader(model, 1000).bert
  assert (bert["dtype"], bert["attention"], bert["remat"]) == (jnp.bfloat16, "xla", "layer")


def test_an_unknown_stage_is_named():
  with pytest.raises(ValueError, match=r"^unknown stage 'ist'; the stages are ict, mlm, pretrain, finetune$"):
    paper_config("ist")


def test_a_run_of_an_older_version_takes_defaults_for_younger_fields():
  stored = paper_config("ict").to_dict()
  stored["model"]["hidden_size"] = 64
  del stored["model"]["remat"]
  config = stored_config(stored)
  assert (config.model.hidden_size, config.model.remat, config.num_steps) == (64, "none", 100_000)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"depth": 3, "mesh": {"pipeline": 2}}, r"has fields that are unknown here \(depth, mesh.pipeline\)"),
    ({"model": 3}, r"has fields that are unknown here \(model\)"),
    ({"num_steps": "many"}, r"doesn't fit: Could not override field 'num_steps'.*"),
  ],
)
def test_what_is_wrong_with_a_runs_config_is_one_line(change, message):
  with pytest.raises(
    ValueError, match=rf"^the run's config.json {message}; use the version of realm_jax that made it$"
  ):
    stored_config(paper_config("ict").to_dict() | change)


def test_the_papers_values_stand():
  ict, _, pretrain, finetune = (paper_config(stage) for stage in STAGES)
  assert (ict.num_steps, ict.batch_size, ict.optimizer.learning_rate) == (100_000, 4096, 1e-4)
  assert (pretrain.num_steps, pretrain.batch_size, pretrain.num_passages) == (200_000, 512, 8)
  assert (pretrain.optimizer.learning_rate, pretrain.index.export_every) == (3e-5, 500)
  assert (finetune.num_passages, finetune.beam_size, finetune.batch_size) == (5, 5000, 1)
  assert (pretrain.model.hidden_size, pretrain.model.num_layers, pretrain.model.retrieval_size) == (768, 12, 128)


@pytest.mark.parametrize(
  ("name", "num_steps", "improved_steps"), [("nq", 316_672, 19_792), ("wq", 205_020, 12_813), ("trec", 108_240, 6_765)]
)
def test_question_sets_have_the_papers_steps(name, num_steps, improved_steps):
  paper, improved = build_all(ROOT / "configs" / f"{name}.py")
  assert (paper.num_steps, improved.num_steps) == (num_steps, improved_steps)
  paper_fields, improved_fields = flat_fields(paper.to_dict()), flat_fields(improved.to_dict())
  assert {field for field, value in paper_fields.items() if value != improved_fields[field]} == {
    "num_steps", "batch_size", "num_passages", "num_inference_passages", "optimizer.learning_rate", "index.searcher",
    "checkpoint.every",
  }  # fmt: skip
  for config in (paper, improved):  # ten checkpoints, the end among them, and all are kept
    every = config.checkpoint.every
    assert len({*range(every, config.num_steps + 1, every), config.num_steps}) == config.checkpoint.keep == 10


def test_an_unknown_variant_is_named():
  with pytest.raises(ValueError, match=r"^unknown variant 'big'; the variants are paper and improved$"):
    question_config(10, 1, "big")


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("batch_size", -1, "batch_size=-1, expected at least 1; set --config.batch_size to that or more"),
    ("num_steps", 0, "num_steps=0, expected at least 1"),
    ("log_every", 0, "log_every=0, expected at least 1"),
    ("checkpoint.every", 0, "checkpoint.every=0, expected at least 1"),
    ("index.export_every", 0, "index.export_every=0, expected at least 1"),
    ("query_length", 2, "query_length=2, expected at least 3"),
    ("seed", -1, "seed=-1, expected at least 0"),
    ("optimizer.learning_rate", math.nan, "optimizer.learning_rate=nan, expected at least 0"),
    ("num_inference_passages", -1, "num_inference_passages=-1, expected at least 0"),
    ("max_masks", 0, "max_masks=0, expected at least 1"),
    ("num_hard_negatives", -2, "num_hard_negatives=-2, expected at least 0"),
    ("optimizer.warmup_steps", -2, "optimizer.warmup_steps=-2, expected at least -1"),
    ("null_rate", 1.5, "null_rate=1.5, expected a share; set --config.null_rate to 0 to 1"),
  ],
)
def test_a_number_out_of_bounds_is_refused(field, value, message):
  config = paper_config("pretrain")
  check_numbers(config)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
    check_numbers(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configs_numbers_are_within_bounds(path):
  for config in build_all(path):
    check_numbers(config)


def attributes_read(tree):
  """x.a.b gives "a" and "a.b", for every attribute that is read and not set."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
      yield node.attr
      if isinstance(node.value, ast.Attribute):
        yield f"{node.value.attr}.{node.attr}"
      elif isinstance(node.value, ast.Name):
        yield f"{node.value.id}.{node.attr}"


def test_every_key_is_read():
  read = set()
  for path in (ROOT / "realm_jax").rglob("*.py"):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.samefile(config_module.__file__):  # there paper_config sets them, the other functions read them
      tree.body = [node for node in tree.body if getattr(node, "name", "") != "paper_config"]
    read |= set(attributes_read(tree))
  keys = {key for stage in STAGES for key in leaf_keys(paper_config(stage))}
  # A key stands behind the part that it is in: config.index.keep or index.keep, config.seed.
  # config.index.scann is handed on whole, and test_searcher has each of its fields.
  names = {key: "scann.to_dict" if key.startswith("index.scann.") else f"config.{key}" for key in keys}
  unread = {key for key, name in names.items() if name not in read and key not in read}
  assert not unread
