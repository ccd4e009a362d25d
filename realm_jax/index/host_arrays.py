"""What one host of a job has of arrays that are spread over the devices of all."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding


class HostRows:
  """The rows of each batch whose devices are this host's: put there from arrays of the host, and fetched back."""

  def __init__(self, sharding: Sharding, batch_size: int):
    """sharding: of arrays whose first axis, of size batch_size, is split."""
    self._sharding, self._batch_size = sharding, batch_size
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    # Ascending: so JAX takes them for the parts of a global array. Hosts that share rows hold the same ones.
    self.rows = np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))

  def put(self, batch: Any) -> Any:
    """This host's rows of a batch -> global arrays."""

    def put(x: np.ndarray) -> jax.Array:
      return jax.make_array_from_process_local_data(self._sharding, x, (self._batch_size, *x.shape[1:]))

    with jax.transfer_guard("allow"):  # JAX takes this for implicit, but with one host
      return jax.tree.map(put, batch)

  def fetch(self, x: jax.Array) -> np.ndarray:
    """A global array [B, ...] -> this host's rows of it."""
    if x.is_fully_addressable:
      return jax.device_get(x)
    shards = {shard.index[0].start or 0: shard.data for shard in jax.device_put(x, self._sharding).addressable_shards}
    return np.concatenate(jax.device_get([shards[start] for start in sorted(shards)]))


def whole(tree: Any) -> Any:
  """All of each array, on every host, as NumPy arrays; where hosts have parts, all hosts must call this at once."""

  def fetch(x: Any) -> np.ndarray:
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return jax.device_get(x)
    if x.is_fully_replicated:
      return jax.device_get(x.addressable_data(0))
    with jax.transfer_guard("allow"):
      return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(fetch, tree)
