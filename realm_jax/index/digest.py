"""Digests of parameter trees and files: Orbax does not notice a flipped bit, these do."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import xxhash
from etils import epath

from realm_jax.index.files import names_below

_PIECE = 1 << 24


def tree_digest(tree: Any) -> str:
  """xxh3-128 of the names, types, shapes and bytes of all leaves."""
  digest = xxhash.xxh3_128()
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
    leaf = np.asarray(leaf, order="C")
    digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
    digest.update(leaf.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def is_finite(tree: Any) -> bool:
  """Whether every floating-point number of a tree is finite."""
  leaves = (np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(tree)))
  return all(np.isfinite(x).all() for x in leaves if jax.numpy.issubdtype(x.dtype, np.inexact))


def file_digests(directory: epath.Path) -> dict[str, str]:
  """Relative path -> xxh3-128, for every file below a directory."""
  return {name: _file_digest(directory / name) for name in names_below(directory)}


def _file_digest(path: epath.Path) -> str:
  digest = xxhash.xxh3_128()
  with path.open("rb") as file:
    while piece := file.read(_PIECE):
      digest.update(piece)
  return digest.hexdigest()
