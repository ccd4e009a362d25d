"""What the hosts of one job say to each other: the first one decides, the others hear of it."""

from __future__ import annotations

import concurrent.futures
import itertools
import queue
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

T = TypeVar("T")

_SECONDS = 1.0  # between two signs of life from a host that the others wait for: no collective lasts long
_PENDING, _DONE, _FAILED, _TIMED_OUT, _EMBED = range(5)
_looks = itertools.count()  # for SIGTERM: of the whole process, for JAX agrees on a number that no host has come to yet


class Preempted(RuntimeError):
  """SIGTERM came: the machine is about to be taken away. All is saved; to be started again."""

  exit_status = 75  # EX_TEMPFAIL of sysexits.h: "the user is invited to retry"

  def __init__(self, message: str = "SIGTERM: start again to go on"):
    super().__init__(message)


class HostError(RuntimeError):
  """Another host of the job has failed; its own output says why."""


def is_first() -> bool:
  """Whether this is the host that writes; the only one of most jobs."""
  return jax.process_index() == 0


def is_preempted() -> bool:
  """Whether SIGTERM came to one of several hosts.

  All must ask equally often: JAX has caught the signal, and lets them hear of it at the same look.
  """
  return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_looks))


def gather(value: int) -> list[int]:
  """Each host's value, on all hosts."""
  if jax.process_count() == 1:
    return [int(value)]
  with jax.transfer_guard("allow"):
    return np.asarray(multihost_utils.process_allgather(np.int32(value))).reshape(-1).tolist()


def decided_by_first(decide: Callable[[], int]) -> int:
  """What `decide` returns on the first host, which alone calls it; it may take any time.

  Raises:
    TimeoutError: on all hosts, if `decide` raised it.
    HostError: it failed otherwise; on the first host its own error is raised.
    Preempted: SIGTERM came to one of several hosts, on all of them, while `decide` takes its time.
  """
  if jax.process_count() == 1:
    return decide()
  if not is_first():
    while (heard := _tell(_PENDING))[0] == _PENDING:
      _end_if_preempted()
    if heard[0] == _TIMED_OUT:
      raise TimeoutError("the first host of this job has waited in vain; its output says for what")
    if heard[0] == _FAILED:
      raise HostError("the first host of this job has failed; its output says why")
    return heard[1]
  # No `with`: whoever leaves it early would wait for what decides.
  future = concurrent.futures.ThreadPoolExecutor(1).submit(decide)
  while not concurrent.futures.wait([future], _SECONDS).done:
    _tell(_PENDING)
    _end_if_preempted()
  if (error := future.exception()) is not None:
    _tell(_TIMED_OUT if isinstance(error, TimeoutError) else _FAILED)
  value = future.result()
  _tell(_DONE, value)
  return value


def tell_text(text: str) -> str:
  """The first host's text, on all hosts."""
  data = np.frombuffer(text.encode(), np.uint8)
  size = int(_broadcast(np.int32(len(data))))
  return _broadcast(np.resize(data, size)).tobytes().decode()


def embed_together(
  work: Callable[[Callable[[Any, int, int], np.ndarray]], T],
  embed: Callable[[Any, int, int], np.ndarray],
  abstract_params: Any,
  *,
  ends_on_sigterm: bool = True,
) -> T | None:
  """Runs `work` on the first host; what it embeds, all hosts embed together.

  Args:
    work: is given a function (parameters, begin, end) -> embeddings.
    embed: that function on one host; all hosts call it at once.
    abstract_params: shapes and types of the parameters.
    ends_on_sigterm: else whoever calls this goes on afterwards, and looks for the signal itself.

  Returns:
    What work returned; None on the other hosts.

  Raises:
    HostError: work failed; on the first host its own error is raised.
    Preempted: SIGTERM came to one of several hosts.
  """
  if jax.process_count() == 1:
    return work(embed)

  def end_if_preempted() -> None:
    if ends_on_sigterm:
      _end_if_preempted()

  if not is_first():
    nothing = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_params)
    while True:
      end_if_preempted()
      what, begin, end = _tell(_PENDING)
      if what == _EMBED:
        embed(_broadcast(nothing), begin, end)
      elif what == _FAILED:
        raise HostError("the first host of this job has failed; its output says why")
      elif what == _DONE:
        return None
  requests: queue.Queue = queue.Queue()

  def ask(params: Any, begin: int, end: int) -> np.ndarray:
    reply: concurrent.futures.Future = concurrent.futures.Future()
    requests.put((jax.device_get(params), begin, end, reply))
    return reply.result()

  # No `with`: whoever leaves it early would wait for work that waits for this thread.
  future = concurrent.futures.ThreadPoolExecutor(1).submit(work, ask)
  while not future.done():
    try:
      params, begin, end, reply = requests.get(timeout=_SECONDS)
    except queue.Empty:
      end_if_preempted()
      _tell(_PENDING)
      continue
    end_if_preempted()
    _tell(_EMBED, begin, end)
    reply.set_result(embed(_broadcast(params), begin, end))
  end_if_preempted()
  _tell(_DONE if future.exception() is None else _FAILED)
  return future.result()


def settle(arrays: Any) -> None:
  """Waits for arrays between processes on CPUs, where JAX 0.10's collectives of two programs block each other."""
  if jax.process_count() > 1 and jax.default_backend() == "cpu":
    jax.block_until_ready(arrays)


def by_itself() -> ocp.options.MultiprocessingOptions:
  """For Orbax: this host reads or writes alone, and waits for no other."""
  if jax.process_count() == 1:
    return ocp.options.MultiprocessingOptions()
  index = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"host{index}"
  )


def checkpointer_of(handler: Callable[..., Any]) -> ocp.Checkpointer:
  """Reads what Orbax wrote with such a handler, by itself."""
  return ocp.Checkpointer(handler(multiprocessing_options=by_itself()), multiprocessing_options=by_itself())


def _end_if_preempted() -> None:
  if is_preempted():
    raise Preempted


def _tell(what: int, *values: int) -> list[int]:
  """The first host's numbers, on all hosts."""
  return _broadcast(np.array([what, *values, 0, 0][:3], np.int32)).tolist()


def _broadcast(tree: Any) -> Any:
  """The first host's arrays, on all hosts, on each of the same shapes."""
  with jax.transfer_guard("allow"):
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))
