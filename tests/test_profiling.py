"""--profile: which steps are traced, and where the trace lies."""

import jax
import jax.numpy as jnp
import pytest
from gcs_server import serve

from realm_jax import cli
from realm_jax.index.run_dir import RunDir
from realm_jax.training.profiling import Profile, parse_steps


@pytest.fixture
def traced(monkeypatch):
  """In place of the profiler: where it wrote, and between which steps."""
  calls = []

  def start(directory, *, create_perfetto_trace):
    calls.append(["start", directory, create_perfetto_trace])

  monkeypatch.setattr(jax.profiler, "start_trace", start)
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(["stop"]))
  return calls


def run_steps(profile, first_step, num_steps, calls):
  with profile:
    for step in range(first_step, num_steps):
      profile.begin(step)
      calls.append([step])
      profile.end(step + 1, None)


@pytest.mark.parametrize(
  ("first_step", "num_steps", "expected"), [(0, 6, [2, 3]), (3, 6, [3]), (4, 6, []), (0, 3, [2]), (0, 2, [])]
)
def test_the_steps_between_are_traced_as_far_as_the_run_makes_them(tmp_path, traced, first_step, num_steps, expected):
  said = []
  run_dir = RunDir(tmp_path)
  run_steps(Profile("2:4", run_dir, log=said.append), first_step, num_steps, traced)
  inside = [["start", str(run_dir.profile), True], *([step] for step in expected), ["stop"]] if expected else []
  before, after = range(first_step, 2), range(4, num_steps)
  assert traced == [*([s] for s in before if s < num_steps), *inside, *([s] for s in after)]
  (line,) = said
  assert line.startswith("profile of the steps to 4: " if expected else "nothing was traced: ")


def test_a_run_without_the_steps_says_that_nothing_was_traced(tmp_path, traced):
  said = []
  run_steps(Profile("5:9", RunDir(tmp_path), log=said.append), 0, 3, traced)
  run_steps(Profile(None, RunDir(tmp_path), log=said.append), 0, 3, traced)
  assert said == ["nothing was traced: this call made none of the steps between 5 and 9"]


def test_an_error_ends_the_trace(tmp_path, traced):
  with pytest.raises(KeyError), Profile("0:4", RunDir(tmp_path), log=print) as profile:
    profile.begin(0)
    raise KeyError
  assert [call[0] for call in traced] == ["start", "stop"]


@pytest.mark.parametrize("text", ["10", "10:10", "13:10", "-1:3", "a:b", "1:2:3"])
def test_what_is_no_range_of_steps(text, tmp_path, capsys, monkeypatch):
  monkeypatch.delenv("REALM_DEBUG", raising=False)
  message = f"--profile={text}, expected FIRST:LAST, as 10:13 for the three steps after the 10th"
  with pytest.raises(ValueError, match=f"^{message}$"):
    parse_steps(text)
  assert cli.run(["train", "--config=configs/demo.py:ict", f"--workdir={tmp_path}/run", f"--profile={text}"]) == 1
  assert message in capsys.readouterr().err


def trace_a_product(run_dir):
  said = []
  with Profile("0:1", run_dir, log=said.append) as profile:
    profile.begin(0)
    profile.end(1, jnp.ones((50, 50)) @ jnp.ones((50, 50)))
  return said


def test_the_profiler_writes_below_the_run(tmp_path):
  run_dir = RunDir(tmp_path)
  (line,) = trace_a_product(run_dir)
  (trace,) = run_dir.profile.glob("plugins/profile/*/*.xplane.pb")
  assert (trace.parent / "perfetto_trace.json.gz").exists()
  assert line.startswith(f"profile of the steps to 1: {run_dir.profile}; open its perfetto_trace.json.gz at ")
  assert line.endswith(f"xprof --logdir={run_dir.profile}")


def test_a_trace_is_copied_to_a_bucket(monkeypatch):
  with serve("bucket") as server:
    for name, value in server.environment.items():
      monkeypatch.setenv(name, value)
    trace_a_product(RunDir("gs://bucket/run"))
    names = server.names("bucket", "run/")
  assert [name.rpartition(".")[2] for name in names if "/profile/" in name] and any("xplane.pb" in n for n in names)
