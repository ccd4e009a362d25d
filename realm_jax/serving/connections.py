"""Bounds what connections can hold: a silent one is closed, and no address takes them all."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from realm_jax.serving.guard import HEADERS, problem

_FULL = problem(
  503, "the server has all the connections it takes; try again",
  headers=HEADERS | {"Connection": "close", "Retry-After": "5"},
)  # fmt: skip


def bounded_protocol(*, timeout: float, per_address: int, total: int) -> type[H11Protocol]:
  """uvicorn's HTTP protocol, with bounds that uvicorn lacks: it times idle connections after their first answer only.

  Args:
    timeout: seconds in which a request's header must be there, or the connection is closed.
    per_address: connections of one address; more are closed at once.
    total: connections; what is asked on more gets 503.
  """

  class BoundedProtocol(H11Protocol):
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
      super().connection_made(transport)
      if sum(_address(c) == _address(self) for c in self.connections) > per_address:
        transport.abort()
      elif len(self.connections) > total:
        self.app = _FULL
      self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
      super().connection_lost(exc)
      self._cancel()

    def on_response_complete(self) -> None:
      self._await_header()
      super().on_response_complete()

    def _await_header(self) -> None:
      self._cancel()
      self._deadline = self.loop.call_later(timeout, self._end_if_silent)

    def _end_if_silent(self) -> None:
      is_answering = self.cycle is not None and not self.cycle.response_complete
      if is_answering and not self.flow.write_paused:  # the application times what it does
        self._await_header()
      else:  # no header, or an answer that nobody reads
        self.transport.abort()

    def _cancel(self) -> None:
      if self._deadline:
        self._deadline.cancel()

  return BoundedProtocol


def _address(connection: object) -> str:
  return (getattr(connection, "client", None) or ("",))[0]
