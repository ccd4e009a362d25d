"""The configurations of the golden files, with their weights and inputs: NumPy alone, the same in both environments."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

NUM_RECORDS = 16  # passages of open-QA
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Case(NamedTuple):
  """One configuration; letters as in realm_jax/batch.py."""

  name: str
  seed: int
  hidden_size: int
  num_layers: int
  num_heads: int
  mlp_size: int
  retrieval_size: int
  towers_are_shared: bool
  span_hidden_size: int
  max_span_width: int
  num_queries: int  # B
  query_length: int  # Q
  passage_length: int  # P
  joint_length: int  # J
  num_passages: int  # K, of pre-training
  num_read: int  # K, of question answering
  beam_size: int  # R
  answers: str  # found by both rules, by the "reader" alone, by the "retriever" alone, or by "none"
  vocab_size: int = 40
  padding_id: int = 0  # HF freezes this row of the word embeddings; its default of 1 is [UNK] in BERT's vocabulary


CASES = (
  Case("shared", 1, 16, 2, 4, 32, 8, True, 12, 4, 2, 7, 11, 17, 4, 3, 5, "both"),
  Case("separate", 2, 12, 1, 3, 20, 5, False, 6, 3, 3, 5, 9, 13, 2, 2, 4, "both", vocab_size=53),
  Case("one_passage", 3, 8, 1, 1, 8, 3, True, 4, 2, 1, 3, 5, 9, 1, 2, 2, "reader"),
  Case("eight_passages", 4, 10, 3, 2, 24, 6, False, 8, 5, 2, 9, 13, 21, 8, 5, 9, "both"),
  Case("no_answer", 5, 12, 2, 2, 16, 4, True, 6, 6, 2, 6, 8, 19, 3, 4, 6, "none"),
  Case("retriever_only", 6, 8, 2, 2, 16, 7, True, 10, 10, 1, 8, 10, 23, 6, 3, 7, "retriever"),
  Case("frozen_unk", 7, 16, 1, 4, 24, 8, False, 8, 3, 2, 7, 12, 15, 5, 2, 3, "both", padding_id=1),
)


def weight(case: Case, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """A tensor of the reference, by its name there: uniform, so wide that no layer is idle."""
  x = 2 * _uniform(case, name, shape) - 1
  if name.endswith("bias"):
    x = 0.2 * x
  elif len(shape) == 1:  # of a layer norm
    x = 1 + 0.4 * x
  elif "_embeddings." not in name:  # [out, in]
    x = x * (3 / shape[1]) ** 0.5
  return x.astype(np.float32)


def probe(case: Case, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Weights of a sum over an output that has no loss of its own, so that its gradients can be compared."""
  return (2 * _uniform(case, f"probe of {name}", shape) - 1).astype(np.float32)


def packed(case: Case, name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
  """Token ids, segments and the mask of sequences of 3 to L tokens; the first is never padded."""
  length = shape[-1]
  num_tokens = _integers(case, f"{name} length", (*shape[:-1], 1), 3, length + 1)
  num_tokens.flat[0] = length
  is_token = np.arange(length) < num_tokens
  token_id = np.where(is_token, _integers(case, name, shape, 1, case.vocab_size), 0)
  segment_id = np.where(is_token, np.arange(length) >= num_tokens // 2, 0)
  return {"token_id": token_id, "segment_id": segment_id, "is_token": is_token}


def masked_words(case: Case) -> dict[str, np.ndarray]:
  """Scores of the K passages, and 1 to 3 masked positions a query with their words."""
  shape = (case.num_queries, 3)
  first = _integers(case, "mask", (case.num_queries, 1), 0, case.query_length - 2)
  is_masked = np.arange(3) <= _integers(case, "masks", (case.num_queries, 1), 0, 3)
  return {
    "score": probe(case, "score", (case.num_queries, case.num_passages)) * 3,
    "position": np.where(is_masked, first + np.arange(3), 0),
    "target": np.where(is_masked, _integers(case, "target", shape, 5, case.vocab_size), 0),
    "weight": is_masked.astype(np.float32),
  }


def spans(case: Case) -> dict[str, np.ndarray]:
  """What the reader is told: scores of the beam, the body's tokens, gold spans; one of them is too wide."""
  read = packed(case, "read", (case.num_read, case.joint_length))
  is_body = (read["segment_id"] == 1) & read["is_token"]
  first, last = is_body.argmax(1), read["is_token"].sum(1) - 1
  start = np.full((case.num_read, 4), -1)
  end = start.copy()
  if case.answers in ("both", "reader"):
    for row in range(0, case.num_read, 2):  # every second passage has none
      width = np.minimum(np.arange(4) * case.max_span_width // 2, last[row] - first[row])
      start[row], end[row] = last[row] - width, last[row]
  beam_has_answer = _integers(case, "has answer", (case.beam_size,), 0, 2) == 1
  beam_has_answer[-1] = True
  if case.answers in ("none", "reader"):
    beam_has_answer[:] = False
  beam_score = probe(case, "beam score", (case.beam_size,)) * 2
  return {
    "beam_score": beam_score, "beam_has_answer": beam_has_answer, "is_body": is_body, "start": start, "end": end,
  }  # fmt: skip


class OpenQuestion(NamedTuple):
  vocabulary: tuple[str, ...]
  records: tuple[str, ...]
  record_emb_ND: np.ndarray  # whole multiples of 1/32, so that bfloat16 holds them
  question: str
  answers: tuple[str, ...]


def open_question(case: Case) -> OpenQuestion:
  """A corpus of words w5, w6, ..., a question, and answers that stand in some records (or in none)."""
  vocabulary = (*SPECIAL_TOKENS, *(f"w{i}" for i in range(len(SPECIAL_TOKENS), case.vocab_size)))
  # The last three words stand in no record. Each record fits the reader with the question, uncut.
  words = _integers(case, "records", (NUM_RECORDS, case.joint_length), 5, case.vocab_size - 3)
  num_words = _integers(case, "record length", (NUM_RECORDS,), case.joint_length // 2, case.joint_length - 5)
  records = tuple(" ".join(vocabulary[i] for i in row[:n]) for row, n in zip(words, num_words))
  question = " ".join(vocabulary[i] for i in _integers(case, "question", (2,), 5, case.vocab_size))
  answers = (vocabulary[-1], " ".join(vocabulary[-3:-1]))
  if case.answers in ("both", "reader"):
    answers = (vocabulary[-1], *(vocabulary[i] for i in words[0, :3]), " ".join(vocabulary[i] for i in words[1, 1:3]))
  emb_ND = _integers(case, "record_emb", (NUM_RECORDS, case.retrieval_size), -64, 65) / np.float32(32)
  return OpenQuestion(vocabulary, records, emb_ND.astype(np.float32), question, answers)


def _uniform(case: Case, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """float64 in [0, 1) from a stream of PCG64 that (seed, name) gives; raw bits, which no version of NumPy changes."""
  bits = np.random.PCG64([case.seed, zlib.crc32(name.encode())]).random_raw(int(np.prod(shape)))
  return ((bits >> np.uint64(11)) * 2.0**-53).reshape(shape)


def _integers(case: Case, name: str, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
  return (low + _uniform(case, name, shape) * (high - low)).astype(np.int64)
