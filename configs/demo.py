"""The loop in small, on the sample encyclopedia: --config=configs/demo.py:STAGE with ict, pretrain or finetune.

A BERT of 2 layers from random weights; minutes on 2 CPU cores. launch/demo.sh runs all of it.
"""

from realm_jax.config import paper_config


def get_config(stage):
  config = paper_config(stage)
  config.corpus = "runs/demo/corpus"
  config.model.update(hidden_size=64, num_layers=2, num_heads=2, mlp_size=256, max_length=256, span_hidden_size=64)
  config.model.retrieval_size = 64
  config.model.dropout_rate = 0.0
  config.optimizer.corrects_bias = True  # without it, short runs start with steps that are too large
  config.query_length = 64
  config.joint_length = 224
  config.optimizer.warmup_steps = 20
  config.log_every = 10
  config.index.timeout = 300.0
  if stage == "ict":
    config.update(num_steps=120, batch_size=64)
    config.model.embedding_dropout_rate = 0.0
    config.optimizer.learning_rate = 2e-3
    config.checkpoint.every = 120
  elif stage == "pretrain":
    config.update(num_steps=50, batch_size=16, num_passages=4, init="runs/demo/ict")
    config.optimizer.learning_rate = 1e-3
    config.index.export_every = 10
    config.checkpoint.every = 50
  else:
    config.update(num_steps=60, batch_size=16, num_passages=3, beam_size=100, init="runs/demo/pretrain")
    config.optimizer.learning_rate = 1e-3
    config.index.export_every = 1000
    config.checkpoint.every = 50
  return config
