"""Open-QA from MiniLM (6 layers, 384 wide): --config=configs/openqa.py:NAME, run by launch/openqa_results.sh.

Expected: 7.4 % exact match on NaturalQuestions' development questions after reader, 9.2 % after finetune, with recall@5
of 31.0 and 30.7 % (docs/results.md). Cost of all three: 93 minutes of 2 CPU cores that had other work too.

NAME is before (one step that changes nothing, for the weights as they come), reader (MiniLM becomes a reader, of
passages that its sentence encoder finds) or finetune (the query tower and the reader together).
"""

from realm_jax.config import paper_config


def get_config(name):
  config = paper_config("finetune")
  config.model.update(hidden_size=384, num_layers=6, num_heads=12, mlp_size=1536, gelu_is_approximate=False)
  config.model.update(pooling="mean", retrieval_size=384)
  config.model.dropout_rate = 0.0  # its random numbers cost a third of the step on a CPU
  config.optimizer.corrects_bias = True
  config.query_length = 32
  config.joint_length = 144
  config.update(batch_size=16, num_passages=2, num_inference_passages=5, reads_annotated_passages=True)
  config.log_every = 10
  config.checkpoint.update(every=100, keep=1)
  config.index.refresh = "inline"  # the passage tower is frozen: it embeds once
  config.index.export_every = 100_000
  config.index.batch_size = 64
  if name == "before":
    config.update(num_steps=1, num_passages=1, beam_size=1, reads_annotated_passages=False)
    config.optimizer.learning_rate = 0.0
  elif name == "reader":
    config.update(num_steps=600, beam_size=20)
    config.optimizer.learning_rate = 1e-4
    config.optimizer.retriever_scale = 0.0
    config.optimizer.warmup_steps = 50
  elif name == "finetune":
    config.update(num_steps=480, num_passages=3, beam_size=100)
    config.optimizer.learning_rate = 5e-5
    config.optimizer.retriever_scale = 0.05
    config.optimizer.warmup_steps = 48
  else:
    raise ValueError(f"unknown name {name!r}; there are before, reader and finetune")
  return config
