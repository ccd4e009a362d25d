"""Which passages hold an answer, told from their wordpieces wherever these tell it."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np

from realm_jax.data.answers import has_answer, has_words, matchable
from realm_jax.data.packing import Tokens
from realm_jax.data.passages import PassageStore
from realm_jax.data.vocabulary import Vocabulary

_NUM_CHARACTERS = 0x2100  # alphabets and signs of punctuation come first in Unicode
_UNKNOWN, _PLAIN, _STRANGE = 0, 1, 2


def plain_characters(vocabulary: Vocabulary) -> str:
  """Those that the vocabulary's rules and `matchable` read alike: as the same letter of a word, as none, or as its end.

  Both read a character without regard to its neighbours. Only of a capital sigma Python makes another letter at the end
  of a word. What they make of a plain character is plain, too; so a word with another one is in no plain text.
  """

  def is_alike(character: str) -> bool:
    text = f"a{character}a"
    return [w for w in vocabulary.words(text) if matchable(w) != "  "] == matchable(text).split()

  alike = "".join(c for c in map(chr, range(_NUM_CHARACTERS)) if c != "\u03a3" and is_alike(c))
  known = frozenset(alike)
  return "".join(c for c in alike if known.issuperset(matchable(c)))


class AnswerFinder:
  """Finds passages that hold an answer, by the rule of `has_answer`.

  To normalise the 5,000 texts of a beam takes longer than a step does on an accelerator. But a text of plain characters
  has the same words in both forms, so that its wordpieces, which are stored, hold the answer's in a row if and only if
  its words do. The other texts, one in ten of Wikipedia's, are normalised: those with a sign that is no punctuation
  ("5°C" are two words and one for the vocabulary), with letters from U+2100 on, such as Chinese ones, or with [UNK].
  """

  def __init__(self, store: PassageStore, vocabulary: Vocabulary):
    """vocabulary is the one that the passages were cut with."""
    self._store, self._vocabulary = store, vocabulary
    self._kind_N = np.zeros(len(store), np.uint8)  # found out when a passage is first asked for
    self._is_sign_V = np.array([len(token) == 1 and not token.isalnum() for token in vocabulary.tokens])
    # All strange passages of Wikipedia would be a million, of 1,200 bytes: 1.3 GB.
    self._words = functools.lru_cache(1 << 20)(lambda i: matchable(store.body(i)).encode())
    self._last_match: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}

  def have_answer(self, passage_id_R: np.ndarray, answers: Sequence[str]) -> np.ndarray:
    """Which of the passages hold one of the answers, bool [R]."""
    is_plain_R = self._are_plain(passage_id_R)
    has_answer_R = np.zeros(len(passage_id_R), bool)
    tokens = self._store.body_tokens(passage_id_R[is_plain_R])
    words_A = [matchable(answer) for answer in answers]
    for words in words_A:
      has_answer_R[is_plain_R] |= self._hold(tokens, self._pieces(words))
    encoded_A = [words.encode() for words in words_A]
    for r in np.flatnonzero(~has_answer_R & ~is_plain_R):
      has_answer_R[r] = has_words(self._words(int(passage_id_R[r])), encoded_A)
    return has_answer_R

  def have_match(self, passage_id_R: np.ndarray, patterns: Sequence[str]) -> np.ndarray:
    """The same for regular expressions, whose finds may begin within a word: each text is searched, bool [R].

    When a question comes again an epoch later, nearly the same passages are asked for. So what was found the last time
    is kept: 45 kB a question with a beam of 5,000.
    """
    key = tuple(patterns)
    known = dict(zip(*(x.tolist() for x in self._last_match[key]))) if key in self._last_match else {}
    has_match_R = np.array(
      [
        known[i] if i in known else has_answer(self._store.body(i), patterns, regex=True) for i in passage_id_R.tolist()
      ],
      bool,
    )
    self._last_match[key] = passage_id_R.copy(), has_match_R
    return has_match_R

  @functools.cached_property
  def _strange(self) -> re.Pattern[str]:
    return re.compile(f"[^{re.escape(plain_characters(self._vocabulary))}]")

  def _are_plain(self, passage_id_R: np.ndarray) -> np.ndarray:
    new_id_R = passage_id_R[self._kind_N[passage_id_R] == _UNKNOWN]
    tokens = self._store.body_tokens(new_id_R)
    is_unk_RL = (tokens.token_id_RL == self._vocabulary.unk_id) & _is_inside(tokens)
    # A word that was too long for one passage goes on in the next one, where its text would be cut in another way.
    first_R = tokens.token_id_RL[np.arange(len(new_id_R)), tokens.start_R]
    is_strange_R = is_unk_RL.any(1) | self._vocabulary.is_continuation_V[first_R]
    for i, is_strange in zip(new_id_R.tolist(), is_strange_R.tolist()):
      is_strange = is_strange or self._strange.search(self._store.body(i)) is not None
      self._kind_N[i] = _STRANGE if is_strange else _PLAIN
    return self._kind_N[passage_id_R] == _PLAIN

  def _pieces(self, words: str) -> np.ndarray:
    """The wordpieces of an answer's words; none if no plain passage can hold them."""
    piece_L = self._vocabulary.encode([words])[0].token_id
    if self._strange.search(words) or (piece_L == self._vocabulary.unk_id).any():
      return piece_L[:0]
    return piece_L

  def _hold(self, tokens: Tokens, piece_L: np.ndarray) -> np.ndarray:
    """Whether plain passages hold these pieces in a row, signs left out, as whole words; no pieces are nowhere."""
    has_answer_R = np.full(len(tokens.token_id_RL), len(piece_L) > 0)
    if len(piece_L) == 0:
      return has_answer_R
    for piece in sorted(set(piece_L.tolist()), reverse=True):  # in BERT's vocabularies the last are the rarest
      has_answer_R[has_answer_R] = (tokens.token_id_RL[has_answer_R] == piece).any(1)
    row = np.flatnonzero(has_answer_R)
    has_answer_R[:] = False
    few = Tokens(*(x[row] for x in tokens))
    is_word_RL = _is_inside(few) & ~self._is_sign_V[few.token_id_RL]
    token_id, row = few.token_id_RL[is_word_RL], np.repeat(row, is_word_RL.sum(1))
    place = np.flatnonzero(token_id[: max(0, len(token_id) - len(piece_L) + 1)] == piece_L[0])
    for offset, piece in enumerate(piece_L[1:], 1):
      place = place[token_id[place + offset] == piece]
    goes_on = np.append(self._vocabulary.is_continuation_V[token_id], False)[place + len(piece_L)]
    place = place[~goes_on & (row[place] == row[place + len(piece_L) - 1])]
    has_answer_R[row[place]] = True
    return has_answer_R


def _is_inside(tokens: Tokens) -> np.ndarray:
  position = np.arange(tokens.token_id_RL.shape[1], dtype=np.int32) - tokens.start_R[:, None]
  return (position >= 0) & (position < tokens.num_tokens_R[:, None])
