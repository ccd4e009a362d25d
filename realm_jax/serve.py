"""Answers questions over HTTP: a web page, and a JSON API that /openapi.json describes.

  realm serve --workdir=runs/finetune

A newer checkpoint or index of the run is taken into use without a restart. It listens on this machine alone. To be
reached from others, say where to listen and under which names:

  realm serve --workdir=runs/finetune --host=0.0.0.0 --allowed_hosts=qa.example.org
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Sequence

from absl import flags

from realm_jax import cli

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_MAX_CONNECTIONS = 512  # what is asked on more gets 503 at once


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", None, "A run directory with an index.", required=True, flag_values=values)
  flags.DEFINE_string("checkpoint", None, "Its step, or best [the newest].", flag_values=values)
  flags.DEFINE_integer(
    "num_passages", None, "Passages to read for each question [the config's num_inference_passages].", 1,
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_string("host", "127.0.0.1", "The address to listen on.", flag_values=values)
  flags.DEFINE_integer("port", 8080, "The port; 0 takes a free one.", 0, 65_535, flag_values=values)
  flags.DEFINE_list(
    "allowed_hosts", None, "Names under which the server may be addressed, * for any [--host, and localhost].",
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_bool(
    "exact", True, "Offer exact search too; where the index is ScaNN's, this holds the embeddings a second time.",
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_float("requests_per_second", 50, "Questions of one address; more get 429.", 0.01, flag_values=values)
  flags.DEFINE_integer(
    "connections_per_address", 192, "Connections of one address; more are closed at once.", 1, flag_values=values
  )
  flags.DEFINE_integer("max_waiting", 64, "Questions that wait at most; more get 429.", 1, flag_values=values)
  flags.DEFINE_float(
    "look_every", 10, "Seconds between looks for a newer checkpoint or index; 0: none.", 0, flag_values=values
  )
  flags.DEFINE_float("timeout", 10, "Seconds until a question gets 503.", 0.1, flag_values=values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  if positional:
    raise ValueError(f"unexpected {positional[0]!r}")
  hosts = _checked_hosts(values.allowed_hosts) if values.allowed_hosts else _default_hosts(values.host)
  try:
    import uvicorn  # noqa: PLC0415 an extra

    from realm_jax.serving import connections, follower, open_qa, web  # noqa: PLC0415 after the flags, so that --help is quick
  except ModuleNotFoundError as error:
    if error.name not in ("fastapi", "uvicorn"):
      raise
    raise ImportError(f"realm serve needs {error.name}:  pip install 'realm_jax[serve]'") from error
  listening = listen(values.host, values.port)
  # Before the run is loaded: what comes meanwhile is newer.
  following = follower.RunFollower(
    values.workdir, values.checkpoint, lambda line: print(line, file=sys.stderr), num_passages=values.num_passages
  )
  loaded = open_qa.OpenQA.load(values.workdir, values.checkpoint, num_passages=values.num_passages)
  loaded.warn_of_cut_passages()
  app = web.create_app(
    loaded,
    allowed_hosts=tuple(hosts),
    limits=web.Limits(values.requests_per_second, values.max_waiting, values.timeout),
    exact=values.exact,
    look=following.look,
    look_every=values.look_every,
  )
  protocol = connections.bounded_protocol(
    timeout=values.timeout, per_address=values.connections_per_address, total=_MAX_CONNECTIONS
  )
  config = uvicorn.Config(
      app, http=protocol, log_level="warning", access_log=False, ws="none", proxy_headers=False, server_header=False,
      timeout_graceful_shutdown=5,
  )  # fmt: skip
  host = f"[{values.host}]" if ":" in values.host else values.host
  print(f"http://{host}:{listening.getsockname()[1]}/  (Ctrl-C ends)", flush=True)
  uvicorn.Server(config).run([listening])


def listen(host: str, port: int) -> socket.socket:
  """A socket that takes connections; raises OSError with what to do."""
  try:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
  except OSError as error:
    raise OSError(
      f"can't listen on port {port} of {host} ({error.strerror}); choose another --port or --host"
    ) from None


def _checked_hosts(hosts: Sequence[str]) -> Sequence[str]:
  for host in hosts:
    if not re.fullmatch(r"\*|(\*\.)?[\w.-]+|\[[\da-fA-F:.]+\]", host):
      raise ValueError(
        f"--allowed_hosts: {host!r} is no name of a machine; give names without a port, such as qa.example.org, "
        "*.example.org for all below that, or * for any"
      )
  return hosts


def _default_hosts(host: str) -> tuple[str, ...]:
  """A page elsewhere can give this machine a name of its own: only known names are answered."""
  if host in ("0.0.0.0", "::"):
    raise ValueError(
      f"--host={host} listens to all machines: say by which names they call this one, --allowed_hosts=NAME"
    )
  return (*_LOOPBACK, f"[{host}]" if ":" in host else host)


if __name__ == "__main__":
  sys.exit(cli.run(["serve", *sys.argv[1:]]))
