"""Searchers for the largest inner products: exact on the JAX device, or ScaNN on the host."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 1 << 16  # rows scored at once: bounds the scores in memory
_GROUP = 64  # rows behind one maximum
_MIN_QUANTIZED = 16  # ScaNN's codebooks have 16 centers, and need as many passages


class Searcher(Protocol):
  """Answers maximum-inner-product queries."""

  def search(self, query_emb_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best passages of each query, best first: score_BK float32, passage_id_BK int32; k is at most N."""
    ...


class ExactSearcher:
  """Blocked brute force by group maxima: the k groups with the largest maxima contain the k best rows.

  >>> searcher = ExactSearcher(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]], np.float32))
  >>> score_BK, passage_id_BK = searcher.search(np.array([[1.0, 0.0]], np.float32), k=2)
  >>> score_BK.tolist(), passage_id_BK.tolist()
  ([[3.0, 1.0]], [[2, 0]])
  """

  def __init__(self, passage_emb_ND: np.ndarray):
    """passage_emb_ND: copied to the device."""
    self.num_passages, size = passage_emb_ND.shape
    group = min(_GROUP, self.num_passages)
    block = min(_BLOCK, -(-self.num_passages // group) * group)
    num_blocks = -(-self.num_passages // block)
    # bfloat16 products are slow on CPU and fast elsewhere.
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    padded = np.zeros((num_blocks * block, size), dtype)
    padded[: self.num_passages] = passage_emb_ND
    self._emb = jax.device_put(padded.reshape(num_blocks, block, size))
    self._group = group

  def search(self, query_emb_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    query = jax.device_put(check_queries(query_emb_BD, k, self.num_passages))
    score_BK, id_BK = _search_blocks(query, self._emb, self.num_passages, k, self._group)
    return jax.device_get((score_BK, id_BK))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _search_blocks(query_BD, emb_CGD, num_passages: int, k: int, group: int):
  num_queries = len(query_BD)
  block = emb_CGD.shape[1]
  k_block = min(k, block)

  def search_block(best, numbered_block):
    c, emb = numbered_block
    score = jnp.einsum("bd,nd->bn", query_BD.astype(emb.dtype), emb, preferred_element_type=jnp.float32)
    row = c * block + jnp.arange(block)
    score = jnp.where(row < num_passages, score, -jnp.inf).reshape(num_queries, block // group, group)
    _, group_id = jax.lax.top_k(score.max(-1), min(k_block, block // group))
    group_id = jnp.sort(group_id)  # equal scores stay in the order of their ids
    member = jnp.take_along_axis(score, group_id[:, :, None], 1).reshape(num_queries, -1)
    member_id = (group_id[:, :, None] * group + jnp.arange(group)).reshape(num_queries, -1) + c * block
    best_score, best_id = (jnp.concatenate(pair, 1) for pair in zip(best, (member, member_id)))
    best_score, which = jax.lax.top_k(best_score, k)
    return (best_score, jnp.take_along_axis(best_id, which, 1)), None

  start = (jnp.full((num_queries, k), -jnp.inf), jnp.zeros((num_queries, k), jnp.int32))
  return jax.lax.scan(search_block, start, (jnp.arange(len(emb_CGD), dtype=jnp.int32), emb_CGD))[0]


class ScannSearcher:
  """ScaNN: tree, asymmetric hashing with SOAR, exact rescoring (Guo et al. 2020, Sun et al. 2023)."""

  def __init__(self, index: Any, num_passages: int, settings: dict[str, Any]):
    self._index, self.num_passages, self._settings = index, num_passages, settings

  @classmethod
  def build(cls, passage_emb_ND: np.ndarray, settings: dict[str, Any]) -> ScannSearcher:
    """settings: see `scann_settings`."""
    scann = _import_scann()
    emb_ND = np.ascontiguousarray(passage_emb_ND, np.float32)
    builder = scann.scann_ops_pybind.builder(emb_ND, settings["rescored"], "dot_product")
    if len(emb_ND) < _MIN_QUANTIZED:
      return cls(builder.score_brute_force().build(), len(emb_ND), settings)
    # Every build differs without random_init=False, and on a busy machine with more than one thread.
    builder = builder.set_n_training_threads(1).tree(
        settings["num_leaves"], settings["num_leaves_searched"], training_sample_size=settings["training_sample_size"],
        random_init=False, soar_lambda=settings["soar_lambda"], overretrieve_factor=settings["overretrieve_factor"],
    )  # fmt: skip
    builder = builder.score_ah(2, anisotropic_quantization_threshold=settings["anisotropic_threshold"])
    return cls(builder.reorder(settings["rescored"]).build(), len(emb_ND), settings)

  @classmethod
  def load(cls, directory: str, num_passages: int, settings: dict[str, Any]) -> ScannSearcher:
    """settings: those it was built with."""
    return cls(_import_scann().scann_ops_pybind.load_searcher(directory), num_passages, settings)

  def save(self, directory: str) -> None:
    """Writes the assets into a local directory, which may be moved then."""
    # Absolute paths in the assets would tie them to this directory.
    self._index.serialize(directory, relative_path=True)

  def search(self, query_emb_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    query = check_queries(query_emb_BD, k, self.num_passages)
    # A beam is wider than what is rescored for a few passages: twice k are, out of leaves that hold about 8 k.
    num_leaves, num_passages = self._settings["num_leaves"], self.num_passages
    wide = -(-8 * k * num_leaves // num_passages)
    passage_id, score = self._index.search_batched(
      query,
      final_num_neighbors=k,
      pre_reorder_num_neighbors=min(num_passages, max(self._settings["rescored"], 2 * k)),
      leaves_to_search=min(num_leaves, max(self._settings["num_leaves_searched"], wide)),
    )
    score, passage_id = np.asarray(score, np.float32), np.asarray(passage_id, np.int32)
    if np.isnan(score).any():
      # A query whose leaves hold fewer than k passages comes back padded with id 0: fill with other passages instead.
      passage_id, score = _replace_padding(passage_id, score, self.num_passages)
    return score, passage_id


def scann_settings(num_passages: int, chosen: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """ScaNN's settings from N: leaves of about sqrt(N) / 2 passages, a tenth searched, 200 rescored.

  For a wide beam `search` takes more of both. docs/index.md has what they were measured to give.

  Args:
    chosen: config.index.scann; what is 0 there is chosen from N.

  Raises:
    ValueError: names the field, its value and what it may be.
  """
  chosen = {name: value for name, value in (chosen or {}).items() if value}
  num_leaves = chosen.get("num_leaves") or int(max(1, min(num_passages // 16, round(num_passages**0.5 * 2))))
  is_small = num_leaves <= 2
  settings: dict[str, Any] = {
    "num_leaves": num_leaves,
    "num_leaves_searched": max(1, -(-num_leaves // 10)),
    "training_sample_size": min(num_passages, 250_000),
    "anisotropic_threshold": 0.2,
    "soar_lambda": None if is_small else 1.5,
    "overretrieve_factor": None if is_small else 2.0,
    "rescored": min(num_passages, 200),
  } | chosen
  for name, most in {
    "num_leaves": max(1, num_passages), "num_leaves_searched": num_leaves, "training_sample_size": num_passages,
    "rescored": num_passages,
  }.items():  # fmt: skip
    if not 1 <= settings[name] <= most:
      raise ValueError(f"index.scann.{name}={settings[name]}, expected 1 to {most}, or 0 to choose it from N")
  for name in ("anisotropic_threshold", "soar_lambda", "overretrieve_factor"):
    if settings[name] is not None and settings[name] < 0:
      raise ValueError(f"index.scann.{name}={settings[name]}, expected a positive number, or 0 to choose it from N")
  return settings


def check_queries(query_emb_BD: np.ndarray, k: int, num_passages: int) -> np.ndarray:
  """The queries in float32; raises ValueError for a k, or a query, that no searcher can answer."""
  if not 1 <= k <= num_passages:
    raise ValueError(f"asked for {k} of {num_passages} passages; ask for 1 to {num_passages}")
  if not np.isfinite(query_emb_BD).all():
    raise ValueError("a query embedding is not finite; the retriever's parameters have diverged")
  return np.ascontiguousarray(query_emb_BD, np.float32)


def _replace_padding(passage_id: np.ndarray, score: np.ndarray, num_passages: int) -> tuple[np.ndarray, np.ndarray]:
  for row in np.nonzero(np.isnan(score).any(1))[0]:
    padding = np.isnan(score[row])
    found = set(passage_id[row][~padding].tolist())
    others = (i for i in range(num_passages) if i not in found)
    passage_id[row][padding] = [next(others) for _ in range(padding.sum())]
    score[row][padding] = -np.inf
  return passage_id, score


def _import_scann():
  """ScaNN's NumPy interface needs no TensorFlow, and its TensorFlow op breaks with other builds than its own."""
  if "scann" not in sys.modules:
    absent = object()
    tensorflow = sys.modules.get("tensorflow", absent)
    sys.modules["tensorflow"] = None
    try:
      import scann  # noqa: F401, PLC0415
    finally:
      if tensorflow is absent:
        del sys.modules["tensorflow"]
      else:
        sys.modules["tensorflow"] = tensorflow
  return sys.modules["scann"]
