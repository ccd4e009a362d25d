"""Passage stores as a data set of TFDS, for programs that don't have this project: `tfds build` or `export_tfds`.

tfds build realm_jax/data/realm_passages.py --manual_dir=corpora/mine --data_dir=tfds --file_format=array_record
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from realm_jax.data.passages import PassageStore
from realm_jax.data.spans import KINDS

_BATCH = 256


class RealmPassages(tfds.core.GeneratorBasedBuilder):
  """A passage an example; offsets count the bytes of the text, as in `salient_span_wikipedia`."""

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = "Give a corpus that `realm build_corpus` wrote as --manual_dir."

  def _info(self) -> tfds.core.DatasetInfo:
    text_range = {"start": np.int32, "limit": np.int32}
    return tfds.core.DatasetInfo(
      builder=self,
      description="Passages of a text corpus with WordPiece tokens, sentences and salient spans.",
      disable_shuffling=True,  # so that example i is passage i
      features=tfds.features.FeaturesDict(
        {
          "id": tfds.features.Text(),
          "title": tfds.features.Text(),
          "text": tfds.features.Text(),
          "token_id": tfds.features.Tensor(shape=(None,), dtype=np.uint16),  # the title's, then the text's
          "title_length": np.int32,  # tokens
          "sentences": tfds.features.Sequence(text_range),
          "spans": tfds.features.Sequence({**text_range, "type": np.str_}),
        }
      ),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    return {"train": self._generate_examples(dl_manager.manual_dir)}

  def _generate_examples(self, path) -> Iterator[tuple[int, dict[str, Any]]]:
    store = PassageStore(pathlib.Path(path))
    vocabulary = store.vocabulary()
    for begin in range(0, len(store), _BATCH):
      batch = range(begin, min(begin + _BATCH, len(store)))
      encodings = vocabulary.encode([store.body(i) for i in batch])
      for i, encoding, tokens in zip(batch, encodings, store.padded_tokens(np.array(batch)), strict=True):
        yield i, _example(store, i, encoding.char_range, tokens)


def _example(store: PassageStore, i: int, char_range: np.ndarray, token_id_P: np.ndarray) -> dict[str, Any]:
  text, title_length = store.body(i), int(store.title_length_N[i])
  starts = store.sentence_start[int(store.sentence_offset[i]) : int(store.sentence_offset[i + 1])]
  span = store.span[int(store.span_offset[i]) : int(store.span_offset[i + 1])].astype(np.int64)
  # The rest of a word that was cut between two passages may have fewer wordpieces of its own.
  char_range = np.pad(char_range, ((0, int(store.body_length_N[i])), (0, 0)), "edge")
  byte_of_char = np.cumsum([0, *(len(c.encode()) for c in text)])
  sentence_starts = byte_of_char[char_range[starts, 0]]
  return {
    "id": store.id(i),
    "title": store.title(i),
    "text": text,
    "token_id": token_id_P[: title_length + int(store.body_length_N[i])],
    "title_length": title_length,
    "sentences": {"start": sentence_starts, "limit": np.append(sentence_starts[1:], byte_of_char[-1])},
    "spans": {
      "start": byte_of_char[char_range[span[:, 0], 0]],
      "limit": byte_of_char[char_range[span[:, 1] - 1, 1]],
      "type": [KINDS[kind] for kind in span[:, 3]],
    },
  }


def export_tfds(store_path, data_dir) -> str:
  """Writes a passage store as ArrayRecord files; returns the directory, which `tfds:DIR` reads."""
  builder = RealmPassages(data_dir=str(data_dir), file_format="array_record")
  config = tfds.download.DownloadConfig(manual_dir=str(store_path))
  builder.download_and_prepare(download_config=config)
  return str(builder.data_dir)
