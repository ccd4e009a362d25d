"""Open-QA from MiniLM (6 layers, 384 wide): what docs/results.md reports, run by launch/openqa_results.sh.

The retriever starts as the sentence encoder that all-MiniLM-L6-v2 is. The script says what is trained on what; the
numbers here are those of the reader's warm start.
"""

from realm_jax.config import paper_config


def get_config():
  config = paper_config("finetune")
  config.model.update(hidden_size=384, num_layers=6, num_heads=12, mlp_size=1536, gelu_is_approximate=False)
  config.model.update(pooling="mean", retrieval_size=384)
  config.model.dropout_rate = 0.0  # its random numbers cost a third of the step on a CPU
  config.optimizer.corrects_bias = True
  config.query_length = 32
  config.joint_length = 40
  config.update(batch_size=32, num_steps=60, num_passages=1, beam_size=100)
  config.optimizer.learning_rate = 3e-5
  config.optimizer.warmup_steps = 6
  config.log_every = 10
  config.checkpoint.update(every=50, keep=1)
  config.index.refresh = "inline"  # the passage tower is frozen: it embeds once
  config.index.export_every = 100_000
  config.index.batch_size = 64
  return config
