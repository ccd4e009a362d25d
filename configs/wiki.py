"""The loop on 20,000 passages of Wikipedia from BERT-tiny: --config=configs/wiki.py:STAGE.

What docs/results.md reports, run by launch/wiki_results.sh. Set --config.corpus, --config.init (a BERT-tiny in HF form
for ict and mlm, the ICT run for pretrain) and, for pretrain, --config.init_reader (the mlm run).
"""

from realm_jax.config import paper_config


def get_config(stage):
  config = paper_config(stage)
  config.model.update(hidden_size=128, num_layers=2, num_heads=2, mlp_size=512)
  config.model.dropout_rate = 0.0  # its random numbers cost a third of the step on a CPU
  config.model.embedding_dropout_rate = 0.0
  config.optimizer.corrects_bias = True
  config.query_length = 48
  config.joint_length = 160
  config.max_masks = 5
  config.log_every = 10
  config.checkpoint.every = 300
  if stage == "ict":
    config.update(num_steps=1200, batch_size=128, removal_rate=0.7)
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 60
  elif stage == "mlm":
    config.update(num_steps=1500, batch_size=64)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 75
  elif stage == "pretrain":
    config.update(num_steps=800, batch_size=16, num_passages=4)
    config.optimizer.learning_rate = 5e-4
    config.optimizer.retriever_scale = 0.2
    config.optimizer.warmup_steps = 40
    config.index.export_every = 100
    config.checkpoint.every = 100
  else:  # the small model that comes with the package, see launch/tiny_model.sh
    config.update(num_steps=1500, batch_size=16, num_passages=3, beam_size=100)
    config.query_length, config.joint_length = 64, 240
    config.optimizer.learning_rate = 5e-4
    config.optimizer.retriever_scale = 0.0  # here the reader learns; the retriever stays one tower
    config.optimizer.warmup_steps = 75
    config.index.export_every = 100_000
  return config
