"""Real weights, which nobody must have: they come from directories that the environment names.

REALM_MINILM_DIR   all-MiniLM-L6-v2 in HF's form: its sentence vectors are those of its own runtime
REALM_BERT_DIR     any BERT in HF's form: a stage of training starts from it
REALM_ORACLE_PYTHON (with REALM_MINILM_DIR) an interpreter with torch and transformers: that runtime
"""

import json
import os
import pathlib
import subprocess

import jax
import numpy as np
import pytest

from realm_jax.batch import Packed
from realm_jax.config import make_retriever, paper_config
from realm_jax.model.bert import Bert
from realm_jax.training.start import initial_params
from realm_jax.weights.source import read_weights

MINILM, BERT = os.environ.get("REALM_MINILM_DIR"), os.environ.get("REALM_BERT_DIR")
PYTHON = os.environ.get("REALM_ORACLE_PYTHON")
PAIRS = [
  ("A man is eating a piece of bread.", "Someone is having some food."),
  ("The cheetah runs behind its prey.", "A wild cat is chasing an antelope."),
  ("Her violin concerto was first performed in Vienna.", "The premiere of the orchestral work took place in Austria."),
  ("The stock market fell sharply on Monday.", "Shares lost much of their value at the week's start."),
]
TEXTS = [text for pair in PAIRS for text in pair]


@pytest.fixture(scope="module")
def vectors():
  """Mean over the tokens' states, then scaled to length 1, as sentence-transformers does."""
  weights = read_weights(MINILM)
  config = paper_config("ict")
  config.model.update({field: value for field, value in weights.model.items() if field in config.model})
  length = 32
  encodings = weights.vocabulary.encode(TEXTS)
  token_NL = np.zeros((len(TEXTS), length), np.int32)
  for row, encoding in zip(token_NL, encodings):
    ids = [weights.vocabulary.cls_id, *encoding.token_id, weights.vocabulary.sep_id]
    row[: len(ids)] = ids
  packed = Packed(token_NL, np.zeros_like(token_NL), token_NL != 0)
  bert = Bert(**make_retriever(config.model, weights.model["vocab_size"]).bert)
  params = weights.tree()["bert"]["encoder"]
  with jax.default_matmul_precision("highest"):
    hidden = np.asarray(jax.jit(bert.apply)({"params": params}, packed))
  mean = (hidden * packed.is_token[..., None]).sum(1) / packed.is_token.sum(1, keepdims=True)
  return mean / np.linalg.norm(mean, axis=1, keepdims=True)


@pytest.mark.skipif(not (MINILM and PYTHON), reason="REALM_MINILM_DIR and REALM_ORACLE_PYTHON are not set")
def test_sentence_vectors_are_those_of_its_own_runtime(vectors):
  script = pathlib.Path(__file__).with_name("hf_oracle.py")
  command = [PYTHON, str(script), "embed", MINILM, json.dumps(TEXTS)]
  result = subprocess.run(command, capture_output=True, text=True, check=True)
  expected = np.array(json.loads(result.stdout.splitlines()[-1]))
  print(f"\nlargest difference {np.abs(vectors - expected).max():.1e}")
  np.testing.assert_allclose(vectors, expected, atol=1e-4)


@pytest.mark.skipif(not MINILM, reason="REALM_MINILM_DIR is not set")
def test_a_sentence_finds_its_paraphrase(vectors):
  score = vectors @ vectors.T
  np.fill_diagonal(score, -1)
  np.testing.assert_array_equal(score.argmax(1), np.arange(len(TEXTS)) ^ 1)


@pytest.mark.skipif(not BERT, reason="REALM_BERT_DIR is not set")
def test_training_starts_from_it():
  weights = read_weights(BERT)
  config = paper_config("pretrain")
  config.model.update({f: v for f, v in (weights.assumed | weights.model).items() if f in config.model})
  config.init = BERT
  params = initial_params(config, weights.vocabulary)
  encoder = weights.tree()["bert"]["encoder"]
  found = params["retriever"]["query_tower"]["encoder"], params["reader"]["encoder"] | {"pooler": encoder["pooler"]}
  for tree in found:
    jax.tree.map(np.testing.assert_array_equal, tree, encoder)
