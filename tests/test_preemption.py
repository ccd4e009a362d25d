"""SIGTERM and Ctrl-C: while a run waits for an index it ends at once, with the status of one to be started again."""

import os
import signal
import threading
import time
import types
from unittest import mock

import jax
import pytest
from absl import flags
from tiny_runs import tiny_config, write_run

from realm_jax import refresh_index
from realm_jax.index import hosts
from realm_jax.index import snapshot as snapshots
from realm_jax.index.hosts import Preempted, decided_by_first
from realm_jax.index.journal import read_journal
from realm_jax.index.run_dir import RunDir
from realm_jax.training import loop
from realm_jax.training.checkpoint import Restored
from realm_jax.training.preemption import Interrupted, Preemption


@pytest.mark.parametrize(
  ("signum", "raised", "message"),
  [
    (signal.SIGTERM, Preempted, "^SIGTERM: start again to go on$"),
    (signal.SIGINT, Interrupted, "^start again to go on$"),
  ],
)
def test_in_its_first_wait_a_run_has_nothing_to_save(
  sample_store, tmp_path, monkeypatch, ctrl_c, signum, raised, message
):
  """With parameters and exports of which nothing is compiled or written."""
  state = types.SimpleNamespace(step=0, params=None)
  exports = mock.Mock(**{"newest_step.return_value": None})
  monkeypatch.setattr(loop, "_start_or_resume", lambda *arguments: Restored(state, None))
  monkeypatch.setattr(loop, "Exports", lambda *arguments, **options: exports)
  config, run_dir = tiny_config("finetune", sample_store), RunDir(tmp_path / "run")
  questions = tmp_path / "questions.jsonl"
  questions.write_text('{"question": "who?", "answer": ["me"]}\n')
  config.update(questions=str(questions), batch_size=len(jax.devices()))
  lines = []

  def log(line):
    lines.append(line)
    if line.startswith("waiting for the first snapshot"):
      threading.Timer(0.5, os.kill, [os.getpid(), signum]).start()

  started = time.monotonic()
  with pytest.raises(raised, match=message):
    loop.train(config, run_dir, log=log)
  assert time.monotonic() - started < 60 < config.index.timeout
  assert run_dir.checkpoint_steps() == [] and not run_dir.is_done()
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_in_a_later_wait_the_steps_are_saved(sample_store, tmp_path, monkeypatch, ctrl_c):
  run_dir = write_run(tmp_path / "run", sample_store, stage="pretrain", steps=(0,), done=False)
  snapshot = snapshots.load(run_dir, 1, sample_store)
  adoption = read_journal(run_dir).entries[0]
  started = time.monotonic()

  def adopt(step):
    if step == 2:
      threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
      time.sleep(60)
    return snapshot

  follower = types.SimpleNamespace(adopt=adopt, age=lambda step: 0.0, adoption=adoption, snapshot=snapshot)
  monkeypatch.setattr(loop, "_follow", lambda *arguments: follower)
  run_dir = RunDir(tmp_path / "waits")
  config = tiny_config("pretrain", sample_store)
  config.update(num_steps=9, batch_size=len(jax.devices()))
  with pytest.raises(Interrupted, match="^saved at step 2 of 9; start again to go on$"):
    loop.train(config, run_dir)
  assert time.monotonic() - started < 60
  assert run_dir.checkpoint_steps() == [2] and not run_dir.is_done()


def test_a_second_ctrl_c_ends_at_once(ctrl_c, capfd):
  with Preemption() as preemption:
    assert not preemption.is_due()
    os.kill(os.getpid(), signal.SIGINT)
    assert preemption.is_due()
    assert "Ctrl-C: the run is saved and ends, after this step" in capfd.readouterr().err
    with pytest.raises(Interrupted, match="^saved$"):
      preemption.end("saved")
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as error:
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(10)
    assert error.type is KeyboardInterrupt
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_a_shell_ignores_stays_ignored():
  handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with Preemption() as preemption:
      os.kill(os.getpid(), signal.SIGINT)
      assert not preemption.is_due()
  finally:
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(params=[0, 1])
def one_of_two(request, monkeypatch):
  """Host 0 or 1, whose first one waits; SIGTERM comes at the third look. -> what was told, and the looks' numbers."""
  told, looks = [], []

  def tell(what, *values):
    told.append(what)
    return [hosts._PENDING, 0, 0]

  def reached(number):
    looks.append(number)
    return len(looks) == 3

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: request.param)
  monkeypatch.setattr(hosts, "_SECONDS", 0.01)
  monkeypatch.setattr(hosts, "_tell", tell)
  monkeypatch.setattr(hosts.multihost_utils, "reached_preemption_sync_point", reached)
  return told, looks


def test_indexers_that_wait_for_a_trainers_config(one_of_two, tmp_path, capsys):
  told, _ = one_of_two
  values, run_dir = flags.FlagValues(), RunDir(tmp_path / "run")
  refresh_index.define_flags(values)
  values(["refresh_index", f"--workdir={run_dir.path}"])
  try:
    with pytest.raises(Preempted):
      refresh_index.refresh(values)
  finally:
    run_dir.write_config({})  # ends the waiting thread
  assert told == [hosts._PENDING] * 3
  assert capsys.readouterr().out.count("waiting for") == (jax.process_index() == 0)


def test_several_hosts_that_wait_for_the_first_one(one_of_two, monkeypatch):
  """Each looks as often as the first one says that it waits, and hears of the signal at the same look."""
  (told, looks), is_decided = one_of_two, threading.Event()
  try:
    with pytest.raises(Preempted, match="^SIGTERM: start again to go on$"):
      decided_by_first(lambda: int(is_decided.wait(60)))
  finally:
    is_decided.set()
  assert told == [hosts._PENDING] * 3
  assert looks == list(range(looks[0], looks[0] + 3))
  monkeypatch.setattr(hosts.multihost_utils, "reached_preemption_sync_point", lambda number: looks.append(number))
  assert not hosts.is_preempted()
  assert looks[-1] == looks[0] + 3  # counted on, whoever looks
