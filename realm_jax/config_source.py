"""Configs by name, a file or a run directory, and what is wrong with one, in one line."""

from __future__ import annotations

import difflib
import pathlib
import re
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from realm_jax.config import flat_fields, stored_config
from realm_jax.index.run_dir import RunDir

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def read_config(source: str) -> ConfigDict:
  """The config that FILE.py or FILE.py:ARGUMENT makes, or that a run directory holds.

  Raises:
    ValueError: it can't be read; the message is one line.
    FileNotFoundError: there is no such file, or no config in the run directory.
  """
  if not re.search(r"\.py(:|$)", source):
    return stored_config(RunDir(source).read_config())
  path = pathlib.Path(source.rpartition(":")[0] if ".py:" in source else source)
  if not path.is_file():
    raise FileNotFoundError(f"no config file {path}")
  values = flags.FlagValues()
  argv = ["realm", f"--config={source}"]
  config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values, sys_argv=argv)
  try:
    values(argv)
    return values.config
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    raise ValueError(f"{source}: {_reason(error)}") from error


def config_fault(arguments: Sequence[str], error: Exception) -> str:
  """What is wrong with --config and --config.a.b=value among a command line's arguments, which raised the error."""
  sources = [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
  if not sources:
    return _reason(error)
  try:
    fields = flat_fields(read_config(sources[-1]).to_dict())
  except (ValueError, OSError) as cause:
    return str(cause)
  for argument in arguments:
    if match := re.match(r"--(?:no)?config\.([^=]+)", argument):
      field = match[1]
      if sections := [name for name in fields if name.startswith(f"{field}.")]:
        return f"--config.{field} holds several fields; set one of them, such as --config.{sections[0]}=..."
      if field not in fields:
        return f"--config has no field {field!r}{did_you_mean(field, list(fields))}"
  if match := re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL):
    value = fields[match[1]]
    return f"--config.{match[1]} takes {_KINDS[type(value)]}, such as {value!r}; {match[2]!r} came"
  return _reason(error)


def did_you_mean(field: str, fields: Sequence[str]) -> str:
  """ "hidden" -> "; did you mean 'model.hidden_size'?", or where the fields stand, if none is alike."""
  name = field.rpartition(".")[2]
  alike = [f for f in fields if f.rpartition(".")[2] == name] or difflib.get_close_matches(field, fields, 1)
  return f"; did you mean {' or '.join(map(repr, alike))}?" if alike else "; the fields are in realm_jax/config.py"


def _reason(error: Exception) -> str:
  """What a config file's error says, without the traceback and the whole config that stand around it."""
  text = str(error)
  if unknown := re.search(r'Key "(.*?)" does not exist', text):
    alike = re.findall(r'Did you mean "(.*?)" instead', text)
    return f"no field {unknown[1]!r}{did_you_mean(unknown[1], alike)}"
  return text.strip().splitlines()[-1].strip() if text.strip() else type(error).__name__
