"""The paper's Table 2 in small: --config=configs/table2.py:NAME, run by launch/table2.sh.

Expected: exact match of 4.0 % and recall@5 of 40.1 % for realm, 3.8 % and 41.2 % for the baseline (docs/results.md).
Cost: 20 minutes of one CPU core a seed.

NAME is reading (the reader's warm start), realm, random_span, random_token,
stale and frozen (the pre-trainings), or finetune.
"""

from realm_jax.config import paper_config

STAGES = {"reading": "mlm", "finetune": "finetune"}  # the others: pretrain
_REFRESH_EVERY = 40  # steps; each refresh takes as long as 40 steps


def get_config(row):
  config = paper_config(STAGES.get(row, "pretrain"))
  config.model.update(hidden_size=128, num_layers=2, num_heads=2, mlp_size=512)
  config.model.dropout_rate = 0.0  # its random numbers cost a third of the step on a CPU
  config.model.embedding_dropout_rate = 0.0
  config.optimizer.corrects_bias = True
  config.query_length = 40
  config.joint_length = 100
  config.max_masks = 4
  if row == "reading":
    # Words that the rest of the passage holds, and other passages from the start, so that it learns when to copy.
    config.update(num_steps=1500, batch_size=32, recurring_rate=1.0, distractor_rate=0.3)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 40
    config.checkpoint.every = 500
  elif row == "finetune":
    config.update(num_steps=60, batch_size=16, num_passages=5, beam_size=100)
    config.optimizer.learning_rate = 2e-4
    config.optimizer.retriever_scale = 0.2
    config.optimizer.warmup_steps = 6
    config.checkpoint.every = 60
  else:
    config.update(num_steps=120, batch_size=16, num_passages=4)
    config.masking = row if row.startswith("random") else "salient_span"
    config.optimizer.learning_rate = 3e-4
    # 0.5 took 6 points of recall@5 in these few steps.
    config.optimizer.retriever_scale = 0.0 if row == "frozen" else 0.1
    config.optimizer.warmup_steps = 10
    config.index.export_every = 30 * _REFRESH_EVERY if row == "stale" else _REFRESH_EVERY
    config.checkpoint.every = 120
  config.log_every = 10
  config.index.refresh = "inline"
  config.checkpoint.keep = 1
  return config
