"""Several devices of a host share a step, and make what one makes."""

import os

import pytest
from processes import build_corpus, lines_of, train

from realm_jax.index.run_dir import RunDir


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return build_corpus(tmp_path_factory.mktemp("devices"))


def run(corpus, name, num_devices, *flags):
  env = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={num_devices}"}
  train("pretrain", corpus, corpus.parent / name, "--config.init=", "--config.index.refresh=inline",
        "--config.index.export_every=2", "--config.num_passages=3", *flags, env=env)  # fmt: skip
  return [line["loss"] for line in lines_of(corpus.parent / name)]


def test_the_loss_does_not_depend_on_the_number_of_devices(corpus):
  one = run(corpus, "one", 1, "--config.num_steps=4")
  four = run(corpus, "four", 4, "--config.num_steps=4")
  assert len(one) == 4
  assert four == pytest.approx(one, rel=1e-6)


@pytest.mark.slow
def test_a_checkpoint_goes_on_on_another_number_of_devices(corpus):
  for name, before in {"first": 1, "second": 4}.items():
    run(corpus, name, before, "--config.num_steps=6")
    assert RunDir(corpus.parent / name).checkpoint_steps()[-1] == 6
  one_then_two = run(corpus, "first", 2, "--config.num_steps=8")
  four_then_one = run(corpus, "second", 1, "--config.num_steps=8")
  assert len(one_then_two) == 8 and four_then_one == pytest.approx(one_then_two, rel=1e-5)


def test_a_batch_that_the_devices_cannot_share_is_refused(corpus):
  with pytest.raises(
    AssertionError, match="batch_size=4 can't be split evenly over 3 devices; set --config.batch_size"
  ):
    run(corpus, "three", 3, "--config.num_steps=2")
