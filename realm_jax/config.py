"""What an experiment's config holds: the paper's values as defaults, and the models that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax.core import FrozenDict
from ml_collections import ConfigDict

from realm_jax.model.reader import Reader
from realm_jax.model.retriever import Retriever, Tower

# Each stage, and the networks that it holds.
STAGES = {
  "ict": ("retriever",),
  "mlm": ("reader",),
  "pretrain": ("retriever", "reader"),
  "finetune": ("retriever", "reader"),
}

# The least that a number may be; shares lie between 0 and 1. What depends on other fields is checked where it is used.
_LEAST = {
  1: (
    "num_steps", "batch_size", "num_microbatches", "max_masks", "log_every", "mesh.fsdp", "mesh.tensor",
    "model.hidden_size", "model.num_layers", "model.num_heads", "model.mlp_size", "model.retrieval_size",
    "model.span_hidden_size", "model.max_span_width", "checkpoint.every", "checkpoint.keep",
    "index.export_every", "index.num_slices", "index.keep", "index.batch_size",
  ),
  3: ("query_length",),  # [CLS], a word, [SEP]
  0: (
    "seed", "num_hard_negatives", "num_inference_passages",
    "optimizer.learning_rate", "optimizer.retriever_scale", "optimizer.weight_decay",
    "optimizer.max_grad_norm", "index.exact_below", "index.warn_age", "index.max_age", "index.timeout",
  ),
  -1: ("optimizer.warmup_steps",),
}  # fmt: skip
_SHARES = (
  "removal_rate", "null_rate", "distractor_rate", "recurring_rate", "model.dropout_rate", "model.embedding_dropout_rate"
)  # fmt: skip


def paper_config(stage: str) -> ConfigDict:
  """The settings of Guu et al. 2020 (section 4.3) and of Google's code where the paper is silent.

  Config files take this and set what differs; every field can be overridden by --config.a.b=value.

  >>> config = paper_config("pretrain")
  >>> config.num_steps, config.batch_size, config.model.num_layers
  (200000, 512, 12)
  """
  config = ConfigDict()
  config.stage = stage  # ict, mlm, pretrain or finetune
  config.corpus = ""  # a passage store (realm build_corpus)
  config.mixture = ""  # pretrain: where the sentences come from, "corpora/news:0.8,corpora/wiki:0.2"; empty: corpus
  config.masking = "salient_span"  # pretrain: or random_span, random_token
  config.questions = ""  # finetune: training questions, such as mine.jsonl:train or nq_open:train
  config.init = ""  # start from: a run directory, or weights: HF's directory or hub id, a TensorFlow checkpoint
  config.init_reader = ""  # start the reader from something else, of the same forms as init
  config.seed = 0
  config.num_steps = 200_000
  config.batch_size = 512
  config.num_microbatches = 1  # parts of a batch, one after the other: less memory, the same gradient but for dropout

  mesh = config.mesh = ConfigDict()  # the devices as data x fsdp x tensor; data is what the other two leave
  mesh.fsdp = 1  # devices that share the parameters and the optimizer's state, and split the batch too
  mesh.tensor = 1  # devices that share each layer's heads and hidden units

  model = config.model = ConfigDict()
  model.hidden_size = 768
  model.num_layers = 12
  model.num_heads = 12
  model.mlp_size = 3072
  model.max_length = 512
  model.dropout_rate = 0.1
  model.attention_dropout_rate = -1.0  # of the attention weights; -1: dropout_rate
  model.layer_norm_epsilon = 1e-12
  model.gelu_is_approximate = True  # its tanh form, as in Google's code; most BERTs at HF have the exact one
  model.retrieval_size = 128
  model.pooling = "cls"  # what is projected: [CLS] through BERT's pooler, or the mean of all tokens, to start from a
  # sentence encoder (see model.retriever.Tower)
  model.towers_are_shared = True
  model.projection_layer_norm_epsilon = 1e-12
  model.embedding_dropout_rate = 0.0
  model.span_hidden_size = 256
  model.max_span_width = 10
  model.dtype = "float32"  # of the arithmetic; parameters are float32
  model.attention = "naive"  # or, with attention_dropout_rate=0: xla, cudnn, splash (see model.bert.Bert)
  model.remat = "none"  # layer: keep the layers' inputs only for the backward pass, for a third more arithmetic; dots:
  # and the dense products' results, to do only attention and element-wise operations again

  config.query_length = 96
  config.joint_length = 384  # query and passage together, as the reader sees them
  config.max_masks = 10  # predicted tokens of a masked span
  config.removal_rate = 0.9  # ict: share of passages shown without the query's sentence
  config.num_hard_negatives = 0  # ict: similar passages that each query is told apart from, besides the batch's; the
  # paper has none
  config.hard_negatives = ""  # ict: where they are drawn from, made by realm mine_negatives
  config.null_rate = 0.1  # mlm: share of sentences read with the null passage instead of the rest of their passage
  config.distractor_rate = 0.0  # mlm: share of sentences read with another passage
  config.recurring_rate = 0.0  # mlm: share of sentences with a span masked whose tokens the rest of the passage holds
  config.marginalize_per_example = False  # equation 1 of the paper; Google's code marginalises per token
  config.retriever_loss = "joint"  # pretrain, finetune: or emdr2, perplexity_distillation, leave_one_out; these learn
  # from the passages that are read alone, see docs/finetuning.md
  config.trains_passage_tower = False  # finetune: embed the passages that are read anew in each step, with gradients
  # into their tower, and refresh the index as in pre-training; False, as in the paper: tower and index are frozen
  config.num_passages = 8  # read for each query; in pre-training one of them is the null passage
  config.reads_null_passage = False  # finetune: read the null passage besides, whose one span says "no answer": it is
  # the right one where no passage that is read has a gold span. False, as in the paper: such questions teach nothing
  config.reads_annotated_passages = False  # finetune: questions may name articles or passages ("annotated": [id, ...]);
  # where these hold an answer, one is read, and they alone are right for the retriever. False, as in the paper: the
  # names are ignored, and every passage with an answer is right
  config.num_inference_passages = 0  # finetune: read for each question when it is answered; 0: num_passages
  config.beam_size = 5000  # finetune: passages in the early retriever loss

  optimizer = config.optimizer = ConfigDict()
  optimizer.learning_rate = 3e-5
  optimizer.warmup_steps = -1  # -1: BERT's min(10000, max(100, num_steps / 10))
  optimizer.retriever_scale = 1.0  # the retriever's learning rate over the reader's; 0 freezes the retriever
  optimizer.weight_decay = 0.01
  optimizer.max_grad_norm = 1.0
  optimizer.corrects_bias = False  # BERT's optimizer does not

  index = config.index = ConfigDict()
  index.searcher = "auto"  # exact, scann, or auto: exact below index.exact_below passages
  index.exact_below = 100_000
  scann = index.scann = ConfigDict()  # 0: chosen from the number of passages, see docs/index.md
  scann.num_leaves = 0
  scann.num_leaves_searched = 0
  scann.rescored = 0  # passages whose score is computed exactly
  scann.training_sample_size = 0
  scann.anisotropic_threshold = 0.0
  scann.soar_lambda = 0.0
  scann.overretrieve_factor = 0.0
  index.export_every = 500  # steps between exports of the passage tower for the indexer
  index.sync = False  # adopt each snapshot at the next export, and wait for it: reproducible to the bit
  index.refresh = "process"  # by realm refresh_index; inline: by the trainer itself, between steps
  index.num_slices = 1  # of the corpus; with more, each snapshot embeds one of them anew
  index.warn_age = 0  # steps; an older index is warned of. 0: ten times export_every
  index.max_age = 0  # steps; with an index of this age the trainer waits for a younger one. 0: never
  index.timeout = 3600.0  # seconds to wait for a snapshot, or for the trainer
  index.keep = 3  # snapshots
  index.batch_size = 256  # passages embedded at once

  checkpoint = config.checkpoint = ConfigDict()
  checkpoint.every = 1000
  checkpoint.keep = 3

  config.log_every = 100
  config.tensorboard = False

  if stage == "ict":
    config.num_steps, config.batch_size = 100_000, 4096
    config.query_length = 64
    config.model.embedding_dropout_rate = 0.1
    config.optimizer.learning_rate = 1e-4
  elif stage == "mlm":
    config.optimizer.learning_rate = 1e-4  # BERT's
  elif stage == "finetune":
    config.batch_size = 1
    config.query_length, config.joint_length = 64, 320
    config.num_passages = 5
    config.model.towers_are_shared = False  # the index is frozen, the query tower goes on learning
    config.optimizer.learning_rate = 1e-5
  elif stage != "pretrain":
    raise ValueError(f"unknown stage {stage!r}; the stages are {', '.join(STAGES)}")
  return config.lock()


def question_config(num_questions: int, num_epochs: int, variant: str) -> ConfigDict:
  """Fine-tuning for so many epochs of a question set, with ten checkpoints to choose the best from.

  Args:
    num_questions: in the training part.
    variant: "paper", or "improved" by what REALM++ found (Balachandran et al. 2021): 16 questions a step instead of 1,
      exact search, 10 passages in training and 100 when answering.
  """
  config = paper_config("finetune")
  if variant == "improved":
    config.update(batch_size=16, num_passages=10, num_inference_passages=100)
    config.optimizer.learning_rate = 3e-5  # BERT's for batches of 16
    config.index.searcher = "exact"
  elif variant != "paper":
    raise ValueError(f"unknown variant {variant!r}; the variants are paper and improved")
  config.num_steps = num_questions * num_epochs // config.batch_size
  config.checkpoint.update(every=-(-config.num_steps // 10), keep=10)  # of BERT-base, 40 GB
  return config


def stored_config(stored: dict[str, Any]) -> ConfigDict:
  """The config of a run directory; fields that are younger than the run have their default.

  Raises:
    ValueError: a field that this version doesn't know, or of another type.
  """
  config = paper_config(stored["stage"])
  remedy = "use the version of realm_jax that made it"
  if unknown := sorted(flat_fields(stored).keys() - flat_fields(config.to_dict()).keys()):
    raise ValueError(f"the run's config.json has fields that are unknown here ({', '.join(unknown)}); {remedy}")
  try:
    config.update(stored)
  except TypeError as error:
    raise ValueError(f"the run's config.json doesn't fit: {str(error).splitlines()[0]}; {remedy}") from error
  return config


def check_numbers(config: ConfigDict) -> None:
  """Raises ValueError where a number of a config is out of its bounds."""
  fields = flat_fields(config.to_dict())
  for least, names in _LEAST.items():
    for name in names:
      if not fields[name] >= least:  # nor is NaN
        raise ValueError(f"{name}={fields[name]}, expected at least {least}; set --config.{name} to that or more")
  for name in _SHARES:
    if not 0 <= fields[name] <= 1:
      raise ValueError(f"{name}={fields[name]}, expected a share; set --config.{name} to 0 to 1")


def flat_fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """A config's values by their whole names: "model.hidden_size"."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    flat |= flat_fields(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
  return flat


def make_retriever(model: ConfigDict, vocab_size: int) -> Retriever:
  """The retriever that config.model describes."""
  return Retriever(
    bert=_bert_arguments(model, vocab_size),
    retrieval_size=model.retrieval_size,
    towers_are_shared=model.towers_are_shared,
    layer_norm_epsilon=model.projection_layer_norm_epsilon,
    embedding_dropout_rate=model.embedding_dropout_rate,
    pooling=model.pooling,
  )


def make_reader(model: ConfigDict, vocab_size: int) -> Reader:
  """The reader that config.model describes."""
  return Reader(
    bert=_bert_arguments(model, vocab_size),
    span_hidden_size=model.span_hidden_size,
    max_span_width=model.max_span_width,
  )


def make_tower(model: ConfigDict, vocab_size: int) -> Tower:
  """One tower alone, for the indexer."""
  return make_retriever(model, vocab_size).make_tower()


def _bert_arguments(model: ConfigDict, vocab_size: int) -> FrozenDict:
  return FrozenDict(
    vocab_size=vocab_size,
    hidden_size=model.hidden_size,
    num_layers=model.num_layers,
    num_heads=model.num_heads,
    mlp_size=model.mlp_size,
    max_length=model.max_length,
    dropout_rate=model.dropout_rate,
    attention_dropout_rate=model.attention_dropout_rate,
    layer_norm_epsilon=model.layer_norm_epsilon,
    gelu_is_approximate=model.gelu_is_approximate,
    dtype=jnp.dtype(model.dtype),
    attention=model.attention,
    remat=model.remat,
  )
