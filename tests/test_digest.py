"""Digests notice every change of a tree or a file."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath

from realm_jax.index.digest import file_digests, is_finite, tree_digest


def make_tree():
  kernel = np.arange(12, dtype=np.float32).reshape(3, 4)
  return {"layer": {"kernel": kernel, "bias": np.zeros(4, np.float32)}, "step": np.int32(3)}


def flip_bit(tree):
  tree["layer"]["kernel"].view(np.uint8)[1, 5] ^= 1


def rename_leaf(tree):
  tree["layer"]["weight"] = tree["layer"].pop("kernel")


def rename_parent(tree):
  tree["other"] = tree.pop("layer")


def reshape(tree):
  tree["layer"]["kernel"] = tree["layer"]["kernel"].reshape(4, 3)


def make_scalar_a_row(tree):
  tree["step"] = tree["step"].reshape(1)


def change_type(tree):
  tree["layer"]["bias"] = tree["layer"]["bias"].astype(np.int32)  # zeros: the same bytes


def drop_leaf(tree):
  del tree["layer"]["bias"]


@pytest.mark.parametrize(
  "change", [flip_bit, rename_leaf, rename_parent, reshape, make_scalar_a_row, change_type, drop_leaf]
)
def test_every_change_changes_the_digest(change):
  tree = make_tree()
  change(tree)
  assert tree_digest(tree) != tree_digest(make_tree())


def test_every_single_bit_counts():
  tree = {"x": np.zeros(4, np.float32)}
  digests = {tree_digest(tree)}
  for bit in range(128):
    x = np.zeros(16, np.uint8)
    x[bit // 8] = 1 << bit % 8
    digests.add(tree_digest({"x": x.view(np.float32)}))
  assert len(digests) == 129


def test_the_same_values_have_the_same_digest_wherever_they_are():
  tree = make_tree()
  digest = tree_digest(tree)
  assert len(digest) == 32
  assert tree_digest(jax.tree.map(jnp.asarray, tree)) == digest
  tree["layer"]["kernel"] = np.asfortranarray(tree["layer"]["kernel"])
  assert tree_digest(dict(reversed(tree.items()))) == digest


def test_bfloat16_and_empty_leaves_have_digests():
  a = {"x": np.ones((2, 3), ml_dtypes.bfloat16), "empty": np.zeros((0, 4), np.float32)}
  b = {"x": np.ones((2, 3), ml_dtypes.bfloat16), "empty": np.zeros((4, 0), np.float32)}
  assert tree_digest(a) != tree_digest(b)


def test_file_digests_name_files_by_relative_path(tmp_path):
  (tmp_path / "sub/deep").mkdir(parents=True)
  (tmp_path / "a.bin").write_bytes(b"one")
  (tmp_path / "sub/deep/b.bin").write_bytes(b"one")
  (tmp_path / "sub/empty").write_bytes(b"")
  digests = file_digests(epath.Path(tmp_path))
  assert list(digests) == ["a.bin", "sub/deep/b.bin", "sub/empty"]
  assert digests["a.bin"] == digests["sub/deep/b.bin"] != digests["sub/empty"]
  (tmp_path / "a.bin").write_bytes(b"onf")
  assert file_digests(epath.Path(tmp_path))["a.bin"] != digests["a.bin"]


def test_a_file_of_several_pieces_is_read_whole(tmp_path, monkeypatch):
  (tmp_path / "a").write_bytes(bytes(range(256)) * 4)
  whole = file_digests(epath.Path(tmp_path))
  monkeypatch.setattr("realm_jax.index.digest._PIECE", 100)
  assert file_digests(epath.Path(tmp_path)) == whole


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_is_finite_sees_every_leaf(value, dtype):
  tree = make_tree() | {"more": np.ones(3, dtype)}
  assert is_finite(tree) and is_finite(jax.tree.map(jnp.asarray, tree))
  tree["more"][2] = value
  assert not is_finite(tree) and not is_finite(jax.tree.map(jnp.asarray, tree))
