r"""WebQuestions: --config=configs/wq.py as in the paper, --config=configs/wq.py:improved with what came after it.

Expected: 40.7 exact match on web_questions:test from the paper's pre-training (Table 1 of Guu et al. 2020; 60 epochs).
Improved: some 5 points more, as REALM++ gained.
Cost, estimated from the arithmetic at 10 TFLOP/s reached: 5 hours on one accelerator, 10 improved. While the
accelerator waits, the host adds 0.7 hours of looking for answers and packing (docs/finetuning.md), and its search for
205,020 beams of 5,000, which has not been measured. Not run at this size by this project yet.

  realm train --config=configs/wq.py --config.corpus=CORPUS --config.init=RUN --workdir=WQ
  realm refresh_index --workdir=WQ         at the same time
  realm evaluate --workdir=WQ --questions=web_questions:dev --every_checkpoint
  realm evaluate --workdir=WQ --questions=web_questions:test --checkpoint=best
"""

from realm_jax.config import question_config


def get_config(variant="paper"):
  config = question_config(num_questions=3_417, num_epochs=60, variant=variant)
  config.questions = "web_questions:train"
  return config
