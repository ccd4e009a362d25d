"""Cuts articles into passages of whole sentences that fit a number of wordpieces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import sentencex

from realm_jax.data.articles import Article
from realm_jax.data.spans import Span
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
  spans: tuple[Span, ...] | None = None  # those that came with the article, in characters of the body


def split_articles(articles: Sequence[Article], vocabulary: Vocabulary, **options) -> Iterator[Passage]:
  """Yields the passages of all articles; the options are those of `split_each`."""
  for passages in split_each(articles, vocabulary, **options):
    yield from passages


def split_each(
  articles: Sequence[Article],
  vocabulary: Vocabulary,
  *,
  passage_length: int,
  passage_words: int | None = None,
  whole: bool = False,
) -> Iterator[list[Passage]]:
  """Yields each article's passages: consecutive sentences, packed greedily while title and body fit (as ORQA does).

  Args:
    articles: texts in one language with sentence punctuation.
    vocabulary: cuts the text; each article is cut once, so a passage costs no second tokenisation.
    passage_length: most wordpieces of [CLS] title [SEP] body [SEP].
    passage_words: cut after every so many words instead, wherever that is in a sentence, as DPR does with 100.
    whole: each article is a ready passage; what doesn't fit is cut off at the end.

  A sentence (or a block of passage_words) that is too long for a passage is cut at a word, so that no text is lost. A
  title takes at most half of the passage. An article without a wordpiece gives no passage.
  """
  titles = vocabulary.encode([a.title for a in articles])
  bodies = vocabulary.encode([a.text for a in articles])
  for article, title, body in zip(articles, titles, bodies):
    title_token_id = title.token_id[: passage_length // 2]
    room = passage_length - NUM_SPECIAL_TOKENS - len(title_token_id)
    if room < 1:
      raise ValueError(f"passage_length {passage_length} leaves no room for text; give at least 16")
    num_tokens = len(body.token_id)
    if num_tokens == 0:
      yield []
      continue
    is_continuation = vocabulary.is_continuation_V[body.token_id]
    starts = _first_tokens(body, _sentence_starts(article))
    if whole:
      cuts = [0, min(num_tokens, room)]
    elif passage_words is not None:
      words = [word.start() for word in re.finditer(r"\S+", article.text)]
      blocks = _cut_long_pieces(_first_tokens(body, words[::passage_words]), is_continuation, room)
      starts = np.union1d(starts, blocks)
      cuts = [*blocks.tolist(), num_tokens]
    else:
      starts = _cut_long_pieces(starts, is_continuation, room)
      cuts = _greedy_cuts(starts, num_tokens, room)
    yield list(_cut(article, title_token_id, body, starts, cuts))


def _cut(
  article: Article, title_token_id: np.ndarray, body: Encoding, starts: np.ndarray, cuts: Sequence[int]
) -> Iterator[Passage]:
  """Passages of the body tokens between neighbouring cuts; sentences begin at starts."""
  for n, (first, last) in enumerate(zip(cuts, cuts[1:])):
    char_range = body.char_range[first:last]
    begin = 0 if n == 0 else int(char_range[0, 0])
    # A passage ends where the next one begins, so that its closing marks stay with it.
    end = len(article.text) if last == len(body.token_id) else int(body.char_range[last, 0])
    yield Passage(
      id=article.id if len(cuts) == 2 else f"{article.id}#{n}",
      title=article.title,
      body=article.text[begin:end].rstrip(),
      title_token_id=title_token_id,
      body_encoding=Encoding(body.token_id[first:last], char_range - begin),
      sentence_start=starts[(starts >= first) & (starts < last)] - first,
      spans=_spans_between(article.spans, begin, end),
    )


def _spans_between(spans: Sequence[Span] | None, begin: int, end: int) -> tuple[Span, ...] | None:
  if spans is None:
    return None
  return tuple(Span(s.start - begin, s.end - begin, s.kind) for s in spans if begin <= s.start and s.end <= end)


def _sentence_starts(article: Article) -> Sequence[int]:
  if article.sentence_starts is not None:
    return article.sentence_starts
  return [boundary["start_index"] for boundary in sentencex.get_sentence_boundaries("en", article.text)]


def _first_tokens(encoding: Encoding, begins: Sequence[int]) -> np.ndarray:
  """Index of the first token of each piece of the text; pieces without tokens vanish."""
  first_token = np.searchsorted(encoding.char_range[:, 0], begins)
  first_token = first_token[first_token < len(encoding.token_id)]
  return np.unique(np.concatenate([[0], first_token]))


def _cut_long_pieces(starts: np.ndarray, is_continuation: np.ndarray, room: int) -> np.ndarray:
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
