"""Answers without passages: planted probabilities, and a small reader asked one question at a time."""

import jax
import numpy as np
import pytest

from realm_jax.batch import Packed
from realm_jax.config import make_reader, paper_config
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from realm_jax.serving import closed_book
from realm_jax.serving.closed_book import MAX_ANSWER_LENGTH, fill_in_answers

WORDS = ["who", "what", "?", "marie", "cur", "##ie", "paris", ".", "of"]
VOCABULARY = Vocabulary([*SPECIAL_TOKENS, *WORDS], lowercase=True)
ID = {token: i for i, token in enumerate(VOCABULARY.tokens)}


class Planted:
  """log p(word | the word before it, how many masks are left from here on), by table; anything else is -9."""

  def __init__(self, table):
    self.log_prob = np.full((len(VOCABULARY), MAX_ANSWER_LENGTH + 1, len(VOCABULARY)), -9.0, np.float32)
    for (before, num_masks, word), log_prob in table.items():
      self.log_prob[ID[before], num_masks, ID[word]] = log_prob

  def apply(self, params, joint, mask_position, method):
    assert method == "masked_word_log_prob"
    rows = jax.numpy.arange(len(mask_position))
    before_B = joint.token_id[rows, mask_position[:, 0] - 1]
    num_masks_B = (joint.token_id == VOCABULARY.mask_id).sum(1)
    return jax.numpy.asarray(self.log_prob)[before_B, num_masks_B][:, None]


def test_the_filling_with_the_best_mean_log_probability_is_taken():
  reader = Planted(
    {
      ("?", 1, "[SEP]"): -0.1, ("?", 1, "."): -0.2, ("?", 1, "##ie"): -0.3,  # none of them begins an answer
      ("?", 1, "paris"): -2.0,
      ("?", 3, "marie"): -1.0, ("marie", 2, "cur"): -0.8, ("cur", 1, "##ie"): -0.5, ("cur", 1, "[PAD]"): -0.1,
      ("who", 1, "of"): -0.5,
      ("who", 2, "what"): -0.2, ("what", 1, "."): -1.0,  # -0.6 a wordpiece
    }
  )  # fmt: skip
  answers = list(fill_in_answers(reader, {}, VOCABULARY, ["What?", "Who"], query_length=16))
  assert answers == ["marie curie", "of"]


def test_more_questions_than_a_batch_and_an_end_that_is_cut_off(monkeypatch):
  monkeypatch.setattr(closed_book, "_BATCH_SIZE", 2)
  reader = Planted({("paris", 1, "marie"): -1.0, ("of", 1, "cur"): -1.0, ("what", 1, "paris"): -1.0})
  questions = ["of paris of what", "who of", "paris what"]
  # Of ten places [CLS], [SEP] and five masks leave three for the question.
  assert list(fill_in_answers(reader, {}, VOCABULARY, questions, query_length=10)) == ["cur", "cur", "paris"]


@pytest.fixture(scope="module")
def reader():
  model = paper_config("pretrain").model
  model.update(hidden_size=8, num_layers=1, num_heads=2, mlp_size=8, max_length=24, dropout_rate=0.0, retrieval_size=4)
  return make_reader(model, len(VOCABULARY))


def test_a_reader_is_asked_with_the_null_passage(reader):
  """The same answer as from inputs that are written out, each alone and without padding."""
  row = np.zeros((1, 8), np.int32)
  params = reader.init(jax.random.key(1), Packed(row, row, row == 0), row[:, :1])["params"]
  params = jax.tree.map(lambda x: np.random.default_rng(0).normal(0, 0.5, x.shape).astype(np.float32), params)
  apply = jax.jit(lambda *x: reader.apply({"params": params}, *x, method="masked_word_log_prob"))
  question = VOCABULARY.encode(["Who of Paris?"])[0].token_id.tolist()
  best = (-np.inf, "")
  for length in range(1, MAX_ANSWER_LENGTH + 1):
    filled, total = [], 0.0
    for i in range(length):
      masks = [VOCABULARY.mask_id] * (length - i)
      ids = [VOCABULARY.cls_id, *question, *filled, *masks, VOCABULARY.sep_id, VOCABULARY.sep_id]
      ids = np.array([ids + [0] * (23 - len(ids))], np.int32)
      is_token = np.arange(23) < len(question) + length + 3
      segment = (np.arange(23) == len(question) + length + 2).astype(np.int32)
      log_prob_V = np.array(apply(Packed(ids, segment[None], is_token[None]), np.array([[len(question) + 1 + i]])))[
        0, 0
      ]
      log_prob_V[: len(SPECIAL_TOKENS)] = -np.inf
      if i == 0:
        log_prob_V[[ID["##ie"], ID["."], ID["?"]]] = -np.inf
      filled.append(int(log_prob_V.argmax()))
      total += log_prob_V.max()
    best = max(best, (total / length, " ".join(VOCABULARY.tokens[w] for w in filled).replace(" ##", "")))
  assert list(fill_in_answers(reader, params, VOCABULARY, ["Who of Paris?"], query_length=20)) == [best[1]]
