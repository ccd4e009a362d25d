"""Small random models in the files of other systems, named by hand: what the table in weights/names.py is held to."""

import json

import numpy as np
from safetensors.numpy import save_file

from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary

VOCABULARY = Vocabulary([*SPECIAL_TOKENS, *"abcdefgh"], lowercase=True)  # 13 wordpieces
V, E, F, L, D, W = 13, 6, 10, 9, 4, 7  # vocabulary, hidden, perceptron, positions, retrieval, span head
CONFIG = {
  "vocab_size": V, "hidden_size": E, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": F,
  "max_position_embeddings": L, "hidden_act": "gelu", "model_type": "bert",
}  # fmt: skip
REALM_CONFIG = CONFIG | {
  "model_type": "realm", "hidden_act": "gelu_new", "retriever_proj_size": D, "span_hidden_size": W, "max_span_width": 4,
}  # fmt: skip


def random(seed, shapes):
  rng = np.random.default_rng(seed)
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def bert_shapes(prefix=""):
  """HF's BertModel: a weight is [outputs, inputs]."""
  shapes = {
    "embeddings.word_embeddings.weight": (V, E),
    "embeddings.position_embeddings.weight": (L, E),
    "embeddings.token_type_embeddings.weight": (2, E),
    "embeddings.LayerNorm.weight": (E,),
    "embeddings.LayerNorm.bias": (E,),
    "pooler.dense.weight": (E, E),
    "pooler.dense.bias": (E,),
  }
  for n in range(2):
    layer = f"encoder.layer.{n}"
    for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
      shapes |= {f"{layer}.{name}.weight": (E, E), f"{layer}.{name}.bias": (E,)}
    shapes |= {f"{layer}.intermediate.dense.weight": (F, E), f"{layer}.intermediate.dense.bias": (F,)}
    shapes |= {f"{layer}.output.dense.weight": (E, F), f"{layer}.output.dense.bias": (E,)}
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
      shapes |= {f"{layer}.{name}.weight": (E,), f"{layer}.{name}.bias": (E,)}
  return {prefix + name: shape for name, shape in shapes.items()}


def predictions_shapes(prefix=""):
  """HF's masked-word head, with its own copy of the word embeddings."""
  head = f"{prefix}cls.predictions."
  return {
    f"{head}transform.dense.weight": (E, E),
    f"{head}transform.dense.bias": (E,),
    f"{head}transform.LayerNorm.weight": (E,),
    f"{head}transform.LayerNorm.bias": (E,),
    f"{head}decoder.weight": (V, E),
    f"{head}bias": (V,),
  }


def embedder_shapes(prefix=""):
  cls = f"{prefix}cls."
  projection = {f"{cls}dense.weight": (D, E), f"{cls}dense.bias": (D,)}
  projection |= {f"{cls}LayerNorm.weight": (D,), f"{cls}LayerNorm.bias": (D,)}
  return bert_shapes(f"{prefix}realm.") | predictions_shapes(prefix) | projection


def reader_shapes(prefix=""):
  qa = f"{prefix}qa_outputs."
  spans = {f"{qa}dense_intermediate.weight": (2 * W, E), f"{qa}dense_intermediate.bias": (2 * W,)}
  spans |= {f"{qa}layer_normalization.weight": (W,), f"{qa}layer_normalization.bias": (W,)}
  spans |= {f"{qa}dense_output.weight": (1, W), f"{qa}dense_output.bias": (1,)}
  return bert_shapes(f"{prefix}realm.") | predictions_shapes(prefix) | spans


def open_qa(num_passages=5):
  """RealmForOpenQA's tensors."""
  shapes = embedder_shapes("embedder.") | reader_shapes("reader.") | {"block_emb": (num_passages, D)}
  tensors = random(1, shapes)
  tensors["reader.cls.predictions.decoder.weight"] = tensors["reader.realm.embeddings.word_embeddings.weight"]
  return tensors


def masked_lm():
  """BertForPreTraining's tensors, as the checkpoints of Google's are at HF."""
  tensors = random(2, bert_shapes("bert.") | predictions_shapes() | {"cls.seq_relationship.weight": (2, E)})
  tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
  return tensors


def write(directory, tensors, config=None, vocabulary=VOCABULARY):
  """A directory in HF's form."""
  directory.mkdir(parents=True, exist_ok=True)
  save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, directory / "model.safetensors")
  if config is not None:
    (directory / "config.json").write_text(json.dumps(config))
  if vocabulary is not None:
    vocabulary.save(directory / "vocab.txt")
  return directory


def write_sharded(directory, tensors, config=None):
  """The same in two files and an index; returns the names of the files."""
  directory.mkdir(parents=True, exist_ok=True)
  files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
  shard_of = {name: files[i % 2] for i, name in enumerate(tensors)}
  for file in files:
    part = {name: np.ascontiguousarray(tensors[name]) for name in tensors if shard_of[name] == file}
    save_file(part, directory / file)
  (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
  if config is not None:
    (directory / "config.json").write_text(json.dumps(config))
  VOCABULARY.save(directory / "vocab.txt")
  return files
