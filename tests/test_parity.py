"""The same numbers as Hugging Face's REALM: outputs and gradients of all its parts, from golden files.

tests/golden/make_goldens.py made the files and says how. Outputs agree within 1e-5. Of each parameter's gradient the
largest error is below 1e-4 of its largest element.

The two differ where no number shows it: spans outside the passage get float32's lowest number there and Google's
-10,000 here, so that a softmax gives them 0 in both; its padding_idx freezes one row of the word embeddings, which is
left out; it finds answers by wordpieces in what the reader sees, we by words in the passage, the same in these texts.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases, names
from safetensors.numpy import load_file

from realm_jax.batch import Packed
from realm_jax.config import make_reader, make_retriever, paper_config
from realm_jax.data.build import build_passages
from realm_jax.data.passages import PassageStore
from realm_jax.data.queries import QuestionSource
from realm_jax.data.questions import Question
from realm_jax.data.spans import NoTagger
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.index.retrieve import BatchAssembler, search
from realm_jax.index.searcher import ExactSearcher
from realm_jax.index.snapshot import Snapshot
from realm_jax.model import losses
from realm_jax.model.bert import Bert
from realm_jax.model.reader import span_candidates
from realm_jax.serving.open_qa import OpenQA
from realm_jax.training.objectives import question_objective

GOLDEN = pathlib.Path(__file__).parent / "golden"
FAST = "separate"  # the six others compile for a minute
pytestmark = [
  pytest.mark.usefixtures("exact_products"),
  pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=() if c.name == FAST else pytest.mark.slow) for c in cases.CASES],
  ),
]


def case_config(case):
  config = paper_config("finetune")
  config.model.update(
    hidden_size=case.hidden_size, num_layers=case.num_layers, num_heads=case.num_heads, mlp_size=case.mlp_size,
    max_length=case.joint_length, dropout_rate=0.0, retrieval_size=case.retrieval_size,
    towers_are_shared=case.towers_are_shared, span_hidden_size=case.span_hidden_size,
    max_span_width=case.max_span_width,
  )  # fmt: skip
  config.update(num_passages=case.num_read, joint_length=case.joint_length, query_length=case.joint_length)
  return config


def packed(case, name, *shape):
  tokens = cases.packed(case, name, shape)
  return Packed(tokens["token_id"].astype(np.int32), tokens["segment_id"].astype(np.int32), tokens["is_token"])


def golden(case, component, kind):
  prefix = f"{component}/{kind}/"
  arrays = load_file(GOLDEN / f"{case.name}.safetensors")
  return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def make_params(case, component, table, init):
  """The reference's weights in our tree."""

  def leaf(path, x):
    is_kernel = path[-1].key == "kernel"
    name = f"{component}.{names.reference_name(path, table)}"
    value = cases.weight(case, name, x.shape[::-1] if is_kernel else x.shape)
    return value.T if is_kernel else value

  return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(init, jax.random.key(0))["params"])


def assert_close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def assert_gradients_agree(case, component, table, grads, **input_grads):
  """Ours against the reference's, both ways round: none is left out."""
  theirs = golden(case, component, "grad")
  largest = max(np.abs(g).max() for g in theirs.values())
  for name, ours in input_grads.items():
    assert_gradient_agrees(np.asarray(ours), theirs.pop(name), largest, name)
  for path, ours in jax.tree_util.tree_leaves_with_path(grads):
    name = names.reference_name(path, table)
    ours = np.asarray(ours).T if path[-1].key == "kernel" else np.asarray(ours)
    expected = theirs.pop(name, np.zeros_like(ours))  # a parameter that the loss does not use
    if name.endswith("word_embeddings.weight"):
      ours, expected = without_frozen_row(case, component, ours, expected)
    assert_gradient_agrees(ours, expected, largest, name)
  assert not theirs, "gradients that ours lacks"


def assert_gradient_agrees(ours, expected, largest, name):
  size = np.abs(expected).max()
  if size < 1e-6 * largest:  # zero but for rounding, as of what is added to all logits of a softmax
    assert np.abs(ours).max() <= 1e-6 * largest, name
  else:
    assert np.abs(ours - expected).max() <= 1e-4 * size, name


def without_frozen_row(case, component, ours, expected):
  """The reference does not train the row of its padding_id as an input, only as the masked-word head's tied weight."""
  row = case.padding_id
  if component != "encoder":
    assert not expected[row].any()
  if row == 0 and component not in ("bert", "encoder"):  # which look at hidden states of padding
    assert not ours[row].any()
  if row == 1 and component == "scorer":
    assert ours[row].any()
  keep = np.arange(case.vocab_size) != row
  return ours[keep], expected[keep]


def differentiate(function, *arguments):
  """(outputs, gradients) of function(*arguments) -> (loss, outputs)."""
  differentiated = jax.jit(jax.grad(function, argnums=tuple(range(len(arguments))), has_aux=True))
  grads, outputs = differentiated(*arguments)
  return outputs, grads


def test_bert(case):
  inputs = packed(case, "bert", case.num_queries, case.joint_length)
  bert = Bert(**make_reader(case_config(case).model, case.vocab_size).bert)

  def run(module):
    hidden = module(inputs)
    return hidden, module.pool(hidden)

  params = make_params(case, "bert", names.BERT, lambda key: bert.init(key, method=run))

  def probed(params):
    outputs = bert.apply({"params": params}, method=run)
    return sum((x * cases.probe(case, n, x.shape)).sum() for n, x in zip(("hidden", "pooled"), outputs)), outputs

  (hidden, pooled), (grads,) = differentiate(probed, params)
  expected = golden(case, "bert", "out")
  assert_close(hidden, expected["hidden"])
  assert_close(pooled, expected["pooled"])
  assert_gradients_agree(case, "bert", names.BERT, grads)


def test_embedder(case):
  query = packed(case, "query", case.num_queries, case.query_length)
  tower = make_retriever(case_config(case).model, case.vocab_size).make_tower()
  params = make_params(case, "embedder", names.TOWER, lambda key: tower.init(key, query))

  def probed(params):
    emb_BD = tower.apply({"params": params}, query)
    return (emb_BD * cases.probe(case, "emb", emb_BD.shape)).sum(), emb_BD

  emb_BD, (grads,) = differentiate(probed, params)
  assert_close(emb_BD, golden(case, "embedder", "out")["emb"])
  assert_gradients_agree(case, "embedder", names.TOWER, grads)


def test_scorer(case):
  query = packed(case, "query", case.num_queries, case.query_length)
  passage = packed(case, "passage", case.num_queries, case.num_passages, case.passage_length)
  retriever = make_retriever(case_config(case).model, case.vocab_size)
  table = names.SHARED_SCORER if case.towers_are_shared else names.SCORER
  params = make_params(case, "scorer", table, lambda key: retriever.init(key, query, passage))

  def probed(params):
    query_emb_BD, passage_emb_BKD = retriever.apply({"params": params}, query, passage)
    score_BK = jnp.einsum("bd,bkd->bk", query_emb_BD, passage_emb_BKD)
    loss = (score_BK * cases.probe(case, "relevance", score_BK.shape)).sum()
    return loss, {"score": score_BK, "query_emb": query_emb_BD, "passage_emb": passage_emb_BKD}

  outputs, (grads,) = differentiate(probed, params)
  for name, expected in golden(case, "scorer", "out").items():
    assert_close(outputs[name], expected)
  assert_gradients_agree(case, "scorer", table, grads)


def test_knowledge_augmented_encoder(case):
  joint = packed(case, "joint", case.num_queries, case.num_passages, case.joint_length)
  masked = cases.masked_words(case)
  shape = (case.num_queries, case.num_passages, 3)
  position_BKM, target_BKM = (np.broadcast_to(masked[n][:, None], shape) for n in ("position", "target"))
  reader = make_reader(case_config(case).model, case.vocab_size)
  params = make_params(case, "encoder", names.READER, lambda key: reader.init(key, joint, position_BKM))

  def loss(params, score_BK):
    log_prob_BKMV = reader.apply({"params": params}, joint, position_BKM, method="masked_word_log_prob")
    gold_log_prob_BKM = jnp.take_along_axis(log_prob_BKMV, target_BKM[..., None], -1)[..., 0]
    loss = losses.masked_word_loss(score_BK, gold_log_prob_BKM, masked["weight"], per_example=False)
    return loss, (loss, log_prob_BKMV)

  (value, log_prob_BKMV), (grads, score_grad_BK) = differentiate(loss, params, masked["score"])
  expected = golden(case, "encoder", "out")
  assert_close(value, expected["loss"])
  assert_close(log_prob_BKMV, jax.nn.log_softmax(expected["logit"]))
  assert_gradients_agree(case, "encoder", names.READER, grads, score=score_grad_BK)


def test_reader(case):
  read = packed(case, "read", case.num_read, case.joint_length)
  told = cases.spans(case)
  reader = make_reader(case_config(case).model, case.vocab_size)
  params = make_params(case, "reader", names.READER, lambda key: reader.init(key, read, np.zeros((1, 1), np.int32)))
  start_S, end_S = span_candidates(case.joint_length, case.max_span_width)
  is_gold_KS = ((told["start"][..., None] == start_S) & (told["end"][..., None] == end_S)).any(1)

  def loss(params, score_R):
    span_logit_KS = reader.apply({"params": params}, read, told["is_body"], method="span_logit")
    parts = losses.question_loss(
        score_R[None], told["beam_has_answer"][None], score_R[None, : case.num_read], span_logit_KS[None],
        is_gold_KS[None],
    )  # fmt: skip
    retriever_loss, reader_loss = parts[0][0], parts[1][0]
    joint_KS = span_logit_KS + score_R[: case.num_read, None]
    return retriever_loss + reader_loss, (span_logit_KS, retriever_loss, reader_loss, joint_KS)

  (span_logit_KS, retriever_loss, reader_loss, joint_KS), grads = differentiate(loss, params, told["beam_score"])
  expected = golden(case, "reader", "out")
  is_body_KS = told["is_body"][:, start_S] & told["is_body"][:, end_S]
  assert is_body_KS.any(1).all()
  assert_close(np.asarray(span_logit_KS)[is_body_KS], expected["span_logit"][is_body_KS])
  # Outside the body both are out of reach: at -10,000 as in Google's code, at float32's lowest number in HF's.
  assert np.asarray(span_logit_KS)[~is_body_KS].max() < -9000
  assert_close(retriever_loss, expected["retriever_loss"])
  assert_close(reader_loss, expected["reader_loss"])
  assert_close(retriever_loss + reader_loss, expected["loss"])
  assert (expected["retriever_loss"] > 0) == (case.answers in ("both", "retriever"))
  assert (expected["reader_loss"] > 0) == (case.answers in ("both", "reader"))
  np.testing.assert_array_equal(is_gold_KS, expected["reader_correct"])
  best_k, best_s = np.unravel_index(np.argmax(joint_KS), joint_KS.shape)
  assert (best_k, best_s) == (expected["block_idx"], expected["candidate"])
  assert (start_S[best_s], end_S[best_s]) == (expected["start_pos"], expected["end_pos"])
  assert_gradients_agree(case, "reader", names.READER, grads[0], score=grads[1])


@pytest.fixture
def asked(case, tmp_path):
  """The case's question, and a store of its passages without titles."""
  asked = cases.open_question(case)
  lines = [json.dumps({"id": str(i), "text": record}) for i, record in enumerate(asked.records)]
  (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
  build_passages(
    tmp_path / "records.jsonl", tmp_path / "store", vocabulary=Vocabulary(asked.vocabulary, lowercase=True),
    passage_length=case.joint_length, tagger=NoTagger(), whole=True,
  )  # fmt: skip
  return asked, PassageStore(tmp_path / "store")


def test_open_qa(case, asked):
  asked, store = asked
  config, vocabulary = case_config(case), store.vocabulary()
  retriever, reader = make_retriever(config.model, len(vocabulary)), make_reader(config.model, len(vocabulary))
  snapshot = Snapshot(1, {}, asked.record_emb_ND, ExactSearcher(asked.record_emb_ND))
  queries = QuestionSource(
    [Question(asked.question, asked.answers)], vocabulary, seed=0, query_length=config.query_length, max_masks=1
  ).rows(np.array([0]))

  def init(key):
    query, joint = packed(case, "query", 1, case.query_length), packed(case, "read", 1, case.joint_length)
    params = {"reader": reader.init(key, joint, np.zeros((1, 1), np.int32))["params"]}
    # The reference has the query tower alone; without the other, ours searches and trains the same.
    params["retriever"] = {"query_tower": retriever.init(key, query, query)["params"]["query_tower"]}
    return {"params": params}

  params = make_params(case, "open_qa", names.OPEN_QA, init)
  _, retrieved_id_BR = search(retriever, params["retriever"], queries, snapshot, case.beam_size)
  assembler = BatchAssembler(store, vocabulary, joint_length=case.joint_length)
  batch = assembler.question_batch(queries, [asked.answers], retrieved_id_BR, snapshot, case.num_read)
  objective = question_objective(retriever, reader)
  metrics, (grads,) = differentiate(lambda p: objective(p, batch, jax.random.key(0)), params)
  expected = golden(case, "open_qa", "out")
  for name in ("loss", "retriever_loss", "reader_loss"):
    assert_close(metrics[name], expected[name])
  assert (expected["reader_loss"] > 0) == (case.answers in ("both", "reader"))
  assert_gradients_agree(case, "open_qa", names.OPEN_QA, grads)
  (answer,) = OpenQA(config, store, vocabulary, params, snapshot).answer([asked.question])
  assert answer.text == " ".join(asked.vocabulary[i] for i in expected["predicted_id"])
  assert answer.passage_id == str(retrieved_id_BR[0, expected["block_idx"]])
