"""The reference's parameter names in terms of ours."""

import re

BERT = (  # ours -> the reference's; a kernel is transposed
  (r"(word|position|token_type)_embeddings/embedding", r"embeddings.\1_embeddings.weight"),
  (r"layer_norm/(\w+)", r"embeddings.LayerNorm.\1"),
  (r"layer_(\d+)/(query|key|value)/(\w+)", r"encoder.layer.\1.attention.self.\2.\3"),
  (r"layer_(\d+)/attention_output/(\w+)", r"encoder.layer.\1.attention.output.dense.\2"),
  (r"layer_(\d+)/attention_layer_norm/(\w+)", r"encoder.layer.\1.attention.output.LayerNorm.\2"),
  (r"layer_(\d+)/mlp_in/(\w+)", r"encoder.layer.\1.intermediate.dense.\2"),
  (r"layer_(\d+)/mlp_out/(\w+)", r"encoder.layer.\1.output.dense.\2"),
  (r"layer_(\d+)/mlp_layer_norm/(\w+)", r"encoder.layer.\1.output.LayerNorm.\2"),
  (r"pooler/(\w+)", r"pooler.dense.\1"),
)
TOWER = (*((f"encoder/{ours}", f"realm.{theirs}") for ours, theirs in BERT),
  (r"projection/(\w+)", r"cls.dense.\1"),
  (r"layer_norm/(\w+)", r"cls.LayerNorm.\1"),
)  # fmt: skip
READER = (*((f"encoder/{ours}", f"realm.{theirs}") for ours, theirs in BERT),
  (r"masked_word_head/transform/(\w+)", r"cls.predictions.transform.dense.\1"),
  (r"masked_word_head/layer_norm/(\w+)", r"cls.predictions.transform.LayerNorm.\1"),
  (r"masked_word_head/bias", r"cls.predictions.bias"),
  (r"span_head/endpoint/(\w+)", r"qa_outputs.dense_intermediate.\1"),
  (r"span_head/layer_norm/(\w+)", r"qa_outputs.layer_normalization.\1"),
  (r"span_head/score/(\w+)", r"qa_outputs.dense_output.\1"),
)  # fmt: skip
SCORER = (
  *((f"passage_tower/{ours}", f"embedder.{theirs}") for ours, theirs in TOWER),
  *((f"query_tower/{ours}", f"query_embedder.{theirs}") for ours, theirs in TOWER),
)
SHARED_SCORER = tuple((f"query_tower/{ours}", f"embedder.{theirs}") for ours, theirs in TOWER)
OPEN_QA = (
  *((f"retriever/{ours}", theirs) for ours, theirs in SHARED_SCORER),
  *((f"reader/{ours}", f"reader.{theirs}") for ours, theirs in READER),
)


def reference_name(path, names) -> str:
  """A leaf's path in our tree -> the name of the reference's tensor."""
  ours = "/".join(key.key for key in path)
  found = [match.expand(theirs) for pattern, theirs in names if (match := re.fullmatch(pattern, ours))]
  assert len(found) == 1, f"{ours} has the names {found}"
  return re.sub(r"\.(kernel|scale)$", ".weight", found[0])
