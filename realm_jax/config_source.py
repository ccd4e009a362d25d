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

_CHECKOUT = pathlib.Path(__file__).parents[1]  # with configs/, where the package is not installed apart from it
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def read_config(source: str) -> ConfigDict:
  """The config that FILE.py or FILE.py:ARGUMENT makes, or that a run directory holds.

  Raises:
    ValueError: it can't be read; the message is one line.
    FileNotFoundError: there is no such file, or no config in the run directory.
  """
  if not re.search(r"\.py(:|$)", source):
    return stored_config(RunDir(source).read_config())
  _check_file(source)
  values = flags.FlagValues()
  argv = ["realm", f"--config={source}"]
  config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values, sys_argv=argv)
  try:
    values(argv)
    return values.config
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    reason = _reason(error)
    if missing := re.search(r"get_config\(\) missing 1 required positional argument: '(\w+)'", reason):
      raise ValueError(
        f"{source} needs a {missing[1]}: give {source}:{missing[1].upper()}{_choices(source)}"
      ) from error
    if "get_config() takes 0 positional arguments" in reason:
      raise ValueError(f"{source}: that file makes one config; leave out what stands behind .py") from error
    raise ValueError(f"{source}: {reason}") from error


def _check_file(source: str) -> None:
  path = pathlib.Path(name := re.sub(r"(?<=\.py):.*", "", source))
  if path.is_file():
    return
  meant: list[pathlib.Path] = []
  for directory in (path.parent, _CHECKOUT / path.parent):  # the same one, if the path is absolute
    alike = difflib.get_close_matches(path.name, [p.name for p in directory.glob("*.py")], 1)
    meant = [directory / alike[0]] if alike and (not meant or alike[0] == path.name) else meant
  raise FileNotFoundError(f"no config file {path}{f'; did you mean {meant[0]}{source[len(name) :]}?' if meant else ''}")


def _choices(source: str) -> str:
  """What a config file says that may stand behind it, "; the stages are ict, ...", by what it says of no word."""
  try:
    read_config(f"{source}:")
  except ValueError as error:
    return "".join(str(error).partition("; ")[1:])
  return "; the file says which there are"


def config_fault(arguments: Sequence[str], error: Exception) -> str:
  """What is wrong with --config and --config.a.b=value among a command line's arguments, which raised the error."""
  sources = [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
  if not sources:
    return _reason(error)
  try:
    _check_file(sources[-1])
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
