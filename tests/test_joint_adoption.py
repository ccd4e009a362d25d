"""Hosts that load what the first one has: what happens when that goes wrong on one of them."""

import concurrent.futures
import types

import pytest

from realm_jax.training import joint_adoption
from realm_jax.training.joint_adoption import JointFollower


@pytest.fixture
def second_host(monkeypatch):
  """Of two hosts, of which the first searches version 1; load(version, is_awaited) can be set."""
  monkeypatch.setattr(joint_adoption, "decided_by_first", lambda decide: 1)
  monkeypatch.setattr(joint_adoption, "is_first", lambda: False)
  lines = []
  host = JointFollower(lambda is_loaded: None, lambda version, is_awaited: snapshot(version), lines.append)
  yield host, lines
  host.close()


def snapshot(version):
  return types.SimpleNamespace(version=version)


def test_what_can_not_be_loaded_is_tried_again_and_told_once(second_host):
  host, lines = second_host
  tries = []

  def load(version, is_awaited):
    tries.append((version, is_awaited))
    if len(tries) < 4:
      raise OSError("503 Service Unavailable")
    return snapshot(version)

  host._load = load
  for _ in range(4):
    assert host._ready_version() == 0
    host._begin_to_load(2)
    concurrent.futures.wait([host._loading[1]], timeout=10)
  assert tries == [(2, False)] * 4
  assert lines == ["host 0 can't load snapshot 2, and tries again: 503 Service Unavailable"]
  assert host._ready_version() == 2
  assert host._take(2).version == 2


def test_what_is_adopted_though_it_could_not_be_loaded_is_waited_for(second_host):
  host, _ = second_host

  def load(version, is_awaited):
    if not is_awaited:
      raise OSError("503 Service Unavailable")
    return snapshot(version)

  host._load = load
  host._begin_to_load(2)
  assert host._take(2).version == 2
