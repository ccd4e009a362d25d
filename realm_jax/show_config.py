"""Shows all fields of a config, or those in which two differ; each is a config file or a run directory.

  realm config show configs/demo.py:ict
  realm config diff configs/pretrain.py runs/pretrain

What each field means stands in realm_jax/config.py.
"""

from __future__ import annotations

import json
import sys

from absl import flags

from realm_jax import cli
from realm_jax.config import flat_fields
from realm_jax.config_source import read_config


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_bool("json", False, "Print JSON: {field: value}, or {field: [A's, B's]}.", flag_values=values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  match positional:
    case ["show", source]:
      rows = {field: [value] for field, value in flat_fields(read_config(source).to_dict()).items()}
      print(json.dumps({field: value for field, [value] in rows.items()}) if values.json else _table(rows))
    case ["diff", *sources] if len(sources) == 2:
      rows = differences(*sources)
      header = {"": sources} if rows else {}
      print(json.dumps(rows) if values.json else _table(header | rows) or "no field differs")
    case _:
      raise ValueError("give  show A  or  diff A B, each a config file or a run directory")


def differences(a: str, b: str) -> dict[str, list]:
  """The fields in which two configs differ, with both values; a field that one of them lacks is None there."""
  fields_a, fields_b = (flat_fields(read_config(source).to_dict()) for source in (a, b))
  return {
    field: [fields_a.get(field), fields_b.get(field)]
    for field in fields_a | fields_b
    if fields_a.get(field) != fields_b.get(field)
  }


def _table(rows: dict[str, list]) -> str:
  cells = [[field, *(v if field == "" else json.dumps(v) for v in value)] for field, value in rows.items()]
  widths = [max(map(len, column)) for column in zip(*cells)]
  return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


if __name__ == "__main__":
  sys.exit(cli.run(["config", *sys.argv[1:]]))
