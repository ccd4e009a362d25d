"""How the processes of a job on several hosts find each other."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator

from absl import flags

_GOES_ON = "start all again, the run goes on from its newest checkpoint"
_LAST_WORDS = (
  "realm, one of several hosts: this process was ended before it could say why: by JAX (above), which does so when "
  "another host was lost, and when hosts differ in --num_processes or share a --process_id; or from outside, as for "
  f"want of memory; {_GOES_ON}"
)
_SET_ALL = "give all of --coordinator_address=HOST:PORT, --num_processes and --process_id"


def define_flags(values: flags.FlagValues) -> None:
  """The flags with which one of several hosts finds the others."""
  flags.DEFINE_bool(
    "multihost", False, "One of several hosts, which find each other: on TPU slices, GKE, Slurm, MPI.",
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of the first of several hosts, where they can't find each other.",
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_integer("num_processes", None, "With it: how many hosts.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("process_id", None, "With it: which one this is, from 0.", lower_bound=0, flag_values=values)
  flags.DEFINE_integer(
    "heartbeat_timeout", 100, "Seconds after which a silent host counts as lost.", lower_bound=1, flag_values=values
  )
  flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for all hosts.", lower_bound=1, flag_values=values)


@contextlib.contextmanager
def joined(values: flags.FlagValues) -> Iterator[None]:
  """Within, JAX knows the devices of all hosts, if the flags say that there are several.

  Raises:
    ValueError: the flags don't fit together.
    RuntimeError: the other hosts can't be reached.
  """
  explicit = (values.coordinator_address, values.num_processes, values.process_id)
  if values.multihost and any(x is not None for x in explicit):
    raise ValueError("give --multihost, or --coordinator_address, --num_processes and --process_id, but not both")
  if not values.multihost and all(x is None for x in explicit):
    yield
    return
  if not values.multihost:
    _check_explicit(*explicit)
  with _heir() as heir:
    _join(values, heir)
    try:
      yield
    except BaseException as error:
      _end(error, heir)
    import jax  # noqa: PLC0415 after the flags, so that --help is quick

    jax.distributed.shutdown()


def _check_explicit(address: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Refuses what JAX would end the process for, without a word."""
  if address is None or num_processes is None or process_id is None:
    raise ValueError(_SET_ALL)
  host, _, port = address.rpartition(":")
  if not (host and port.isdecimal() and 1 <= int(port) <= 65535):
    raise ValueError(f"--coordinator_address={address}: expected HOST:PORT, with a port between 1 and 65535")
  if process_id >= num_processes:
    raise ValueError(f"--process_id={process_id} of --num_processes={num_processes}: they count from 0")
  if process_id == 0:
    is_dual = socket.has_dualstack_ipv6()  # then JAX listens on [::], as here
    family = socket.AF_INET6 if is_dual else socket.AF_INET
    try:
      socket.create_server(("", int(port)), family=family, dualstack_ipv6=is_dual).close()
    except OSError as error:
      raise ValueError(
        f"port {port} is taken on this host ({os.strerror(error.errno or 0)}); give all hosts another one in "
        "--coordinator_address"
      ) from error


def _join(values: flags.FlagValues, heir: subprocess.Popen) -> None:
  """Returns when all hosts are there."""
  import jax  # noqa: PLC0415 as above

  where = values.coordinator_address or "found by --multihost"
  missing = (
    f"this host did not find the others in {values.join_timeout} s (coordinator {where}); check that all were started, "
    "with the same address and number, and that the port is open between them"
  )
  # When JAX itself gives up, it aborts the process.
  timer = threading.Timer(values.join_timeout, _end, [RuntimeError(missing), heir])
  timer.start()
  try:
    jax.distributed.initialize(
      values.coordinator_address,
      values.num_processes,
      values.process_id,
      initialization_timeout=values.join_timeout + 60,
      heartbeat_timeout_seconds=values.heartbeat_timeout,
    )
  except (RuntimeError, ValueError) as error:
    if values.multihost and "coordinator_address should be defined" in str(error):
      raise RuntimeError(
        "--multihost found no TPU slice, GKE, Slurm or MPI job around this process; leave it out on one host, or "
        f"{_SET_ALL}"
      ) from error
    raise RuntimeError(
      f"this host can't join the others (coordinator {where}): {str(error).splitlines()[0]}"
    ) from error
  finally:
    timer.cancel()


@contextlib.contextmanager
def _heir() -> Iterator[subprocess.Popen]:
  """Within, a shell says the last words of this process, unless it reads a line before this process is gone.

  A lost host is an error of a collective, or missing heartbeats; then JAX aborts the process, past Python's handlers.
  """
  command = ["sh", "-c", 'read -r line || echo "$1" >&2', "sh", _LAST_WORDS]
  heir = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # not to be interrupted with us
  try:
    yield heir
  finally:
    heir.communicate(b"nothing to tell, or an error that is told\n")


def _end(error: BaseException, heir: subprocess.Popen) -> None:
  """Ends this process at once: leaving in order would wait for hosts that may be gone."""
  import jax  # noqa: PLC0415 as above

  text = str(error) or type(error).__name__
  if isinstance(error, jax.errors.JaxRuntimeError):
    text = f"{text.splitlines()[0][:200]}: if that speaks of a connection, another host was lost; {_GOES_ON}"
  if os.environ.get("REALM_DEBUG"):
    traceback.print_exception(error)
  print(f"realm, one of several hosts: {text}", file=sys.stderr, flush=True)
  heir.communicate(b"I told it\n")
  sys.stdout.flush()
  os._exit(getattr(error, "exit_status", 1))
