"""A WordPiece vocabulary: text to token ids with character offsets."""

from __future__ import annotations

import collections
import itertools
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
import xxhash
from tokenizers import models, normalizers, pre_tokenizers, trainers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_SIZE = 2**16  # token ids are stored as uint16
_PIECE = 2**18  # characters that are cut into wordpieces at once
_MAX_CHARACTERS = 1000  # as in BERT's training: the rare scripts of an encyclopedia would fill the vocabulary


class Encoding(NamedTuple):
  """Token ids of one text, and the characters that each covers."""

  token_id: np.ndarray  # int32 [L]
  char_range: np.ndarray  # int32 [L, 2], start and end (exclusive) in the text


class Vocabulary:
  """WordPieces and BERT's rules to cut text into them.

  Special tokens are never read from text: a literal "[MASK]" is cut like any other word.
  """

  def __init__(self, tokens: Sequence[str], *, lowercase: bool):
    """tokens[i] is the wordpiece with id i.

    Raises:
      ValueError: special tokens or room for uint16 ids are missing, or a token stands twice.
    """
    self.tokens = tuple(tokens)
    self.lowercase = lowercase
    id_of = {token: i for i, token in enumerate(self.tokens)}
    missing = [token for token in SPECIAL_TOKENS if token not in id_of]
    if missing:
      raise ValueError(
        f"the vocabulary of {len(self.tokens)} wordpieces lacks {', '.join(missing)}; "
        "give a BERT vocab.txt, one wordpiece a line"
      )
    if len(self.tokens) > MAX_SIZE:
      raise ValueError(f"the vocabulary has {len(self.tokens)} wordpieces; at most {MAX_SIZE} fit the store")
    if len(id_of) != len(self.tokens):
      twice = next(token for i, token in enumerate(self.tokens) if id_of[token] != i)
      raise ValueError(f"the vocabulary holds {twice!r} twice; every wordpiece must stand on one line")
    self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (id_of[t] for t in SPECIAL_TOKENS)
    self.is_continuation_V = np.array([t.startswith("##") for t in self.tokens])
    self._tokenizer = tokenizers.Tokenizer(models.WordPiece(id_of, unk_token="[UNK]", max_input_chars_per_word=100))
    self._tokenizer.normalizer = _normalizer(lowercase)
    self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

  def __len__(self) -> int:
    return len(self.tokens)

  @property
  def digest(self) -> str:
    """Names the vocabulary: the same wordpieces in the same order with the same casing."""
    return xxhash.xxh3_128_hexdigest("\n".join((str(self.lowercase),) + self.tokens).encode())

  def encode(self, texts: Sequence[str]) -> list[Encoding]:
    """Texts -> token ids, without [CLS] and [SEP], and the characters that each covers.

    >>> vocabulary = Vocabulary([*SPECIAL_TOKENS, "rad", "##ium"], lowercase=True)
    >>> encoding = vocabulary.encode(["Radium!"])[0]
    >>> [vocabulary.tokens[i] for i in encoding.token_id], encoding.char_range.tolist()
    (['rad', '##ium', '[UNK]'], [[0, 3], [3, 6], [6, 7]])
    """
    short = iter(self._encode([text for text in texts if len(text) <= _PIECE]))
    return [next(short) if len(text) <= _PIECE else self._encode_long(text) for text in texts]

  def _encode_long(self, text: str) -> Encoding:
    """Goes from space to space, as the tokenizer needs some hundred bytes a wordpiece."""
    pieces, begin = [], 0
    while begin < len(text):
      end = begin + _PIECE
      if end < len(text):
        space = max(text.rfind(" ", begin + 1, end), text.rfind("\n", begin + 1, end))
        end = space if space > 0 else end
      (piece,) = self._encode([text[begin:end]])
      pieces.append(Encoding(piece.token_id, piece.char_range + np.int32(begin)))
      begin = end
    return Encoding(*map(np.concatenate, zip(*pieces)))

  def _encode(self, texts: Sequence[str]) -> list[Encoding]:
    return [
      Encoding(np.array(e.ids, np.int32), np.array(e.offsets, np.int32).reshape(-1, 2))
      for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ]

  def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
    """Token ids alone, which take less time than `encode`."""
    return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

  def words(self, text: str) -> list[str]:
    """What is cut into wordpieces: words as the vocabulary spells them, and each sign alone.

    >>> Vocabulary(SPECIAL_TOKENS, lowercase=True).words("É. U.S.")
    ['e', '.', 'u', '.', 's', '.']
    """
    text = self._tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text)]

  def to_bytes(self) -> bytes:
    """The content of vocab.txt."""
    return "".join(t + "\n" for t in self.tokens).encode()

  def save(self, path) -> None:
    """Writes a vocab.txt, one wordpiece a line."""
    pathlib.Path(path).write_bytes(self.to_bytes())

  def __reduce__(self):  # the tokenizer doesn't travel between processes
    return _restore, (self.tokens, self.lowercase)

  @classmethod
  def load(cls, path, *, lowercase: bool) -> Vocabulary:
    """Reads a vocab.txt; raises FileNotFoundError, or ValueError where it is none."""
    path = pathlib.Path(path)
    if not path.is_file():
      raise FileNotFoundError(f"no vocabulary at {path}; give a vocab.txt with one wordpiece a line")
    try:
      text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); give a BERT vocab.txt") from error
    return cls(text.rstrip("\n").split("\n"), lowercase=lowercase)

  @classmethod
  def train(cls, texts: Iterable[str], *, size: int, lowercase: bool) -> Vocabulary:
    """Learns at most `size` wordpieces from texts, which are read twice; the same texts give the same vocabulary.

    Raises:
      ValueError: the texts can be read only once, or size has no room for a character.
    """
    if iter(texts) is texts:
      raise ValueError("texts is an iterator, but is read twice; give a list, or an object whose __iter__ starts again")
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = _normalizer(lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if size < len(SPECIAL_TOKENS) + 2:
      raise ValueError(
        f"size {size} has no room for {len(SPECIAL_TOKENS)} special tokens and a character; give 100 or more"
      )
    characters = _frequent_characters(texts, tokenizer, (size - len(SPECIAL_TOKENS)) // 2)
    # Left to itself the trainer numbers "##x" in the order of a hash table, and ties between merges go by number.
    continuations = [f"##{c}" for c in characters if _continues_word(c, tokenizer)]
    trainer = trainers.WordPieceTrainer(
      vocab_size=size,
      special_tokens=[*SPECIAL_TOKENS, *continuations],
      initial_alphabet=characters,
      limit_alphabet=len(characters),
      show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    id_of = tokenizer.get_vocab()
    return cls(sorted(id_of, key=lambda token: id_of[token]), lowercase=lowercase)


def _restore(tokens: tuple[str, ...], lowercase: bool) -> Vocabulary:
  return Vocabulary(tokens, lowercase=lowercase)


def _frequent_characters(texts: Iterable[str], tokenizer: tokenizers.Tokenizer, limit: int) -> list[str]:
  """The most frequent characters of words, sorted."""
  count_raw: collections.Counter[str] = collections.Counter()
  for text in texts:
    count_raw.update(text)
  count: collections.Counter[str] = collections.Counter()
  for raw, number in count_raw.items():
    for character in tokenizer.normalizer.normalize_str(raw):
      if not character.isspace():
        count[character] += number
  ranked = sorted(count, key=lambda c: (-count[c], c))
  return sorted(itertools.islice(ranked, min(limit, _MAX_CHARACTERS)))


def _continues_word(character: str, tokenizer: tokenizers.Tokenizer) -> bool:
  """Whether it may stand inside a word, as punctuation and Chinese characters may not."""
  text = tokenizer.normalizer.normalize_str(f"a{character}")
  return len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1


def _normalizer(lowercase: bool) -> normalizers.Normalizer:
  return normalizers.BertNormalizer(
    clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
  )
