"""What crosses the doors between the rooms: the dimension key and the batch types.

Dimension key (a tensor's name ends in its letters):
  B queries · K passages per query · R passages in the beam of the early retriever loss
  Q P J tokens of query, passage, joint input · M masked positions · S answer spans
  N passages in the corpus · D retrieval width · E hidden · H heads · V vocabulary
"""

from typing import Any, NamedTuple

# Arrays are NumPy on the host and JAX on the device; the shapes and meanings are the same.
Array = Any

NO_PASSAGE = -1  # stands where a query comes from no passage of the corpus
NULL_PASSAGE = -1  # the passage id of the null passage


class Packed(NamedTuple):
  """Token sequences of one fixed length in BERT's format, made by `data.packing.pack`."""

  token_id: Array  # int32 [..., L], 0 where there is no token
  segment_id: Array  # int32 [..., L], 0 up to the first [SEP], then 1
  is_token: Array  # bool [..., L], False for the padding, which comes last


class QueryBatch(NamedTuple):
  """Queries of any of the three kinds; a kind leaves what it doesn't have at 0 or -1."""

  token_id_BQ: Array  # int32, [CLS] query [SEP]
  num_tokens_B: Array  # int32, with [CLS] and [SEP]
  passage_id_B: Array  # int32, the passage it was drawn from
  sentence_B2: Array  # int32, token range in that passage's body
  sentence_is_removed_B: Array  # bool, the passage is shown without the sentence
  mask_position_BM: Array  # int32, positions in the query
  mask_target_BM: Array  # int32, the token behind each mask
  mask_weight_BM: Array  # float32, 1 where a masked token is predicted
  question_id_B: Array  # int32, row of the question list
  negative_id_BK: Array  # int32, -1 in the place of its own passage, then its hard negatives, if any are asked for


class IctBatch(NamedTuple):
  """Inverse cloze task with K passages per query, its own in slot 0, then its hard negatives."""

  query_BQ: Packed
  passage_BKP: Packed
  sentence_is_removed_B: Array


class ReadingBatch(NamedTuple):
  """Masked-word prediction with one passage per query: the rest of its own, another, or the null passage."""

  joint_BJ: Packed
  mask_position_BM: Array
  mask_target_BM: Array
  mask_weight_BM: Array


class MaskedBatch(NamedTuple):
  """Masked-word prediction with K passages per query, the null passage in slot 0."""

  query_BQ: Packed
  passage_BKP: Packed
  joint_BKJ: Packed
  mask_position_BM: Array
  mask_target_BM: Array
  mask_weight_BM: Array


class QuestionBatch(NamedTuple):
  """Question answering: a beam for the retriever, its first passages for the reader, after the null passage if it has
  that."""

  query_BQ: Packed
  beam_emb_BRD: Array  # float32, the index' embeddings of the retrieved passages
  beam_has_answer_BR: Array  # bool
  joint_BKJ: Packed
  is_body_BKJ: Array  # bool, passage tokens, where answers may stand; of the null passage its [SEP], for "no answer"
  gold_start_BKA: Array  # int32, positions of the answers' first tokens, -1 for none
  gold_end_BKA: Array  # int32, positions of the answers' last tokens, -1 for none
  passage_BKP: Packed | None = None  # the passages that are read, to be embedded anew; None: the index' are taken
  null_BP: Packed | None = None  # the null passage, if it is read, for the passage tower
