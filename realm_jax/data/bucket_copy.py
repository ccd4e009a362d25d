"""A corpus in a bucket is read from a copy on the local disk, made once: it is memory-mapped."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import tqdm
from etils import epath

_PIECE = 1 << 24


def local_copy(path: str) -> pathlib.Path:
  """The copy of gs://.../corpus below $REALM_CACHE (~/.cache/realm_jax); made first, if there is none.

  Its name is the corpus' content digest, so that another corpus at the same address gets another copy. Whether every
  bit arrived, `PassageStore.verify` says.

  Raises:
    FileNotFoundError: no corpus at that address.
    OSError: the disk is full, with what to do.
  """
  source = epath.Path(path)
  description = source / "corpus.json"
  if not description.exists():
    raise FileNotFoundError(f"no corpus at {path} (it has no corpus.json); copy one there that realm build_corpus made")
  content = json.loads(description.read_text())
  cache = pathlib.Path(os.environ.get("REALM_CACHE", "~/.cache/realm_jax")).expanduser()
  copy = cache / "corpora" / content["content_digest"]
  if (copy / "corpus.json").is_file():
    return copy
  scratch = copy.with_name(f".{copy.name}.{os.getpid()}")
  shutil.rmtree(scratch, ignore_errors=True)
  scratch.mkdir(parents=True)
  try:
    for name in tqdm.tqdm([*content["file_digest"], "corpus.json"], desc=f"copying {path}", unit="file"):
      _copy_file(source / name, scratch / name)
    shutil.rmtree(copy, ignore_errors=True)
    scratch.rename(copy)
  except OSError as error:
    if (copy / "corpus.json").is_file():  # another process was faster
      return copy
    raise OSError(
      f"{path} could not be copied to {copy} ({error}); set REALM_CACHE to a directory with room for it"
    ) from error
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  return copy


def _copy_file(source: epath.Path, target: pathlib.Path) -> None:
  with source.open("rb") as file, target.open("wb") as copy:
    while piece := file.read(_PIECE):
      copy.write(piece)
