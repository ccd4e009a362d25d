"""HF's own classes against ours: what they wrote we read, what we write they load, and the numbers are the same.

Needs an interpreter with torch and transformers below 4.41 (the last with REALM), named by REALM_ORACLE_PYTHON:
  REALM_ORACLE_PYTHON=/path/to/python python -m pytest tests/test_hf_oracle.py
"""

import json
import os
import pathlib
import subprocess

import jax
import numpy as np
import pytest

from realm_jax import cli
from realm_jax.batch import Packed
from realm_jax.config import make_reader, make_retriever, paper_config
from realm_jax.data.build import build_passages
from realm_jax.data.passages import PassageStore
from realm_jax.data.sample import SAMPLE_PASSAGES
from realm_jax.data.spans import RuleTagger
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from realm_jax.index.digest import tree_digest
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir
from realm_jax.model.bert import Bert
from realm_jax.weights.source import read_weights

PYTHON = os.environ.get("REALM_ORACLE_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="REALM_ORACLE_PYTHON names no interpreter with HF's REALM")

VOCABULARY = Vocabulary([*SPECIAL_TOKENS, *(chr(ord("!") + i) for i in range(55))], lowercase=False)  # 60 wordpieces
TOKEN_ID = np.array([[2, 9, 30, 11, 3, 0], [2, 20, 3, 41, 59, 3]], np.int32)
PACKED = Packed(TOKEN_ID, np.array([[0] * 6, [0, 0, 0, 1, 1, 1]], np.int32), TOKEN_ID != 0)
CLASSES = {  # as HF wrote it -> what we write of it
  "embedder": "RealmEmbedder",
  "scorer": "RealmEmbedder",  # one network is both of its towers
  "two_towers": "RealmScorer",
  "encoder": "RealmKnowledgeAugEncoder",
  "reader": "RealmReader",
  "openqa": "RealmForOpenQA",
  "bert": "BertModel",
  "bert_exact": "BertModel",
  "bert_head": "BertForPreTraining",
  "masked_lm": "BertForPreTraining",
  "dpr": "BertModel",
}


def oracle(*arguments):
  script = pathlib.Path(__file__).with_name("hf_oracle.py")
  result = subprocess.run([PYTHON, script, *map(str, arguments)], capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  return result.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  directory = tmp_path_factory.mktemp("hf")
  oracle("make", directory)
  for name in CLASSES:
    VOCABULARY.save(directory / name / "vocab.txt")
  return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """Seven passages, as many as the open-QA model has embeddings."""
  path = tmp_path_factory.mktemp("corpus") / "store"
  build_passages(SAMPLE_PASSAGES, path, vocabulary=VOCABULARY, passage_length=24, tagger=RuleTagger(), num_passages=7)
  return path


def convert(source, output, *flags):
  assert cli.run(["convert", f"--input={source}", f"--output={output}", *flags]) == 0
  return output


def outputs(directory):
  with np.load(directory / "outputs.npz") as file:
    return dict(file)


@pytest.mark.parametrize("suffix", ["", "_torch"])
@pytest.mark.parametrize("name", CLASSES)
def test_hf_loads_what_we_write_and_computes_the_same(made, tmp_path, monkeypatch, name, suffix):
  monkeypatch.setenv("REALM_TORCH_PYTHON", PYTHON)
  output = convert(made / f"{name}{suffix}", tmp_path / "out", "--to=hf")
  assert json.loads((output / "config.json").read_text())["architectures"] == [CLASSES[name]]
  keys = json.loads(oracle("check", CLASSES[name], output).splitlines()[-1])
  assert keys == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
  before, after = outputs(made / name), outputs(output)
  if name == "scorer":  # its towers are one, so the score is an inner product of two embeddings of one text
    after = {"score": (after["projected"] ** 2).sum(-1, keepdims=True)}
  assert before.keys() <= after.keys() | {"pooled"}
  for key in before.keys() & after.keys():
    np.testing.assert_allclose(after[key], before[key], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", ["embedder", "encoder", "openqa", "bert", "bert_exact", "bert_head"])
def test_we_compute_what_hf_computes(made, name):
  weights = read_weights(str(made / name))
  config = paper_config("finetune")
  config.model.update({field: value for field, value in weights.model.items() if field in config.model})
  tree, expected = weights.tree(), outputs(made / name)
  with jax.default_matmul_precision("highest"):
    for key in expected:
      if key == "projected":
        tower = make_retriever(config.model, 60).make_tower()
        found = tower.apply({"params": tree["retriever"]["query_tower"]}, PACKED)
      elif key in ("log_prob", "span_logit"):
        params = {"params": tree.get("reader") or tree["bert"]}
        position = np.tile(np.arange(6), (2, 1))
        argument = (position, "masked_word_log_prob") if key == "log_prob" else (PACKED.segment_id == 1, "span_logit")
        found = make_reader(config.model, 60).apply(params, PACKED, argument[0], method=argument[1])
      elif key in ("hidden", "pooled"):
        bert, params = Bert(**make_retriever(config.model, 60).bert), {"params": tree["bert"]["encoder"]}
        found = bert.apply(params, PACKED)
        if key == "pooled":
          found = bert.apply(params, found, method="pool")
      else:
        continue
      if key == "span_logit":  # HF leaves out the spans that we score at -10000
        found = np.asarray(found)[1]
        found = found[found > -5000]
        expected[key] = expected[key][expected[key] > -5000]
      is_token = PACKED.is_token if key in ("log_prob", "hidden") else np.ones(len(found), bool)
      np.testing.assert_allclose(
        np.asarray(found)[is_token], expected[key].reshape(np.shape(found))[is_token], rtol=1e-4, atol=2e-5, err_msg=key
      )


def test_open_qa_becomes_a_run_and_comes_back_to_the_bit(made, corpus, tmp_path):
  run = convert(made / "openqa", tmp_path / "run", "--to=realm", f"--corpus={corpus}")
  back = convert(run, tmp_path / "hf", "--to=hf")
  keys = json.loads(oracle("check", "RealmForOpenQA", back).splitlines()[-1])
  assert keys == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
  before, after = outputs(made / "openqa"), outputs(back)
  for key in before.keys() - {"block_emb"}:
    np.testing.assert_array_equal(after[key], before[key], err_msg=key)
  np.testing.assert_allclose(after["block_emb"], before["block_emb"], rtol=2**-8)  # the index is bfloat16
  again = convert(back, tmp_path / "again", "--to=realm", f"--corpus={corpus}")
  assert tree_digest(restore_params(RunDir(run))[1]) == tree_digest(restore_params(RunDir(again))[1])
  assert RunDir(again).snapshot_versions() == [1]
  assert PassageStore(corpus).num_passages == 7
