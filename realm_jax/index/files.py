"""The few operations on files that the hand-over is made of, the same on a disk and in a bucket."""

from __future__ import annotations

import os

import fsspec.core
import tensorstore as ts
from etils import epath

# For gs:// etils would import TensorFlow, if it is installed. Read once, when the first such path is used.
os.environ.setdefault("EPATH_USE_TF", "0")


class Files:
  """Each operation is atomic: a reader sees a file whole or not at all.

  The hand-over uses no others on its small files, so that they can be watched, delayed or replaced in one place.
  """

  def read(self, path: epath.Path) -> bytes | None:
    """The content, or None where there is no such file."""
    result = _store(path.parent).read(path.name).result()
    return result.value if result.state == "value" else None

  def create(self, path: epath.Path, content: str) -> bool:
    """Creates the file with its whole content if it does not exist; False if it does, with another content."""
    store = _store(path.parent)
    found = store.read(path.name).result()
    if found.state == "missing":
      if store.write(path.name, content.encode(), if_equal=found.stamp.generation).result().generation != b"":
        return True
      found = store.read(path.name).result()
      # In a bucket a request may be carried out and its answer lost: TensorStore's second try then finds the first.
      return "://" in str(path) and found.value == content.encode()
    return False

  def replace(self, path: epath.Path, content: str) -> None:
    """Writes a file whole or not at all, over one that is there."""
    _store(path.parent).write(path.name, content.encode()).result()

  def remove(self, path: epath.Path) -> None:
    """A file that is gone already is no error."""
    _store(path.parent).write(path.name, None).result()

  def names(self, directory: epath.Path) -> list[str]:
    """Names of the files and directories in a directory, sorted; none if it does not exist."""
    try:
      return sorted(entry.name for entry in directory.iterdir())
    except FileNotFoundError:
      return []

  def remove_tree(self, path: epath.Path) -> None:
    """A directory with all below it, or a file. Not atomic: what makes a directory valid is removed before."""
    if not path.is_dir():
      return self.remove(path)
    for _ in range(3):  # another one may delete it at the same time
      try:
        return path.rmtree()
      except FileNotFoundError:
        if not path.exists():
          return None


def names_below(directory: epath.Path) -> list[str]:
  """Relative paths of all files below a directory, sorted: one request a thousand files in a bucket."""
  return sorted(name.decode() for name in _store(directory).list().result())


def _store(directory: epath.Path) -> ts.KvStore:
  url = directory.as_posix().removesuffix("/") + "/"
  # A local path is no URL: it may hold a percent sign.
  return ts.KvStore.open(url if "://" in url else {"driver": "file", "path": url}).result()


def prepare_buckets() -> None:
  """Makes etils and Orbax see in a bucket what other processes have written there.

  Raises:
    ImportError: the extra is not installed.
  """
  try:
    import fsspec.config  # noqa: PLC0415
    import gcsfs  # noqa: F401, PLC0415
  except ImportError as error:
    raise ImportError("gs:// paths need the extra gcs: pip install 'realm_jax[gcs]'") from error
  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False  # else later steps are never seen


def sizes_below(directory: epath.Path) -> dict[str, int]:
  """Bytes of all files below a directory, by relative path: one request a thousand files in a bucket."""
  filesystem, root = fsspec.core.url_to_fs(directory.as_posix())
  found = filesystem.find(root, detail=True)
  return {path.removeprefix(f"{root}/"): info["size"] for path, info in found.items()}
