r"""NaturalQuestions: --config=configs/nq.py as in the paper, --config=configs/nq.py:improved with what came after it.

Expected: 40.4 exact match on nq_open:test from the paper's pre-training (Table 1 of Guu et al. 2020; 4 epochs).
Improved: some 5 points more, as REALM++ gained. REALM++ also used NaturalQuestions' annotated passages, which nq_open
does not name: reads_annotated_passages is off here. To turn it on take a file that names them, such as DPR's
(docs/questions.md), over a corpus with its ids: --config.questions=FILE --config.reads_annotated_passages=True.
Cost, estimated from the arithmetic at 10 TFLOP/s reached: 8 hours on one accelerator, and 40 minutes for ten
checkpoints to answer the development questions; improved 16 hours, and 13 with 100 passages a question. While the
accelerator waits, the host adds 0.8 hours of looking for answers and packing (docs/finetuning.md), and its search for
316,672 beams of 5,000, which has not been measured. Not run at this size by this project yet.

  realm train --config=configs/nq.py --config.corpus=CORPUS --config.init=RUN --workdir=NQ
  realm refresh_index --workdir=NQ         at the same time
  realm evaluate --workdir=NQ --questions=nq_open:dev --every_checkpoint
  realm evaluate --workdir=NQ --questions=nq_open:test --checkpoint=best
"""

from realm_jax.config import question_config


def get_config(variant="paper"):
  config = question_config(num_questions=79_168, num_epochs=4, variant=variant)
  config.questions = "nq_open:train"
  return config
