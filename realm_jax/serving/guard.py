"""Stands before the application: refuses requests that do harm by size, number or origin, and forbids pages scripts."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
  "Content-Security-Policy": (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
  ),
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cache-Control": "no-cache",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cross-Origin-Opener-Policy": "same-origin",
}
_MAX_CLIENTS = 10_000  # whose rates are known: a MB


def guarded(
  app: ASGIApp, *, allowed_hosts: Sequence[str], max_body: int, requests_per_second: float, timeout: float
) -> ASGIApp:
  """The application behind all that this file does.

  Args:
    allowed_hosts: names in the Host header, "*.example.org" for all below one; "*" allows all. A foreign page can name
      this machine by its own (DNS rebinding), and would then read the answers.
    max_body: bytes of a request; more is answered with 413.
    requests_per_second: POST requests of one address; more get 429.
    timeout: seconds in which a body must arrive, or 408.
  """
  limited = _Limits(app, max_body, requests_per_second, timeout)
  names = tuple(name.lower() for name in allowed_hosts)
  stranger = problem(400, "this server has no such name; address it by one of its --allowed_hosts")

  async def with_headers(scope: Scope, receive: Receive, send: Send) -> None:
    async def send_with_headers(message: Message) -> None:
      if message["type"] == "http.response.start":
        MutableHeaders(scope=message).update(HEADERS)
      await send(message)

    is_known = scope["type"] != "http" or _is_among(Headers(scope=scope).get("host", ""), names)
    await (limited if is_known else stranger)(scope, receive, send_with_headers)

  return with_headers


def problem(status: int, message: str, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
  """The one form of every refusal."""
  return JSONResponse({"error": message}, status, headers)


def _is_among(host: str, names: Sequence[str]) -> bool:
  """Whether a Host header, a name with or without a port, has one of the names."""
  if "*" in names:
    return True
  match = re.fullmatch(r"(\[[\da-f:.]+\]|[^:\[\]]+)(:\d+)?", host.lower())
  return match is not None and any(
    match[1].endswith(name[1:]) if name.startswith("*.") else match[1] == name for name in names
  )


class _Limits:
  """Reads bodies, within limits, before the application sees the request."""

  def __init__(self, app: ASGIApp, max_body: int, requests_per_second: float, timeout: float):
    self._app, self._max_body, self._timeout = app, max_body, timeout
    self._rate = _Rate(requests_per_second)

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http" and scope["method"] == "POST":
      response = None
      if not self._rate.allows((scope.get("client") or ("",))[0]):
        response = problem(429, "too many requests from this address; wait a second", headers={"Retry-After": "1"})
      else:
        body = b""
        try:
          async with asyncio.timeout(self._timeout):
            body = await self._read(Headers(scope=scope), receive)
        except _TooLargeError:
          response = problem(413, f"the request's body is longer than {self._max_body} bytes; ask a shorter question")
        except TimeoutError:
          response = problem(408, f"the request's body did not arrive within {self._timeout:g} s; send it again")
        receive = _replay(body, receive)
      if response:
        response.headers["Connection"] = "close"  # the rest of the body is not read
        await response(scope, receive, send)
        return
    await self._app(scope, receive, send)

  async def _read(self, headers: Headers, receive: Receive) -> bytes:
    declared = headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > self._max_body:
      raise _TooLargeError
    body = bytearray()
    while True:
      message = await receive()
      body += message.get("body", b"")
      if len(body) > self._max_body:
        raise _TooLargeError
      if not message.get("more_body"):
        return bytes(body)


class _TooLargeError(Exception):
  pass


def _replay(body: bytes, receive: Receive) -> Receive:
  pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

  async def replayed() -> Message:
    return pending.pop() if pending else await receive()

  return replayed


class _Rate:
  """A bucket of tokens for each address: as many requests at once as in two seconds."""

  def __init__(self, per_second: float):
    self._per_second, self._burst = per_second, max(1.0, 2 * per_second)
    self._bucket: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> tokens, when counted

  def allows(self, address: str) -> bool:
    now = time.monotonic()
    tokens, counted = self._bucket.pop(address, (self._burst, now))
    tokens = min(self._burst, tokens + (now - counted) * self._per_second)
    allowed = tokens >= 1
    self._bucket[address] = (tokens - allowed, now)
    if len(self._bucket) > _MAX_CLIENTS:
      self._bucket.popitem(last=False)
    return allowed
