"""Cuts articles into passages of whole sentences that fit a number of wordpieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import sentencex

from realm_jax.data.articles import Article
from realm_jax.data.vocabulary import Encoding, Vocabulary

NUM_SPECIAL_TOKENS = 3  # [CLS] title [SEP] body [SEP]


class Passage(NamedTuple):
  """A piece of an article: text, tokens, and where its sentences begin."""

  id: str
  title: str
  body: str
  title_token_id: np.ndarray  # int32
  body_encoding: Encoding
  sentence_start: np.ndarray  # int32, body token at which each sentence begins, the first 0


def split_articles(
  articles: Sequence[Article], vocabulary: Vocabulary, *, passage_length: int, whole: bool = False
) -> Iterator[Passage]:
  """Yields passages: consecutive sentences, packed greedily while title and body fit (section 1.4 of ORQA's rules).

  Args:
    articles: texts in one language with sentence punctuation.
    vocabulary: cuts the text; each article is cut once, so a passage costs no second tokenisation.
    passage_length: most wordpieces of [CLS] title [SEP] body [SEP].
    whole: each article is a ready passage; what doesn't fit is cut off at the end.

  A sentence that is too long for a passage is cut at a word, so that no text is lost. A title takes at most
  half of the passage.
  """
  titles = vocabulary.encode([a.title for a in articles])
  bodies = vocabulary.encode([a.text for a in articles])
  for article, title, body in zip(articles, titles, bodies):
    title_token_id = title.token_id[: passage_length // 2]
    room = passage_length - NUM_SPECIAL_TOKENS - len(title_token_id)
    if room < 1:
      raise ValueError(f"passage_length {passage_length} leaves no room for text; give at least 16")
    if len(body.token_id) == 0:
      continue
    starts = _sentence_starts(article.text, body)
    if whole:
      cuts = [0, min(len(body.token_id), room)]
    else:
      starts = _cut_long_sentences(starts, vocabulary.is_continuation_V[body.token_id], room)
      cuts = _greedy_cuts(starts, len(body.token_id), room)
    for n, (first, last) in enumerate(zip(cuts, cuts[1:])):
      char_range = body.char_range[first:last]
      begin = 0 if n == 0 else char_range[0, 0]
      # A passage ends where the next one begins, so that its closing marks stay with it.
      end = len(article.text) if last == len(body.token_id) else body.char_range[last, 0]
      text = article.text[begin:end]
      yield Passage(
        id=article.id if len(cuts) == 2 else f"{article.id}#{n}",
        title=article.title,
        body=text.rstrip(),
        title_token_id=title_token_id,
        body_encoding=Encoding(body.token_id[first:last], char_range - begin),
        sentence_start=starts[(starts >= first) & (starts < last)] - first,
      )


def _sentence_starts(text: str, encoding: Encoding) -> np.ndarray:
  """Index of the first token of each sentence; sentences without tokens vanish."""
  begins = [boundary["start_index"] for boundary in sentencex.get_sentence_boundaries("en", text)]
  first_token = np.searchsorted(encoding.char_range[:, 0], begins)
  first_token = first_token[first_token < len(encoding.token_id)]
  return np.unique(np.concatenate([[0], first_token]))


def _cut_long_sentences(starts: np.ndarray, is_continuation: np.ndarray, room: int) -> np.ndarray:
  cuts: list[int] = []
  for begin, end in zip(starts, np.append(starts[1:], len(is_continuation))):
    cuts.append(begin)
    while end - begin > room:
      cut = begin + room
      while cut > begin + 1 and is_continuation[cut]:
        cut -= 1
      if is_continuation[cut]:  # one word longer than a passage
        cut = begin + room
      cuts.append(cut)
      begin = cut
  return np.array(cuts)


def _greedy_cuts(starts: np.ndarray, num_tokens: int, room: int) -> list[int]:
  cuts = [0]
  ends = np.append(starts[1:], num_tokens)
  for begin, end in zip(starts, ends):
    if end - cuts[-1] > room:
      cuts.append(int(begin))
  return cuts + [num_tokens]
