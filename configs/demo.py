"""The loop in small, on the sample encyclopedia: --config=configs/demo.py:STAGE with ict, pretrain or finetune.

Starts from the small model that comes with the project, a BERT of 2 layers; minutes on 2 CPU cores. launch/demo.sh runs
all of it.
"""

from realm_jax.config import paper_config


def get_config(stage):
  config = paper_config(stage)
  config.corpus = "runs/demo/corpus"
  config.model.update(hidden_size=128, num_layers=2, num_heads=2, mlp_size=512)
  config.model.dropout_rate = 0.0
  config.model.embedding_dropout_rate = 0.0
  config.optimizer.corrects_bias = True  # without it, short runs start with steps that are too large
  config.query_length = 48
  config.joint_length = 224
  config.max_masks = 5
  config.optimizer.warmup_steps = 10
  config.log_every = 10
  config.index.timeout = 300.0
  if stage == "ict":
    config.update(num_steps=100, batch_size=64)
    config.optimizer.learning_rate = 2e-4
    config.checkpoint.every = 100
  elif stage == "mlm":
    config.update(num_steps=60, batch_size=64)
    config.optimizer.learning_rate = 2e-4
    config.checkpoint.every = 60
  elif stage == "pretrain":
    config.update(num_steps=50, batch_size=16, num_passages=4, init="runs/demo/ict")
    config.optimizer.learning_rate = 2e-4
    config.optimizer.retriever_scale = 0.2  # a reader of this size gives little to learn from: what ICT taught is kept
    config.index.export_every = 10
    config.checkpoint.every = 50
  else:
    config.update(num_steps=120, batch_size=16, num_passages=3, beam_size=100, init="runs/demo/pretrain")
    config.optimizer.learning_rate = 1e-4
    config.optimizer.retriever_scale = 0.1  # 726 questions are soon known by heart
    config.index.export_every = 1000
    config.checkpoint.every = 60
  return config
