"""Runs Hugging Face's REALM on the cases and writes its outputs and gradients: tests/golden/<case>.safetensors.

The reference wants an environment of its own, with Python 3.11:

  pip install torch==2.13.0 transformers==4.39.3 numpy==1.26.4 safetensors
  PYTHONPATH=tests python -m golden.make_goldens

Names in a file are COMPONENT/out/NAME and COMPONENT/grad/NAME, with the reference's parameter names. A parameter
without a gradient there is left out. All dropout rates are 0. Two runs differ in the last bits (by 7e-7 of an array's
largest element in one trial): the order of torch's sums depends on where the arrays lie.
"""

import pathlib
import tempfile

import numpy as np
import torch
import transformers
from golden import cases
from golden.cases import Case
from safetensors.numpy import save_file
from transformers import (
  RealmConfig,
  RealmEmbedder,
  RealmForOpenQA,
  RealmKnowledgeAugEncoder,
  RealmReader,
  RealmRetriever,
  RealmScorer,
  RealmTokenizer,
)
from transformers.models.realm.modeling_realm import RealmBertModel


def hf_config(case: Case) -> RealmConfig:
  return RealmConfig(
    vocab_size=case.vocab_size,
    hidden_size=case.hidden_size,
    num_hidden_layers=case.num_layers,
    num_attention_heads=case.num_heads,
    intermediate_size=case.mlp_size,
    max_position_embeddings=case.joint_length,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    retriever_proj_size=case.retrieval_size,
    num_candidates=case.num_passages,
    span_hidden_size=case.span_hidden_size,
    max_span_width=case.max_span_width,
    reader_beam_size=case.num_read,
    reader_seq_len=case.joint_length,
    searcher_beam_size=case.beam_size,
    num_block_records=cases.NUM_RECORDS,
    pad_token_id=case.padding_id,
  )


def set_weights(model: torch.nn.Module, case: Case, component: str) -> None:
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.copy_(torch.from_numpy(cases.weight(case, f"{component}.{name}", tuple(parameter.shape))))


def hf_inputs(packed: dict[str, np.ndarray], prefix: str = "") -> dict[str, torch.Tensor]:
  names = {"token_id": "input_ids", "segment_id": "token_type_ids", "is_token": "attention_mask"}
  return {prefix + names[name]: torch.from_numpy(value.astype(np.int64)) for name, value in packed.items()}


def probed(output: torch.Tensor, case: Case, name: str) -> torch.Tensor:
  return (output * torch.from_numpy(cases.probe(case, name, tuple(output.shape)))).sum()


def run_bert(case: Case):
  model = RealmBertModel(hf_config(case))
  set_weights(model, case, "bert")
  output = model(**hf_inputs(cases.packed(case, "bert", (case.num_queries, case.joint_length))))
  hidden, pooled = output.last_hidden_state, output.pooler_output
  loss = probed(hidden, case, "hidden") + probed(pooled, case, "pooled")
  return model, loss, {"hidden": hidden, "pooled": pooled}, {}


def run_embedder(case: Case):
  model = RealmEmbedder(hf_config(case))
  set_weights(model, case, "embedder")
  emb = model(**hf_inputs(cases.packed(case, "query", (case.num_queries, case.query_length)))).projected_score
  return model, probed(emb, case, "emb"), {"emb": emb}, {}


def run_scorer(case: Case):
  config = hf_config(case)
  model = RealmScorer(config, None if case.towers_are_shared else RealmEmbedder(config))
  set_weights(model, case, "scorer")
  passage = cases.packed(case, "passage", (case.num_queries, case.num_passages, case.passage_length))
  output = model(
    **hf_inputs(cases.packed(case, "query", (case.num_queries, case.query_length))), **hf_inputs(passage, "candidate_")
  )
  outputs = {"score": output.relevance_score, "query_emb": output.query_score, "passage_emb": output.candidate_score}
  return model, probed(output.relevance_score, case, "relevance"), outputs, {}


def run_encoder(case: Case):
  model = RealmKnowledgeAugEncoder(hf_config(case))
  set_weights(model, case, "encoder")
  masked = cases.masked_words(case)
  labels = np.full((case.num_queries, case.joint_length), -100)
  for b, m in zip(*np.nonzero(masked["weight"])):
    labels[b, masked["position"][b, m]] = masked["target"][b, m]
  score = torch.from_numpy(masked["score"]).requires_grad_()
  output = model(
    **hf_inputs(cases.packed(case, "joint", (case.num_queries, case.num_passages, case.joint_length))),
    relevance_score=score,
    labels=torch.from_numpy(labels),
    mlm_mask=torch.from_numpy((labels != -100).astype(np.int64)),
  )
  logit = output.logits.view(case.num_queries, case.num_passages, case.joint_length, -1)
  rows = np.arange(case.num_queries)[:, None]
  at_masks = logit.transpose(1, 2)[rows, masked["position"]].transpose(1, 2)  # [B, K, M, V]
  return model, output.loss, {"logit": at_masks, "loss": output.loss}, {"score": score}


def run_reader(case: Case):
  model = RealmReader(hf_config(case))
  set_weights(model, case, "reader")
  span_logit = []  # a copy: the reader adds the passages' scores in place
  model.qa_outputs.register_forward_hook(lambda module, inputs, output: span_logit.append(output[0].clone()))
  told = {name: torch.from_numpy(value) for name, value in cases.spans(case).items()}
  score = told["beam_score"].requires_grad_()
  output = model(
    **hf_inputs(cases.packed(case, "read", (case.num_read, case.joint_length))),
    relevance_score=score,
    block_mask=told["is_body"],
    has_answers=told["beam_has_answer"],
    start_positions=told["start"],
    end_positions=told["end"],
    return_dict=True,
  )
  return model, output.loss, {"span_logit": span_logit[0], **reader_outputs(output)}, {"score": score}


def run_open_qa(case: Case):
  asked = cases.open_question(case)
  with tempfile.TemporaryDirectory() as scratch:
    vocabulary = pathlib.Path(scratch) / "vocab.txt"
    vocabulary.write_text("\n".join(asked.vocabulary) + "\n")
    tokenizer = RealmTokenizer(str(vocabulary), do_lower_case=True)
  records = np.array([record.encode() for record in asked.records], dtype=object)
  model = RealmForOpenQA(hf_config(case), RealmRetriever(records, tokenizer))
  set_weights(model, case, "open_qa")
  model.block_emb.copy_(torch.from_numpy(asked.record_emb_ND))
  question = tokenizer([asked.question], return_tensors="pt")
  answer_ids = tokenizer(list(asked.answers), add_special_tokens=False).input_ids
  model.eval()
  _, predicted_id = model(**question, answer_ids=answer_ids, return_dict=False)
  model.train()  # a beam of searcher_beam_size, the dropout rates being 0
  output, _ = model(**question, answer_ids=answer_ids, return_dict=False)
  return model, output.loss, {"predicted_id": predicted_id, **reader_outputs(output)}, {}


def reader_outputs(output) -> dict[str, torch.Tensor]:
  names = ("loss", "retriever_loss", "reader_loss", "reader_correct", "block_idx", "candidate", "start_pos", "end_pos")
  return {name: getattr(output, name) for name in names}


COMPONENTS = {
  "bert": run_bert,
  "embedder": run_embedder,
  "scorer": run_scorer,
  "encoder": run_encoder,
  "reader": run_reader,
  "open_qa": run_open_qa,
}


def as_array(tensor: torch.Tensor) -> np.ndarray:
  array = tensor.detach().numpy()
  # In C order: safetensors writes the bytes as they lie.
  return np.array(array, np.float32 if array.dtype.kind == "f" else np.int32, order="C")


def main() -> None:
  for case in cases.CASES:
    arrays = {}
    for component, run in COMPONENTS.items():
      model, loss, outputs, inputs = run(case)
      loss.backward()
      arrays |= {f"{component}/out/{name}": as_array(value) for name, value in outputs.items()}
      differentiated = dict(model.named_parameters()) | inputs
      arrays |= {f"{component}/grad/{n}": as_array(p.grad) for n, p in differentiated.items() if p.grad is not None}
    path = pathlib.Path(__file__).parent / f"{case.name}.safetensors"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    save_file(arrays, path, metadata=versions)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
  main()
