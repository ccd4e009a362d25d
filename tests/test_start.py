"""Start from a BERT in HF's form: where every tensor lands, and refusals."""

import hf_files as files
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from realm_jax.config import paper_config
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from realm_jax.index.run_dir import RunDir
from realm_jax.training.checkpoint import Checkpoints
from realm_jax.training.loop import check_run_dir
from realm_jax.training.start import abstract_params, initial_params
from realm_jax.training.step import TrainState
from realm_jax.weights.source import read_weights

VOCABULARY = Vocabulary([*SPECIAL_TOKENS, *"abcdefgh"], lowercase=True)  # 13 wordpieces

HIDDEN, MLP = 6, 10
# HF's name of a module -> (ours, [inputs, outputs] of a dense layer).
LAYER_DENSE = {
  "attention.self.query": ("query", (HIDDEN, HIDDEN)),
  "attention.self.key": ("key", (HIDDEN, HIDDEN)),
  "attention.self.value": ("value", (HIDDEN, HIDDEN)),
  "attention.output.dense": ("attention_output", (HIDDEN, HIDDEN)),
  "intermediate.dense": ("mlp_in", (HIDDEN, MLP)),
  "output.dense": ("mlp_out", (MLP, HIDDEN)),
}
LAYER_NORMS = {"attention.output.LayerNorm": "attention_layer_norm", "output.LayerNorm": "mlp_layer_norm"}


def tiny_config(stage="pretrain", **model):
  config = paper_config(stage)
  config.model.update(hidden_size=HIDDEN, num_layers=2, num_heads=2, mlp_size=MLP, max_length=9, retrieval_size=4)
  config.model.update(span_hidden_size=4, **model)
  return config


def hf_tensors(prefix="", norm=("weight", "bias"), vocab_size=13):
  """What HF's BertModel of our sizes saves, in random numbers: dense weights are [outputs, inputs]."""
  rng = np.random.default_rng(0)
  shapes = {f"embeddings.{name}_embeddings.weight": (size, HIDDEN) for name, size in
            (("word", vocab_size), ("position", 9), ("token_type", 2))}  # fmt: skip
  norms = ["embeddings.LayerNorm"]
  dense = {"pooler.dense": (HIDDEN, HIDDEN)}
  for n in range(2):
    dense |= {f"encoder.layer.{n}.{name}": size for name, (_, size) in LAYER_DENSE.items()}
    norms += [f"encoder.layer.{n}.{name}" for name in LAYER_NORMS]
  for name, (inputs, outputs) in dense.items():
    shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
  for name in norms:
    shapes |= {f"{name}.{leaf}": (HIDDEN,) for leaf in norm}
  return {prefix + name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def expected_encoder(tensors, prefix="", norm=("weight", "bias")):
  """Our tree, written out module by module."""

  def dense(name):
    return {"kernel": tensors[f"{prefix}{name}.weight"].T, "bias": tensors[f"{prefix}{name}.bias"]}

  def layer_norm(name):
    return {"scale": tensors[f"{prefix}{name}.{norm[0]}"], "bias": tensors[f"{prefix}{name}.{norm[1]}"]}

  tree = {
    f"{name}_embeddings": {"embedding": tensors[f"{prefix}embeddings.{name}_embeddings.weight"]}
    for name in ("word", "position", "token_type")
  }
  tree |= {"layer_norm": layer_norm("embeddings.LayerNorm"), "pooler": dense("pooler.dense")}
  for n in range(2):
    layer = {ours: dense(f"encoder.layer.{n}.{name}") for name, (ours, _) in LAYER_DENSE.items()}
    layer |= {ours: layer_norm(f"encoder.layer.{n}.{name}") for name, ours in LAYER_NORMS.items()}
    tree[f"layer_{n}"] = layer
  return tree


def assert_same_tree(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def bert_dir(tmp_path):
  save_file(hf_tensors("bert."), tmp_path / "model.safetensors")
  VOCABULARY.save(tmp_path / "vocab.txt")
  return tmp_path


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("norm", [("weight", "bias"), ("gamma", "beta")])
def test_every_tensor_lands_where_it_belongs(tmp_path, prefix, norm):
  """Bare or with a head on top; bert-base-uncased itself calls the parameters of its layer norms gamma and beta."""
  tensors = hf_tensors(prefix, norm)
  others = {
    "cls.seq_relationship.weight": np.ones((2, HIDDEN), np.float32),
    f"{prefix}embeddings.position_ids": np.arange(9)[None],
  }
  save_file(tensors | others, tmp_path / "model.safetensors")
  encoder = read_weights(str(tmp_path)).tree()["bert"]["encoder"]
  assert_same_tree(encoder, expected_encoder(tensors, prefix, norm))
  assert sum(x.size for x in jax.tree.leaves(encoder)) == sum(x.size for x in tensors.values())
  # The tree is the one that our encoder has.
  ours = abstract_params(tiny_config(), 13)["retriever"]["query_tower"]["encoder"]
  assert jax.tree.map(np.shape, encoder) == jax.tree.map(lambda x: x.shape, ours)


def test_half_precision_becomes_float32(tmp_path):
  tensors = {name: x.astype(np.float16) for name, x in hf_tensors().items()}
  save_file(tensors, tmp_path / "model.safetensors")
  encoder = read_weights(str(tmp_path)).tree()["bert"]["encoder"]
  assert {x.dtype for x in jax.tree.leaves(encoder)} == {np.dtype(np.float32)}
  np.testing.assert_array_equal(encoder["pooler"]["bias"], tensors["pooler.dense.bias"])


def test_every_encoder_starts_from_bert_and_the_rest_at_random(bert_dir):
  config = tiny_config("finetune")  # two towers and a reader
  random = initial_params(config, VOCABULARY)
  config.init = str(bert_dir)
  params = initial_params(config, VOCABULARY)
  encoder = expected_encoder(hf_tensors("bert."), "bert.")
  for tower in ("query_tower", "passage_tower"):
    assert_same_tree(params["retriever"][tower]["encoder"], encoder)
    for part in ("projection", "layer_norm"):
      assert_same_tree(params["retriever"][tower][part], random["retriever"][tower][part])
  assert_reader_starts_from(encoder, params, random)


def assert_reader_starts_from(encoder, params, random):
  assert_same_tree(params["reader"]["encoder"], {name: x for name, x in encoder.items() if name != "pooler"})
  for part in ("masked_word_head", "span_head"):
    assert_same_tree(params["reader"][part], random["reader"][part])


def test_a_tower_that_takes_the_mean_starts_from_bert_without_its_pooler(tmp_path, bert_dir):
  config = tiny_config("ict", pooling="mean")
  config.init = str(bert_dir)
  params = initial_params(config, VOCABULARY)
  encoder = expected_encoder(hf_tensors("bert."), "bert.")
  assert_same_tree(
    params["retriever"]["query_tower"]["encoder"], {name: x for name, x in encoder.items() if name != "pooler"}
  )
  # A projection is of no use to another pooling.
  for pooling, other in (("mean", "cls"), ("cls", "mean")):
    config.model.pooling = pooling
    run_dir = RunDir(tmp_path / pooling)
    checkpoints = Checkpoints(run_dir, keep=1)
    checkpoints.save_params(1, jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract_params(config, 13)))
    checkpoints.close()
    config.init, config.model.pooling = str(run_dir.path), other
    message = f"/{pooling} has a retriever with another pooling; set --config.model.pooling={pooling}$"
    with pytest.raises(ValueError, match=message):
      initial_params(config, VOCABULARY)


def test_the_reader_alone_starts_from_bert(bert_dir):
  config = tiny_config("finetune")
  random = initial_params(config, VOCABULARY)
  config.init_reader = str(bert_dir)
  params = initial_params(config, VOCABULARY)
  assert_same_tree(params["retriever"], random["retriever"])
  assert_reader_starts_from(expected_encoder(hf_tensors("bert."), "bert."), params, random)


def test_ict_has_no_reader(bert_dir):
  config = tiny_config("ict")
  config.init = str(bert_dir)
  params = initial_params(config, VOCABULARY)
  assert set(params) == {"retriever"} and set(params["retriever"]) == {"query_tower"}
  assert_same_tree(params["retriever"]["query_tower"]["encoder"], expected_encoder(hf_tensors("bert."), "bert."))


def test_mlm_has_a_reader_alone(bert_dir):
  config = tiny_config("mlm")
  random = initial_params(config, VOCABULARY)
  config.init = str(bert_dir)
  params = initial_params(config, VOCABULARY)
  assert set(params) == {"reader"}
  assert_reader_starts_from(expected_encoder(hf_tensors("bert."), "bert."), params, random)


def test_pretraining_starts_from_a_warm_retriever_and_a_warm_reader(tmp_path):
  runs, rng = {}, np.random.default_rng(0)
  for stage in ("ict", "mlm"):
    config = tiny_config(stage)
    run_dir = RunDir(tmp_path / stage)
    run_dir.write_config(config.to_dict())
    runs[stage] = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), abstract_params(config, 13))
    checkpoints = Checkpoints(run_dir, keep=1)
    checkpoints.save(1, TrainState(np.int32(1), runs[stage], ()), None)
    checkpoints.close()
  config = tiny_config("pretrain")
  config.init, config.init_reader = str(tmp_path / "ict"), str(tmp_path / "mlm")
  params = initial_params(config, VOCABULARY)
  assert_same_tree(params["retriever"], runs["ict"]["retriever"])
  assert_same_tree(params["reader"], runs["mlm"]["reader"])
  # Without it the reader's encoder is the query tower's.
  config.init_reader = ""
  encoder = runs["ict"]["retriever"]["query_tower"]["encoder"]
  assert_same_tree(
    initial_params(config, VOCABULARY)["reader"]["encoder"], {k: v for k, v in encoder.items() if k != "pooler"}
  )
  config.init = str(tmp_path / "mlm")
  with pytest.raises(ValueError, match=r"/mlm holds no retriever, only reader; give it as --config.init_reader$"):
    initial_params(config, VOCABULARY)


def test_the_masked_word_head_is_taken_too(tmp_path):
  config = tiny_config()
  config.init = str(files.write(tmp_path, files.masked_lm()))
  head = initial_params(config, VOCABULARY)["reader"]["masked_word_head"]
  tensors = files.masked_lm()
  np.testing.assert_array_equal(head["transform"]["kernel"], tensors["cls.predictions.transform.dense.weight"].T)
  np.testing.assert_array_equal(head["bias"], tensors["cls.predictions.bias"])


def test_an_open_qa_model_of_hf_is_taken_as_a_whole(tmp_path):
  config = tiny_config("finetune", max_span_width=4)
  config.model.span_hidden_size = 7
  config.init = str(files.write(tmp_path, files.open_qa(), files.REALM_CONFIG))
  params = initial_params(config, VOCABULARY)
  source = read_weights(config.init).tree()
  assert_same_tree(params["reader"], source["reader"])
  for tower in ("query_tower", "passage_tower"):
    assert_same_tree(params["retriever"][tower], source["retriever"]["query_tower"])


def test_refuses_another_activation_and_another_casing(tmp_path):
  config = tiny_config()
  config.init = str(files.write(tmp_path, files.masked_lm(), files.CONFIG))
  with pytest.raises(ValueError, match="has gelu_is_approximate=False, the config True; set --config.model.gelu_is"):
    initial_params(config, VOCABULARY)
  (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
  with pytest.raises(
    ValueError, match=r"\(13 wordpieces, uncased\) than .* \(13 wordpieces, cased\); build the corpus"
  ):
    initial_params(config, VOCABULARY)
  for name in ("vocab.txt", "tokenizer_config.json"):
    (tmp_path / name).unlink()
  with pytest.raises(ValueError, match="has no vocabulary; put its vocab.txt there, so that it can be compared"):
    initial_params(config, VOCABULARY)


def test_refuses_another_vocabulary(bert_dir):
  config = tiny_config()
  config.init = str(bert_dir)
  other = Vocabulary([*SPECIAL_TOKENS, *"abcdefgx"], lowercase=True)
  message = (
    r"the corpus has another vocabulary \(13 wordpieces, uncased\) than .* \(13 wordpieces, uncased\); "
    r"build the corpus with --vocab=.*"
  )
  with pytest.raises(ValueError, match=message):
    initial_params(config, other)


@pytest.mark.parametrize(
  ("model", "message"),
  [
    ({"mlp_size": 12}, r" has mlp_size=10, the config 12; set --config.model.mlp_size=10$"),
    (
      {"max_length": 10, "num_layers": 3},
      r" has max_length=9, the config 10; set --config.model.max_length=9 --config.model.num_layers=2$",
    ),
    ({"num_layers": 1}, r" has num_layers=2, the config 1; set --config.model.num_layers=2$"),
  ],
)
def test_refuses_other_sizes(bert_dir, model, message):
  config = tiny_config(**model)
  config.init = str(bert_dir)
  with pytest.raises(ValueError, match=message):
    initial_params(config, VOCABULARY)


def test_refuses_what_is_no_start(tmp_path):
  config = tiny_config()
  config.init = str(tmp_path)
  with pytest.raises(ValueError, match=r"^.* holds no weights: neither a run's"):
    initial_params(config, VOCABULARY)


def test_a_run_of_another_stage_is_refused_by_its_stage(tmp_path):
  run_dir = RunDir(tmp_path / "run")
  run_dir.write_config(paper_config("pretrain").to_dict())
  message = r"belongs to a run with stage='pretrain', now it is 'finetune' \(and \d+ more fields differ\); use the same"
  with pytest.raises(ValueError, match=message):
    check_run_dir(paper_config("finetune"), run_dir)
