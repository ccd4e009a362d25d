"""A machine that is about to be taken away says so by SIGTERM: the run is saved, and ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax

from realm_jax.index.hosts import Preempted, is_preempted


class Preemption:
  """While it is entered, SIGTERM is kept for `is_due` instead of ending the process."""

  def __init__(self) -> None:
    self._is_asked = self._may_interrupt = False

  def __enter__(self) -> Preemption:
    # With several hosts JAX catches the signal, and agrees with the others on a step.
    self._is_caught = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    if self._is_caught:
      self._previous = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *exception: object) -> None:
    if self._is_caught:
      signal.signal(signal.SIGTERM, self._previous)

  def is_due(self) -> bool:
    """Whether to save now, and end; with several hosts all must ask at every step."""
    return self._is_asked or is_preempted()

  @contextlib.contextmanager
  def interrupting(self) -> Iterator[None]:
    """Within, SIGTERM raises Preempted at once: for waiting."""
    self._may_interrupt = True
    try:
      yield
    finally:
      self._may_interrupt = False

  def _note(self, signum: int, frame: object) -> None:
    self._is_asked = True
    if self._may_interrupt:
      self._may_interrupt = False
      raise Preempted
