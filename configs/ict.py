"""ICT warm start as in ORQA and REALM: 100,000 steps of 4,096 sentences on 13 million passages of Wikipedia.

Expected: about 13.9 % zero-shot recall@5 on NaturalQuestions (Table 2 of Guu et al. 2020, "baseline retriever").
Hardware: the paper's 64 TPU chips; not run at this size by this project yet.

  realm train --config=configs/ict.py --config.corpus=CORPUS --workdir=RUN
"""

from realm_jax.config import paper_config


def get_config():
  return paper_config("ict")
