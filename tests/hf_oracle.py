"""Run by an interpreter that has torch and transformers: HF's own models, and what they compute.

python hf_oracle.py make DIR         random models, a directory a class, with what each computes in outputs.npz
python hf_oracle.py check CLASS DIR  loads a directory: prints the keys that miss or are too many, and what it computes
  python hf_oracle.py embed DIR TEXTS  embeds a JSON list of texts as sentence-transformers does: mean, then length 1
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from safetensors import safe_open
from transformers import BertConfig, RealmConfig, RealmEmbedder

SIZES = {
  "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
  "max_position_embeddings": 40, "pad_token_id": 0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
REALM_SIZES = {
  **SIZES, "retriever_proj_size": 16, "span_hidden_size": 12, "max_span_width": 4, "num_block_records": 7,
  "reader_beam_size": 2, "reader_seq_len": 24,
}  # fmt: skip
CLASSES = {
  "embedder": "RealmEmbedder",
  "scorer": "RealmScorer",
  "two_towers": "RealmScorer",
  "encoder": "RealmKnowledgeAugEncoder",
  "reader": "RealmReader",
  "openqa": "RealmForOpenQA",
  "bert": "BertModel",
  "bert_exact": "BertModel",
  "bert_head": "BertForPreTraining",
  "masked_lm": "BertForMaskedLM",
  "dpr": "DPRContextEncoder",
}
TOKENS = torch.tensor([[2, 9, 30, 11, 3, 0], [2, 20, 3, 41, 59, 3]])
MASK = (TOKENS != 0).long()
SEGMENT = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]])


def config(name):
  act = {"hidden_act": "gelu"} if name in ("bert_exact", "dpr") else {"hidden_act": "gelu_new"}
  if name == "dpr":
    return transformers.DPRConfig(**SIZES, **act, projection_dim=5)
  return BertConfig(**SIZES, **act) if "bert" in name or name == "masked_lm" else RealmConfig(**REALM_SIZES, **act)


def make(directory):
  torch.manual_seed(0)
  for name, class_name in CLASSES.items():
    extra = {"query_embedder": RealmEmbedder(config(name))} if name == "two_towers" else {}
    model = getattr(transformers, class_name)(config(name), **extra).eval()
    for parameter in model.state_dict().values():  # no parameter is 0 or 1, so that none can be left out unseen
      parameter.normal_(0.1, 0.3)
    model.tie_weights()
    model.save_pretrained(directory / name)
    model.save_pretrained(directory / f"{name}_torch", safe_serialization=False)
    np.savez(directory / name / "outputs.npz", **compute(model))


@torch.no_grad()
def compute(model):
  inputs = {"input_ids": TOKENS, "attention_mask": MASK, "token_type_ids": SEGMENT}
  name = type(model).__name__
  if name == "RealmEmbedder":
    result = {"projected": model(**inputs).projected_score}
  elif name == "RealmScorer":
    model.config.num_candidates = 1
    candidates = {f"candidate_{key}": value[:, None] for key, value in inputs.items()}
    result = {"score": model(**inputs, **candidates).relevance_score}
  elif name == "RealmKnowledgeAugEncoder":
    result = {"log_prob": model(**{k: v[:, None] for k, v in inputs.items()}).logits.log_softmax(-1)}
  elif name == "RealmReader":
    result = spans(model, inputs)
  elif name == "RealmForOpenQA":
    result = {"projected": model.embedder(**inputs).projected_score, "block_emb": model.block_emb}
    result |= spans(model.reader, inputs)
  elif name == "BertForPreTraining":
    result = {"log_prob": model(**inputs).prediction_logits.log_softmax(-1)}
  elif name == "BertForMaskedLM":
    result = {"log_prob": model(**inputs).logits.log_softmax(-1)}
  elif name == "DPRContextEncoder":
    hidden = model.ctx_encoder.bert_model(**inputs).last_hidden_state
    result = {"hidden": hidden}
  else:
    output = model(**inputs)
    result = {"hidden": output.last_hidden_state}
    if model.pooler is not None:
      result["pooled"] = output.pooler_output
  return {key: value.numpy() for key, value in result.items()}


def spans(reader, inputs):
  output = reader(**inputs, relevance_score=torch.tensor([0.3, 0.7]), block_mask=SEGMENT.bool(), return_dict=True)
  hidden = reader.realm(**inputs).last_hidden_state
  logit, start, end = reader.qa_outputs(hidden, SEGMENT.bool())
  best = torch.cat([output.block_idx.reshape(1), output.start_pos.reshape(1), output.end_pos.reshape(1)])
  return {"span_logit": logit[1], "start": start, "end": end, "best": best}


def check(class_name, directory):
  extra = {}
  if "query_embedder.cls.dense.bias" in keys_of(directory):
    extra = {"query_embedder": RealmEmbedder(RealmConfig.from_pretrained(directory))}
  if class_name == "BertModel" and "pooler.dense.bias" not in keys_of(directory):
    extra = {"add_pooling_layer": False}
  model, info = getattr(transformers, class_name).from_pretrained(directory, output_loading_info=True, **extra)
  np.savez(directory / "outputs.npz", **compute(model.eval()))
  print(
    json.dumps({key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")})
  )


@torch.no_grad()
def embed(directory, texts):
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  model = transformers.AutoModel.from_pretrained(directory).eval()
  inputs = tokenizer(texts, padding=True, return_tensors="pt")
  is_token = inputs["attention_mask"][..., None]
  mean = (model(**inputs).last_hidden_state * is_token).sum(1) / is_token.sum(1)
  print(json.dumps(torch.nn.functional.normalize(mean).tolist()))


def keys_of(directory):
  with safe_open(directory / "model.safetensors", "pt") as file:
    return set(file.keys())


if __name__ == "__main__":
  if sys.argv[1] == "make":
    make(pathlib.Path(sys.argv[2]))
  elif sys.argv[1] == "embed":
    embed(sys.argv[2], json.loads(sys.argv[3]))
  else:
    check(sys.argv[2], pathlib.Path(sys.argv[3]))
