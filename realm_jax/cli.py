"""The command line: `realm VERB [flags]`, one module a verb."""

from __future__ import annotations

import importlib
import os
import re
import select
import shlex
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from absl import flags, logging

VERBS = {
  "build_corpus": "raw text -> a passage store",
  "mine_negatives": "passages that are similar to each, for ict to tell apart",
  "train": "one loop, four stages: ict, mlm, pretrain, finetune",
  "refresh_index": "the indexer: follows the trainer's parameters and publishes index snapshots",
  "evaluate": "recall@k, exact match and F1 on questions, and a report",
  "ask": "answers questions, with the evidence",
  "serve": "a web page and a JSON API that answer questions",
  "inspect": "what a run directory holds, and what a question finds in it",
  "config": "shows a config, or how two differ",
  "plan": "compiles the step for a TPU slice, without one: will it fit, how fast can it be",
  "convert": "weights of HF or TensorFlow -> a run, and runs -> HF's safetensors",
}

_UNREAD = 128 + signal.SIGPIPE  # as a shell says of other programs

_MODULES = {"inspect": "inspect_run", "config": "show_config"}  # whose own names are taken


def load_verb(name: str) -> ModuleType:
  """The module of a verb, with `define_flags(values)` and `main(values, positional)`."""
  return importlib.import_module(f"realm_jax.{_MODULES.get(name, name)}")


def main() -> None:
  """The console script."""
  sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
  """Runs a verb with its flags; returns the exit status.

  0; 1 for an error, or the error's own; 2 for wrong usage; 130 when Ctrl-C ended it; 141, without a word, when what
  its output was piped into has ended, as `head` does.
  """
  try:
    status = _run(arguments)
    sys.stdout.flush()
  except BrokenPipeError:
    if not _output_is_unread():
      raise
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes once more when it exits
    return _UNREAD
  return status


def load_ipython_extension(shell: Any) -> None:
  """For %load_ext realm_jax.cli: a notebook's %realm VERB [flags], which stops the notebook when it fails.

  In the notebook's own process, so that what is compiled is there again, and one process alone has the devices.
  """
  from IPython.core.error import UsageError  # noqa: PLC0415 only a notebook has it

  def realm(line: str) -> None:
    if status := run(shlex.split(line)):
      raise UsageError(f"realm ended with status {status}; why stands above")

  shell.register_magic_function(realm)


def _run(arguments: Sequence[str]) -> int:
  if not arguments or arguments[0] not in VERBS:
    wanted = bool(arguments) and arguments[0] in ("help", "--help", "-h")
    print(_overview(None if wanted or not arguments else arguments[0]), file=sys.stdout if wanted else sys.stderr)
    return 0 if wanted else 2
  name, *rest = arguments
  rest = _with_joined_config(rest)
  verb = load_verb(name)
  values = flags.FlagValues()
  flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
  verb.define_flags(values)
  if {"--help", "-h"} & set(rest):  # before they are parsed: a required flag may be missing
    print(_help(verb, values))
    return 0
  argv, sys.argv = sys.argv, [name, *rest]  # where config_flags looks for --config.a.b=value
  try:
    positional = values(sys.argv)[1:]
    if "config" in values:
      getattr(values.config, "stage", None)  # of a file that isn't there, only a look raises OSError
  except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:  # all others: of a config
    if any(argument.startswith(("--config.", "--noconfig.", "--config=")) for argument in rest):
      from realm_jax.config_source import config_fault  # noqa: PLC0415 the rest of the command line needs no JAX

      message = config_fault(rest, error)
    else:
      message = str(error)
    print(f"realm {name}: {message}\nrealm {name} --help  lists the flags", file=sys.stderr)
    return 2
  finally:
    sys.argv = argv
  logging.set_verbosity(logging.ERROR)  # Orbax tells of every file it doesn't find
  try:
    verb.main(values, positional)
  except (ValueError, OSError, ImportError, TimeoutError, RuntimeError, FloatingPointError) as error:
    if os.environ.get("REALM_DEBUG") or (isinstance(error, BrokenPipeError) and _output_is_unread()):
      raise
    print(f"realm {name}: {error}\n(REALM_DEBUG=1 shows where)", file=sys.stderr)
    return getattr(error, "exit_status", 1)
  except KeyboardInterrupt as error:
    print(f"\nrealm {name}: stopped{f': {error}' if error.args else ''}", file=sys.stderr)
    return 130
  return 0


def _with_joined_config(arguments: Sequence[str]) -> list[str]:
  """--config FILE and -config=FILE as --config=FILE, the one form that the messages know."""
  joined: list[str] = []
  for argument in arguments:
    if joined and joined[-1] == "--config" and not argument.startswith("-"):
      joined[-1] += f"={argument}"
    else:
      joined.append(re.sub(r"^--?config(?=[.=]|$)", "--config", argument))
  return joined


def _output_is_unread() -> bool:
  """Whether standard output is a pipe without a reader: of a pipe that breaks, one must know which it was."""
  poll = select.poll()
  poll.register(sys.stdout, 0)
  return any(event & select.POLLERR for _, event in poll.poll(0))


def _overview(unknown: str | None) -> str:
  lines = [f"no verb {unknown!r}" if unknown else "REALM for JAX", "", "realm VERB [flags], where VERB is one of"]
  lines += [f"  {verb:<15}{text}" for verb, text in VERBS.items()]
  example = "  realm build_corpus --sample --output=corpora/sample"
  return "\n".join([*lines, "", "realm VERB --help  says more, with examples. To begin with:", example])


def _help(verb: ModuleType, values: flags.FlagValues) -> str:
  lines = [(verb.__doc__ or "").strip(), "", "Flags:"]
  for name in sorted(set(values)):
    flag = values[name]
    if name == flag.name:
      default = "" if flag.default in (None, False) else f" [{flag.default}]"
      lines.append(f"  --{name}: {flag.help}{default}")
  return "\n".join(lines)


if __name__ == "__main__":
  main()
