r"""Fine-tuning on questions as in ORQA: 5 passages read, a beam of 5,000, one question a step.

Expected: 40.4 exact match on NaturalQuestions with the paper's pre-training (Table 1 of Guu et al. 2020).
Hardware: the paper's single 12 GB GPU. Cost: some 5 hours on one accelerator for 200,000 steps of one question, by the
estimate of configs/nq.py (8 hours for 316,672); not run at this size by this project yet.

  realm train --config=configs/finetune.py --config.corpus=CORPUS --config.init=RUN \
    --config.questions=FILE.jsonl --workdir=QA
  realm refresh_index --workdir=QA         at the same time
"""

from realm_jax.config import paper_config


def get_config():
  return paper_config("finetune")
