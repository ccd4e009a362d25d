"""The vocabulary that comes with weights, and its casing."""

from __future__ import annotations

import pathlib

from realm_jax.data.vocabulary import Vocabulary
from realm_jax.weights.safetensors_file import read_json
from realm_jax.weights.tensors import WeightsError


def read_vocabulary(directory: pathlib.Path) -> Vocabulary | None:
  """vocab.txt or tokenizer.json, cased as tokenizer_config.json says; None if neither is there.

  Raises:
    WeightsError: the files are no WordPiece vocabulary of BERT's.
  """
  tokenizer = read_json(directory / "tokenizer.json") if (directory / "tokenizer.json").is_file() else None
  try:
    if (directory / "vocab.txt").is_file():
      tokens = Vocabulary.load(directory / "vocab.txt", lowercase=True).tokens
    elif tokenizer is not None:
      tokens = _tokens(tokenizer, directory)
    else:
      return None
    return Vocabulary(tokens, lowercase=_is_lowercase(directory, tokenizer, tokens))
  except WeightsError:
    raise
  except ValueError as error:
    raise WeightsError(f"the vocabulary in {directory} can't be used: {error}") from error


def _tokens(tokenizer: dict, directory: pathlib.Path) -> tuple[str, ...]:
  model = tokenizer.get("model")
  id_of = model.get("vocab") if isinstance(model, dict) and model.get("type") == "WordPiece" else None
  if not isinstance(id_of, dict) or set(map(repr, id_of.values())) != set(map(repr, range(len(id_of)))):
    raise WeightsError(
      f"{directory / 'tokenizer.json'} is no WordPiece tokenizer with the ids 0, 1, 2 ...; only BERT's kind is read"
    )
  return tuple(sorted(id_of, key=lambda token: id_of[token]))


def _is_lowercase(directory: pathlib.Path, tokenizer: dict | None, tokens: tuple[str, ...]) -> bool:
  path = directory / "tokenizer_config.json"
  said = read_json(path).get("do_lower_case") if path.is_file() else None
  if said is None and tokenizer is not None and isinstance(tokenizer.get("normalizer"), dict):
    said = tokenizer["normalizer"].get("lowercase")
  if said is None:  # an uncased vocabulary has no capital letter but in its special tokens
    return not any(token != token.lower() for token in tokens if not token.startswith("["))
  if not isinstance(said, bool):
    raise WeightsError(f"{path} has do_lower_case={said!r}, it should be true or false")
  return said
