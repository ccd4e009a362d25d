"""metrics.jsonl: one line a logged step, averages over the steps between; and who else gets the lines."""

import json
import sys
import types

import jax.numpy as jnp
import pytest

from realm_jax.index.run_dir import RunDir
from realm_jax.training.metrics import MetricsLog
from realm_jax.training.metrics_writers import TensorBoard, WeightsAndBiases


def log_steps(run_dir, first_step, last_step, *, every=5, num_steps=12, loss=float, **options):
  log = MetricsLog(run_dir, first_step=first_step, num_steps=num_steps, every=every, stage="ict", **options)
  for step in range(first_step + 1, last_step + 1):
    log.add(step, {"loss": jnp.float32(loss(step)), "index_age": step % 4, "num_tokens": 100})
  log.close()


def read(run_dir):
  return [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]


def test_a_line_averages_the_steps_since_the_line_before(tmp_path):
  run_dir = RunDir(tmp_path)
  log_steps(run_dir, 0, 12)
  lines = read(run_dir)
  assert [line["step"] for line in lines] == [5, 10, 12]  # the last step has a line of its own
  assert [line["loss"] for line in lines] == [3.0, 8.0, 11.5]
  assert [line["index_age"] for line in lines] == pytest.approx(
    [(1 + 2 + 3 + 0 + 1) / 5, (2 + 3 + 0 + 1 + 2) / 5, (3 + 0) / 2]
  )
  assert all(line["tokens_per_second"] / line["steps_per_second"] == pytest.approx(100, rel=0.02) for line in lines)


def test_lines_after_a_resume_are_not_doubled(tmp_path):
  run_dir = RunDir(tmp_path)
  log_steps(run_dir, 0, 11)
  assert [line["step"] for line in read(run_dir)] == [5, 10]
  log_steps(run_dir, 7, 12, loss=lambda step: -step)  # from a checkpoint of step 7
  lines = read(run_dir)
  assert [line["step"] for line in lines] == [5, 10, 12]
  assert [line["loss"] for line in lines] == [3.0, -9.0, -11.5]


def test_a_line_of_the_checkpoints_own_step_stays(tmp_path):
  run_dir = RunDir(tmp_path)
  log_steps(run_dir, 0, 10)
  log_steps(run_dir, 10, 12)
  assert [line["step"] for line in read(run_dir)] == [5, 10, 12]


def test_a_line_that_was_cut_off_by_a_crash_goes(tmp_path):
  run_dir = RunDir(tmp_path)
  log_steps(run_dir, 0, 5)
  with run_dir.metrics.open("a") as file:
    file.write('{"step": 10, "lo')
  log_steps(run_dir, 5, 10)
  assert [line["step"] for line in read(run_dir)] == [5, 10]


def test_a_run_from_the_start_drops_all_lines(tmp_path):
  run_dir = RunDir(tmp_path)
  log_steps(run_dir, 0, 12)
  log_steps(run_dir, 0, 5)
  assert [line["step"] for line in read(run_dir)] == [5]


@pytest.mark.parametrize(
  "damaged", [b'{"step": 10, "loss" 8.0}\n', b'{"step": "ten"}\n', b"[10]\n", b"\xff\xfe\n", b"\n"]
)
def test_a_damaged_line_stops_no_run(tmp_path, damaged, monkeypatch):
  said = []
  monkeypatch.setattr("tqdm.tqdm.write", said.append)
  run_dir = RunDir(tmp_path)
  log_steps(run_dir, 0, 12)
  assert said == []
  lines = run_dir.metrics.read_bytes().splitlines(keepends=True)
  run_dir.metrics.write_bytes(lines[0] + damaged + lines[2])
  log_steps(run_dir, 12, 15, num_steps=15)
  assert [line["step"] for line in read(run_dir)] == [5, 12, 15]
  assert said == [f"{run_dir.metrics}: 1 damaged lines are left out"]


def test_mfu_stands_where_the_peak_is_known(tmp_path, capsys):
  run_dir = RunDir(tmp_path)
  log_steps(run_dir, 0, 5)
  assert "mfu" not in read(run_dir)[0]
  log_steps(run_dir, 0, 5, peak_seconds=1e-4)
  (line,) = read(run_dir)
  assert line["mfu"] == pytest.approx(1e-4 * line["steps_per_second"], abs=1e-4) and line["mfu"] > 0
  bar = capsys.readouterr().err
  assert f"mfu={line['mfu']:.3g}" in bar and "tokens/s=" in bar


class Wandb(types.ModuleType):
  """Stands in for the module: what it was called with."""

  def __init__(self):
    super().__init__("wandb")
    self.Error = RuntimeError
    self.started, self.logged, self.num_finished = [], [], 0

  def init(self, **arguments):
    self.started.append(arguments)
    return self

  def log(self, line, step):
    self.logged.append((step, line))

  def finish(self):
    self.num_finished += 1


def test_weights_and_biases_gets_the_same_lines_in_one_run(tmp_path, monkeypatch):
  wandb = Wandb()
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  run_dir = RunDir(tmp_path / "run")
  run_dir.path.mkdir()
  log_steps(run_dir, 0, 7, writers=[WeightsAndBiases("mine", run_dir, {"seed": 3})])
  log_steps(run_dir, 5, 12, writers=[WeightsAndBiases("mine", run_dir, {"seed": 3})])
  first, second = wandb.started
  assert first == second and len(first.pop("id")) == 32
  assert first == {
    "project": "mine", "name": "run", "resume": "allow", "config": {"seed": 3}, "dir": str(run_dir.path)
  }  # fmt: skip
  assert wandb.logged == [(line.pop("step"), line) for line in read(run_dir)]
  assert [step for step, _ in wandb.logged] == [5, 10, 12] and wandb.num_finished == 2
  other = RunDir(tmp_path / "other")
  other.path.mkdir()
  WeightsAndBiases("mine", other, {})
  assert wandb.started[2]["id"] != second["id"]


def test_what_weights_and_biases_refuses_is_told_in_a_line(tmp_path, monkeypatch):
  wandb = Wandb()

  def refuse(**_):
    raise wandb.Error("api_key not configured (no-tty)")

  wandb.Error, wandb.init = type("Error", (Exception,), {}), refuse
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  with pytest.raises(RuntimeError, match=r"^--wandb=mine: api_key not .*; log in with  wandb login, or set WANDB_MODE"):
    WeightsAndBiases("mine", RunDir(tmp_path / "run"), {})


@pytest.mark.parametrize(
  ("module", "make", "message"),
  [
    ("wandb", lambda run_dir: WeightsAndBiases("mine", run_dir, {}), r"pip install 'realm_jax\[wandb\]'$"),
    ("flax.metrics", TensorBoard, r"pip install 'realm_jax\[tensorboard\]'$"),
  ],
)
def test_a_missing_extra_gives_the_line_that_installs_it(tmp_path, monkeypatch, module, make, message):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ImportError, match=message):
    make(RunDir(tmp_path))
  assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_same_lines(tmp_path, monkeypatch):
  scalars = []
  writer = types.SimpleNamespace(scalar=lambda *scalar: scalars.append(scalar), close=lambda: scalars.append("closed"))
  opened = types.SimpleNamespace(SummaryWriter=lambda path: writer if path == str(run_dir.tensorboard) else None)
  monkeypatch.setitem(sys.modules, "flax.metrics", types.SimpleNamespace(tensorboard=opened))  # whose import is TF's
  run_dir = RunDir(tmp_path)
  log_steps(run_dir, 0, 12, writers=[TensorBoard(run_dir)])
  assert scalars == [*((name, value, line["step"]) for line in read(run_dir) for name, value in line.items()), "closed"]
