"""The config of a run whose training took place elsewhere."""

from __future__ import annotations

from ml_collections import ConfigDict

from realm_jax.config import paper_config
from realm_jax.data.passages import PassageStore
from realm_jax.weights import names
from realm_jax.weights.contents import Weights
from realm_jax.weights.tensors import WeightsError

_STAGES = ("ict", "pretrain", "finetune")  # each holds what the one before it does


def run_config(weights: Weights, store: PassageStore) -> ConfigDict:
  """The source's sizes, the corpus, and the paper's settings for the rest; num_steps is 0.

  Raises:
    WeightsError: there is no retriever, or the corpus has another vocabulary, or longer passages than are read.
  """
  model = weights.complete_model()
  if names.QUERY_TOWER not in weights.parts:
    raise WeightsError(
      f"{weights.where} has no retriever, and without one there is no run; add --input=...,RETRIEVER, or train one: "
      "realm train --config.init=..."
    )
  vocabulary = store.vocabulary()
  is_same = weights.vocabulary is None or weights.vocabulary.digest == vocabulary.digest
  if not is_same or model["vocab_size"] != len(vocabulary):
    raise WeightsError(
      f"the corpus {store.path} has another vocabulary ({len(vocabulary)} wordpieces) than {weights.where} "
      f"({model['vocab_size']}); build the corpus with the model's: realm build_corpus --vocab=DIR"
    )
  if store.passage_length > model["max_length"]:
    raise WeightsError(
      f"the passages of {store.path} have up to {store.passage_length} tokens, {weights.where} reads at most "
      f"{model['max_length']}; build the corpus with a smaller --passage_length"
    )
  reader = weights.parts.get(names.READER, ())
  found = "finetune" if names.SPAN_HEAD in reader else "pretrain" if names.MASKED_WORD_HEAD in reader else "ict"
  # A run of mlm has no retriever, so that one was added to what it has.
  trained = {"": found, "mlm": "pretrain"}.get(weights.stage, weights.stage)
  config = paper_config(min(trained, found, key=_STAGES.index))
  config.model.update({field: value for field, value in model.items() if field in config.model})
  config.model.towers_are_shared = names.PASSAGE_TOWER not in weights.parts
  config.update(weights.reading)
  config.corpus, config.init, config.num_steps = str(store.path.resolve()), weights.where, 0
  config.query_length = min(config.query_length, model["max_length"])
  config.joint_length = min(config.joint_length, model["max_length"])
  return config
