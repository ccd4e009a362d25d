"""The verb config, and what is said of a config that is wrong."""

import json
import pathlib

import pytest

from realm_jax import cli
from realm_jax.config import flat_fields, paper_config
from realm_jax.config_source import read_config
from realm_jax.index.run_dir import RunDir

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def test_diff_names_the_fields_that_differ(realm, tmp_path):
  config = paper_config("ict")
  config.batch_size, config.model.dtype = 7, "bfloat16"
  RunDir(tmp_path / "run").write_config(config.to_dict())
  status, out, _ = realm("config", "diff", f"{CONFIGS}/ict.py", f"{tmp_path}/run", "--json")
  expected = paper_config("ict").batch_size
  assert (status, json.loads(out)) == (0, {"batch_size": [expected, 7], "model.dtype": ["float32", "bfloat16"]})
  _, out, _ = realm("config", "diff", f"{CONFIGS}/ict.py", f"{tmp_path}/run")
  assert [line.split() for line in out.splitlines()] == [
    [f"{CONFIGS}/ict.py", f"{tmp_path}/run"],
    ["batch_size", "4096", "7"],
    ["model.dtype", '"float32"', '"bfloat16"'],
  ]
  assert realm("config", "diff", f"{tmp_path}/run", f"{tmp_path}/run") == (0, "no field differs\n", "")
  assert realm("config", "diff", f"{tmp_path}/run", f"{tmp_path}/run", "--json") == (0, "{}\n", "")


def test_show_has_every_field(realm):
  status, out, _ = realm("config", "show", f"{CONFIGS}/demo.py:ict", "--json")
  shown = json.loads(out)
  assert status == 0 and list(shown) == sorted(flat_fields(paper_config("ict").to_dict()))
  assert (shown["batch_size"], shown["model.hidden_size"], shown["index.scann.num_leaves"]) == (64, 128, 0)
  _, out, _ = realm("config", "show", f"{CONFIGS}/demo.py:ict")
  assert [line.split()[0] for line in out.splitlines()] == list(shown)
  assert ["model.hidden_size", "128"] in [line.split() for line in out.splitlines()]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "give  show A  or  diff A B, each a config file or a run directory"),
    (["diff", "a"], "give  show A  or  diff A B, each a config file or a run directory"),
    (["show", "/nonexistent/x.py"], "no config file /nonexistent/x.py"),
    (["show", "/nonexistent/x.py:ict"], "no config file /nonexistent/x.py"),
    (["show", f"{CONFIGS}/itc.py"], f"no config file {CONFIGS}/itc.py; did you mean {CONFIGS}/ict.py?"),
    (["show", f"{CONFIGS}/demo.py"], f"{CONFIGS}/demo.py needs a stage: give {CONFIGS}/demo.py:STAGE; the stages are "),
    (["show", f"{CONFIGS}/demo.py:x"], f"{CONFIGS}/demo.py:x: ValueError: unknown stage 'x'; the stages are"),
  ],
)
def test_wrong_use(realm, arguments, message):
  status, out, err = realm("config", *arguments)
  assert (status, out, len(err.splitlines())) == (1, "", 2)
  assert err.startswith(f"realm config: {message}")


def test_the_projects_configs_are_named_anywhere(realm, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  status, _, err = realm("train", "--config=configs/demo.py:ict", "--workdir=x")
  assert status == 2
  assert err.startswith(f"realm train: no config file configs/demo.py; did you mean {CONFIGS}/demo.py:ict?\n")
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "demo2.py").touch()
  assert realm("train", "--config=configs/demo.py:ict", "--workdir=x")[2] == err


@pytest.mark.parametrize(
  ("source", "message"),
  [
    (f"{CONFIGS}/itc.py", f"no config file {CONFIGS}/itc.py; did you mean {CONFIGS}/ict.py?"),
    ("/nonexistent", "no config file /nonexistent"),
    (
      f"{CONFIGS}/demo.py",
      f"{CONFIGS}/demo.py needs a stage: give {CONFIGS}/demo.py:STAGE; the stages are ict, mlm, pretrain, finetune",
    ),
    (
      f"{CONFIGS}/openqa.py",
      f"{CONFIGS}/openqa.py needs a name: give {CONFIGS}/openqa.py:NAME; there are before, reader and finetune",
    ),
    (
      f"{CONFIGS}/table2.py",
      f"{CONFIGS}/table2.py needs a row: give {CONFIGS}/table2.py:ROW; the file says which there are",
    ),
    (f"{CONFIGS}/ict.py:x", f"{CONFIGS}/ict.py:x: that file makes one config; leave out what stands behind .py"),
  ],
)
def test_what_is_wrong_with_a_source(realm, source, message):
  for flag in (
    [f"--config={source}"],
    ["--config", source],
    ["-config", source],
    [f"--config={source}", "--config.x=1"],
  ):
    status, out, err = realm("train", *flag, "--workdir=/nonexistent")
    assert (status, out, err) == (2, "", f"realm train: {message}\nrealm train --help  lists the flags\n")


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("batch_sise=3", "--config has no field 'batch_sise'; did you mean 'batch_size'?"),
    ("model.hidden=3", "--config has no field 'model.hidden'; did you mean 'model.hidden_size'?"),
    ("learning_rate=3", "--config has no field 'learning_rate'; did you mean 'optimizer.learning_rate'?"),
    ("keep=3", "--config has no field 'keep'; did you mean 'checkpoint.keep' or 'index.keep'?"),
    ("seed.x=3", "--config has no field 'seed.x'; did you mean 'seed'?"),
    ("zzz=3", "--config has no field 'zzz'; the fields are in realm_jax/config.py"),
    ("model=3", "--config.model holds several fields; set one of them, such as --config.model.attention=..."),
    ("batch_size=many", "--config.batch_size takes a whole number, such as 4096; 'many' came"),
    ("batch_size=2.5", "--config.batch_size takes a whole number, such as 4096; '2.5' came"),
    ("index.sync=maybe", "--config.index.sync takes true or false, such as False; 'maybe' came"),
    ("optimizer.learning_rate=big", "--config.optimizer.learning_rate takes a number, such as 0.0001; 'big' came"),
  ],
)
def test_what_is_wrong_with_an_override(realm, override, message):
  for flag in ([f"--config={CONFIGS}/ict.py"], ["--config", f"{CONFIGS}/ict.py"]):
    status, out, err = realm("train", *flag, f"--config.{override}", "--workdir=/nonexistent")
    assert (status, out) == (2, "")
    assert err == f"realm train: {message}\nrealm train --help  lists the flags\n"


@pytest.mark.parametrize("source", ["ict.py", "demo.py:finetune", "nq.py:improved"])
def test_every_field_can_be_set_by_a_flag(monkeypatch, source):
  """To another value than it has, which it then has."""
  more = {int: 7, float: 0.5, str: "x"}
  fields = flat_fields(read_config(f"{CONFIGS}/{source}").to_dict())
  expected = {field: not old if isinstance(old, bool) else old + more[type(old)] for field, old in fields.items()}
  seen = []
  monkeypatch.setattr("realm_jax.training.loop.train", lambda config, run_dir, **_: seen.append(config))
  overrides = [f"--config.{field}={value}" for field, value in expected.items()]
  assert cli.run(["train", f"--config={CONFIGS}/{source}", *overrides, "--workdir=/nonexistent"]) == 0
  assert flat_fields(seen[0].to_dict()) == pytest.approx(expected)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("config.batch_sise = 3", "no field 'batch_sise'; did you mean 'batch_size'?"),
    ("config.zzz = 3", "no field 'zzz'; the fields are in realm_jax/config.py"),
    ("config.batch_size = 'many'", "TypeError: Could not override field 'batch_size'"),
  ],
)
def test_what_is_wrong_with_a_config_file(realm, tmp_path, line, message):
  path = tmp_path / "mine.py"
  path.write_text(
    "from realm_jax.config import paper_config\n\n"
    f"def get_config():\n  config = paper_config('ict')\n  {line}\n  return config\n"
  )
  status, out, err = realm("train", f"--config={path}", "--workdir=/nonexistent")
  assert (status, out, err.splitlines()[1:]) == (2, "", ["realm train --help  lists the flags"])
  assert err.startswith(f"realm train: {path}: {message}")
