"""A run that is asked to end is saved first: by SIGTERM, of a machine about to be taken away, or by Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

from realm_jax.index.hosts import Preempted, is_preempted

_NOTICE = (
  b"\nCtrl-C: the run is saved and ends, after this step and the refresh of the index if one runs; "
  b"once more ends it at once\n"
)


class Interrupted(KeyboardInterrupt):
  """Ctrl-C while the run waits; see `Preemption.interrupting`."""


class Preemption:
  """While it is entered, SIGTERM and Ctrl-C are kept for `is_due` instead of ending the process.

  A second Ctrl-C ends it as ever. With several hosts JAX catches SIGTERM, and agrees with the others on a step; Ctrl-C
  there is of one host alone, and left as it is.
  """

  def __init__(self) -> None:
    self._may_interrupt = self._is_interrupted = False
    self._signal: int | None = None  # that asked
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> Preemption:
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
      if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
        self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
    return self

  def __exit__(self, *exception: object) -> None:
    while self._previous:
      signal.signal(*self._previous.popitem())

  @property
  def is_asked(self) -> bool:
    """Whether a signal asked to end; with several hosts `is_due` alone knows."""
    return self._signal is not None

  def is_due(self) -> bool:
    """Whether to save now, and end; with several hosts all must ask at every step."""
    return self.is_asked or is_preempted()

  def end(self, what: str) -> NoReturn:
    """Ends the run that was asked to.

    Raises:
      Interrupted: by Ctrl-C.
      Preempted: by SIGTERM.
    """
    if self._signal == signal.SIGINT:
      raise Interrupted(what)
    raise Preempted(f"SIGTERM: {what}")

  @contextlib.contextmanager
  def interrupting(self) -> Iterator[None]:
    """Within, what asks to end raises Preempted or Interrupted at once: for waiting."""
    self._may_interrupt = True
    try:
      yield
    finally:
      self._may_interrupt = False

  def _note(self, signum: int, frame: object) -> None:
    if signum == signal.SIGINT:
      if self._is_interrupted:
        raise KeyboardInterrupt
      self._is_interrupted = True
      with contextlib.suppress(OSError):  # of a closed stderr; not print, which may be at work
        os.write(2, _NOTICE)
    self._signal = signum
    if self._may_interrupt:
      self._may_interrupt = False
      self.end("start again to go on")
