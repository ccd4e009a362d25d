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
from tiny_runs import tiny_config

from realm_jax import refresh_index
from realm_jax.index import hosts
from realm_jax.index.hosts import Preempted, decided_by_first
from realm_jax.index.run_dir import RunDir
from realm_jax.training import loop
from realm_jax.training.checkpoint import Restored
from realm_jax.training.preemption import Preemption


def test_in_its_first_wait_a_run_has_nothing_to_save(sample_store, tmp_path, monkeypatch):
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
      threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM]).start()

  started = time.monotonic()
  with pytest.raises(Preempted, match="^SIGTERM: start again to go on$") as error:
    loop.train(config, run_dir, log=log)
  assert error.value.exit_status == 75
  assert time.monotonic() - started < 60 < config.index.timeout
  assert run_dir.checkpoint_steps() == [] and not run_dir.is_done()
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_ctrl_c_ends_at_once(ctrl_c, capfd):
  with Preemption() as preemption:
    assert not preemption.is_due()
    os.kill(os.getpid(), signal.SIGINT)
    assert preemption.is_due()
    assert "Ctrl-C: the run is saved after this step; once more ends it at once" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(10)
    with pytest.raises(KeyboardInterrupt, match="^saved$"):
      preemption.end("saved")
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
