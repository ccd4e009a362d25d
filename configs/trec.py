r"""CuratedTREC: --config=configs/trec.py as in the paper, --config=configs/trec.py:improved with what came after it.

The answers are regular expressions; FILE is CuratedTREC's training file, whose name tells so (docs/questions.md).
Expected: 42.9 on the test questions from the paper's pre-training (Table 1 of Guu et al. 2020; 80 epochs). Improved:
some 5 points more, as REALM++ gained.
Cost, estimated from the arithmetic at 10 TFLOP/s reached: 3 hours on one accelerator, 5 improved. While the
accelerator waits, the host searches 108,240 beams of 5,000, which has not been measured, and looks for the patterns:
0.3 hours if a question's beam stays what it was in its first epoch, 11 if it were a wholly other one in each
(docs/finetuning.md). Not run at this size by this project yet.

  realm train --config=configs/trec.py --config.corpus=CORPUS --config.init=RUN \
    --config.questions=FILE:train --workdir=CT
  realm refresh_index --workdir=CT         at the same time
  realm evaluate --workdir=CT --questions=FILE:dev --every_checkpoint
  realm evaluate --workdir=CT --questions=TEST_FILE --checkpoint=best
"""

from realm_jax.config import question_config


def get_config(variant="paper"):
  return question_config(num_questions=1_353, num_epochs=80, variant=variant)
