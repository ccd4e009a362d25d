"""Jobs of two processes with two devices each: they make what one process makes, and end together."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from absl import flags
from processes import CACHE, build_corpus, lines_of, realm, train

from realm_jax import multihost
from realm_jax.index.digest import tree_digest
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir

FLAGS = [
    "--config.init=", "--config.num_passages=3", "--config.index.export_every=2", "--config.index.sync=True",
    "--config.checkpoint.every=3", "--config.index.timeout=100.0",
    "--config.index.batch_size=32",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return build_corpus(tmp_path_factory.mktemp("hosts"))


def devices(count):
  return {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={count}"}


def address():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


def job(start, *, count=2):
  """start(flags, options) for each host -> the processes."""
  where = address()
  return [
    start(
      [f"--coordinator_address={where}", f"--num_processes={count}", f"--process_id={i}", "--heartbeat_timeout=10"],
      {"wait": False, "env": devices(2)},
    )
    for i in range(count)
  ]


def train_together(corpus, name, *more, different=()):
  """different: flags of the last host alone."""
  hosts = []

  def start(flags, options):
    hosts.append(None)
    alone = different if len(hosts) == 2 else ()
    return train("pretrain", corpus, corpus.parent / name, *FLAGS, *more, *alone, *flags, **options)

  return job(start)


def ended(processes, timeout=240):
  """Exit statuses and outputs."""
  outputs = [process.communicate(timeout=timeout)[0] for process in processes]
  return [process.returncode for process in processes], outputs


@pytest.fixture(scope="module")
def calm(corpus):
  """A run of two hosts with an indexer of two, and one of a process with four devices, of 6 steps."""
  two, one, more = corpus.parent / "two", corpus.parent / "one", ["--config.num_steps=6"]
  check_done(
    train_together(corpus, "two", *more),
    job(lambda flags, options: realm("refresh_index", f"--workdir={two}", "--quiet", *flags, **options)),
  )
  alone = {"wait": False, "env": devices(4)}
  check_done(
    [train("pretrain", corpus, one, *FLAGS, *more, **alone)],
    [realm("refresh_index", f"--workdir={one}", "--quiet", **alone)],
  )
  return two


def check_done(trainers, indexers):
  statuses, outputs = ended([*trainers, *indexers])
  assert not any(statuses), outputs
  published = ["4 snapshots published" in output for output in outputs]
  assert published == [i == len(trainers) for i in range(len(outputs))]  # the first of the indexers


def test_two_hosts_make_what_one_makes(calm):
  one = calm.parent / "one"
  losses = [[line["loss"] for line in lines_of(run)] for run in (calm, one)]
  assert len(losses[0]) == 6
  assert losses[0] == pytest.approx(losses[1], rel=1e-6)
  assert [line["index_age"] for line in lines_of(calm)] == [line["index_age"] for line in lines_of(one)]
  assert [line["tokens_per_second"] > 0 for line in lines_of(calm)] == [True] * 6
  assert RunDir(calm).adoption_steps() == RunDir(one).adoption_steps() == [0, 4]
  assert RunDir(calm).checkpoint_steps()[-1] == 6 and RunDir(calm).is_done()


@pytest.mark.slow
def test_two_hosts_refresh_their_own_index(corpus, calm):
  """As a run whose indexer is another job, up to the first step at which that one is behind."""
  run = corpus.parent / "inline"
  statuses, outputs = ended(train_together(corpus, "inline", "--config.num_steps=4", "--config.index.refresh=inline"))
  assert statuses == [0, 0], outputs
  lines = lines_of(run)
  assert [line["index_age"] for line in lines] == [0, 1, 0, 1]
  assert [line["loss"] for line in lines[:2]] == [line["loss"] for line in lines_of(calm)[:2]]
  assert RunDir(run).adoption_steps() == [0, 2] and RunDir(run).is_done()
  assert outputs[0].count(" passages with the parameters of step ") == 3  # the last ones are for evaluation
  assert " passages with the parameters of step " not in outputs[1]


def wait_for_step(run, step, processes):
  deadline = time.monotonic() + 120
  while not any(line["step"] >= step for line in lines_of(run)):
    assert time.monotonic() < deadline and all(p.poll() is None for p in processes), ended(processes)
    time.sleep(0.05)


def test_when_a_host_is_lost_the_job_ends_and_a_new_one_goes_on_to_the_same_bits(corpus, calm):
  run, more = corpus.parent / "lost", ["--config.num_steps=6"]
  indexer = realm("refresh_index", f"--workdir={run}", "--quiet", wait=False)
  trainers = train_together(corpus, "lost", *more)
  wait_for_step(run, 4, trainers)
  trainers[1].kill()
  started = time.monotonic()
  statuses, outputs = ended(trainers, timeout=60)
  assert time.monotonic() - started < 60
  # As an error of a collective, or for want of heartbeats.
  assert statuses[0] != 0 and "another host was lost" in outputs[0], outputs[0]
  assert outputs[0].count("start all again, the run goes on from its newest checkpoint") == 1, outputs[0]
  statuses, outputs = ended(train_together(corpus, "lost", *more))
  assert statuses == [0, 0], outputs
  assert ended([indexer])[0] == [0]
  assert 3 in RunDir(run).checkpoint_steps()
  step, params = restore_params(RunDir(run))
  assert step == 6
  assert tree_digest(params) == tree_digest(restore_params(RunDir(calm))[1])


ONE_HOST = """
import os, sys
from absl import flags
from realm_jax import multihost
values = flags.FlagValues()
multihost.define_flags(values)
values(["realm", *sys.argv[2:]])
with multihost.joined(values):
  eval(sys.argv[1])
"""


def host(code, *flags):
  """A process that does no more than to join the others, and `code`."""
  command = [sys.executable, "-c", ONE_HOST, code, *flags]
  return subprocess.Popen(command, env=os.environ | CACHE, text=True, stderr=subprocess.PIPE)


def test_a_process_that_is_ended_leaves_its_last_words():
  ends = {"os.abort()": -6, "os.kill(os.getpid(), 9)": -9, "1 / 0": 1, "None": 0}
  for end, status in ends.items():
    process = host(end, f"--coordinator_address={address()}", "--num_processes=1", "--process_id=0")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status, (end, stderr)
    assert ("ended before it could say why" in stderr) == (status < 0), (end, stderr)


def test_hosts_that_disagree_on_their_number():
  """JAX ends the one that the others don't expect."""
  where = f"--coordinator_address={address()}"
  first = host("None", where, "--num_processes=2", "--process_id=0")
  odd = host("None", where, "--num_processes=4", "--process_id=3")
  try:
    _, stderr = odd.communicate(timeout=60)
  finally:
    first.kill()
  assert odd.returncode < 0
  assert "when hosts differ in --num_processes or share a --process_id" in stderr.splitlines()[-1]
  assert "ended before it could say why" in first.communicate()[1]


def join(*arguments):
  """Joins a job with such flags, in this process."""
  values = flags.FlagValues()
  multihost.define_flags(values)
  values(["realm", *arguments])
  with multihost.joined(values):
    pass


@pytest.mark.parametrize("where", ["10.0.0.1:0", "10.0.0.1:70000", "10.0.0.1:port", ":8476", "10.0.0.1"])
def test_an_address_that_is_none(where):
  with pytest.raises(
    ValueError, match=f"^--coordinator_address={where}: expected HOST:PORT, with a port between 1 and"
  ):
    join(f"--coordinator_address={where}", "--num_processes=2", "--process_id=1")


def test_a_port_that_is_taken():
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(ValueError, match=rf"^port {port} is taken on this host \(Address already in use\); give all"):
      join(f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", "--process_id=0")


def test_multihost_where_there_is_no_job(monkeypatch):
  for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST"):
    monkeypatch.delenv(name, raising=False)
  *_, line = host("None", "--multihost").communicate(timeout=60)[1].splitlines()
  assert line.startswith("RuntimeError: --multihost found no TPU slice, GKE, Slurm or MPI job around this process; ")


@pytest.mark.parametrize(
  ("different", "message"),
  [
    (["--config.batch_size=8"], "config.batch_size is 8 on host 1, 4 on the first host of this job"),
    (["--config.corpus=nowhere"], "nowhere"),
  ],
)
def test_hosts_that_disagree_all_end_at_the_start(corpus, different, message):
  statuses, outputs = ended(train_together(corpus, "odd", "--config.num_steps=6", different=different), timeout=100)
  assert statuses == [1, 1]
  assert message in outputs[1]
  assert "host 1 of this job" in outputs[0]
  assert not RunDir(corpus.parent / "odd").config.exists()


def test_a_coordinator_that_is_not_there_is_an_error(corpus):
  process = train(
      "pretrain", corpus, corpus.parent / "alone", "--config.num_steps=6", f"--coordinator_address={address()}",
      "--num_processes=2", "--process_id=1", "--join_timeout=3", wait=False,
  )  # fmt: skip
  (status,), (output,) = ended([process], timeout=60)
  assert status == 1
  assert "this host did not find the others in 3 s (coordinator 127.0.0.1:" in output


def test_sigterm_and_ctrl_c_save_and_end_with_a_status_of_their_own(corpus, ctrl_c):
  run = corpus.parent / "preempted"
  flags = ["--config.init=", "--config.num_passages=3", "--config.index.refresh=inline",
           "--config.index.export_every=2", "--config.checkpoint.every=1000"]  # fmt: skip
  step = 0
  for signum, expected in ((signal.SIGTERM, (75, "SIGTERM: ")), (signal.SIGINT, (130, "stopped: "))):
    process = train("pretrain", corpus, run, *flags, "--config.num_steps=100000", wait=False)
    wait_for_step(run, step + 3, [process])
    process.send_signal(signum)
    (status,), (output,) = ended([process], timeout=60)
    assert (f"{run} goes on from step {step} of 100000\n" in output) == (step > 0)
    step = RunDir(run).checkpoint_steps()[-1]
    assert status == expected[0], output
    assert f"realm train: {expected[1]}saved at step {step} of 100000; start again to go on" in output
    assert lines_of(run)[-1]["step"] == step
  train("pretrain", corpus, run, *flags, f"--config.num_steps={step + 1}")
  assert [line["step"] for line in lines_of(run)] == list(range(1, step + 2))


@pytest.mark.slow
def test_sigterm_to_one_of_two_indexers_that_wait_for_a_trainer(tmp_path):
  """The first host alone looks for config.json, so that the other one may see another directory."""
  workdirs = iter([tmp_path / "run", tmp_path / "elsewhere"])
  indexers = job(lambda flags, options: realm("refresh_index", f"--workdir={next(workdirs)}", *flags, **options))
  try:
    assert indexers[0].stdout.readline() == f"waiting for {tmp_path / 'run' / 'config.json'}: realm train writes it\n"
    indexers[1].send_signal(signal.SIGTERM)
    statuses, outputs = ended(indexers, timeout=60)
    assert statuses == [75, 75], outputs
    assert all("SIGTERM: start again to go on" in output for output in outputs)
  finally:
    for process in indexers:
      process.kill()


@pytest.mark.slow
def test_hosts_whose_new_workdirs_are_not_one_all_end_at_the_start(corpus):
  different = [f"--workdir={corpus.parent / 'elsewhere'}"]
  statuses, outputs = ended(train_together(corpus, "apart", "--config.num_steps=6", different=different))
  assert statuses == [1, 1]
  for output, name in zip(outputs, ("apart", "elsewhere")):
    where = f"in {corpus.parent / name} host 1 does not find the config.json that the first host of this job wrote"
    assert f"--workdir must be a directory that all hosts share: {where}" in output


@pytest.mark.slow
def test_sigterm_to_one_host_saves_and_ends_all(corpus):
  run = corpus.parent / "preempted_two"
  trainers = train_together(corpus, "preempted_two", "--config.num_steps=100000")
  indexers = job(lambda flags, options: realm("refresh_index", f"--workdir={run}", "--quiet", *flags, **options))
  try:
    wait_for_step(run, 3, trainers)
    for processes in (trainers, indexers):
      processes[1].send_signal(signal.SIGTERM)
      statuses, outputs = ended(processes, timeout=100)
      assert statuses == [75, 75], outputs
      assert all("SIGTERM: " in output for output in outputs)
  finally:
    for process in [*indexers, *trainers]:
      process.kill()
