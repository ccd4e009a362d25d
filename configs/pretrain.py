"""REALM pre-training as in the paper: 200,000 steps of 512 masked sentences, 8 passages each, one of them null.

Expected: 38.5 % zero-shot recall@5 on NaturalQuestions (Table 2 of Guu et al. 2020, X = Z = Wikipedia).
Hardware: the paper's 64 TPU chips for the trainer and 16 for the indexer; not run at this size by this project yet.

  realm train --config=configs/pretrain.py --config.corpus=CORPUS --config.init=ICT_RUN --workdir=RUN
  realm refresh_index --workdir=RUN        at the same time
"""

from realm_jax.config import paper_config


def get_config():
  return paper_config("pretrain")
