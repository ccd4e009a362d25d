"""What connections can hold of the server: a silent one nothing for long, one address not all."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from realm_jax.serve import listen
from realm_jax.serving.connections import bounded_protocol

OK = PlainTextResponse("ok")
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"


@contextlib.contextmanager
def serving(app=OK, *, timeout=0.5, per_address=100, total=100):
  """A server with such bounds, as `realm serve` has it; a function that connects to it, from an address."""
  protocol = bounded_protocol(timeout=timeout, per_address=per_address, total=total)
  server = uvicorn.Server(uvicorn.Config(app, http=protocol, log_level="warning", lifespan="off"))
  listening = listen("127.0.0.1", 0)
  thread = threading.Thread(target=server.run, args=([listening],))
  thread.start()
  with contextlib.ExitStack() as stack:

    def connect(address="127.0.0.1"):
      connection = socket.create_connection(listening.getsockname(), timeout=10, source_address=(address, 0))
      return stack.enter_context(connection)

    try:
      yield connect
    finally:
      server.should_exit = True
      thread.join(10)
      listening.close()


def ask(connection, request=GET + b"\r\n"):
  connection.sendall(request)
  return connection.recv(65_536).decode()


def end_of(connection):
  """Seconds until the server has closed it."""
  begin = time.monotonic()
  with contextlib.suppress(ConnectionResetError):
    while connection.recv(65_536):
      pass
  return time.monotonic() - begin


@pytest.mark.parametrize("sent", [b"", b"GET", GET, GET + b"\r\nGET / HT", GET + b"\r\n" + GET])
def test_a_connection_without_a_header_in_time_is_closed(sent):
  with serving(timeout=0.5) as connect:
    silent = connect()
    silent.sendall(sent)
    assert 0.3 < end_of(silent) < 5


def test_a_header_that_drips_in_is_not_waited_for():
  with serving(timeout=0.3) as connect:
    slow, begin = connect(), time.monotonic()
    with pytest.raises(OSError):
      while time.monotonic() < begin + 5:
        slow.sendall(b"G")
        time.sleep(0.05)
    assert time.monotonic() < begin + 3


def test_what_is_being_answered_is_not_cut():
  async def late(scope, receive, send):
    await asyncio.sleep(0.7)
    await PlainTextResponse("late")(scope, receive, send)

  with serving(late, timeout=0.2) as connect:
    assert ask(connect()).endswith("late")


def test_silent_connections_shut_nobody_out():
  """Those of one address are closed at once beyond its share; all of them when their time is over."""
  with serving(timeout=1.0, per_address=8, total=12) as connect:
    silent = [connect() for _ in range(40)]
    assert end_of(silent[-1]) < 0.5
    other = connect("127.0.0.2")
    assert ask(other).endswith("ok") and ask(other).endswith("ok")
    assert all(end_of(connection) < 5 for connection in silent)
    assert ask(connect()).endswith("ok")


def test_a_full_server_says_so_in_json_and_goes_on_with_those_it_has():
  with serving(timeout=5.0, per_address=2, total=4) as connect:
    first = connect("127.0.0.2")
    assert ask(first).endswith("ok")
    for i in (2, 3, 3):
      connect(f"127.0.0.{i}")
    refused = ask(connect("127.0.0.4"))
    assert refused.startswith("HTTP/1.1 503 ") and "\r\ncontent-security-policy: " in refused
    assert refused.endswith('{"error":"the server has all the connections it takes; try again"}')
    assert ask(first).endswith("ok")
