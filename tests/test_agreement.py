"""What hosts compare before they start, with the other host's words made up."""

import json
import threading

import jax
import pytest

from realm_jax.config import paper_config
from realm_jax.index.hosts import Preempted
from realm_jax.index.run_dir import RunDir
from realm_jax.training import agreement

LINES = '{"question": "who?", "answer": ["me"]}\n{"question": "where?", "answer": ["here", "there"]}\n'


@pytest.fixture
def second_host(monkeypatch, tmp_path):
  """-> what this host says, and a function that opens a config's corpus as the second of two that agree on the rest."""
  said = []

  def hear(mine):
    said.append(json.loads(mine))
    return json.dumps(first.pop() if first else said[-1])

  first: list = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(agreement, "gather", lambda value: [True, value])
  monkeypatch.setattr(agreement, "tell_text", hear)

  def open_as_second(config, *, heard=None, trains=True):
    first[:] = [heard] if heard else []
    agreement.open_corpus(config, trains_in=RunDir(tmp_path / "run") if trains else None)
    return said[-1]

  return open_as_second


@pytest.fixture
def questions(tmp_path, sample_store):
  config = paper_config("finetune")
  path = tmp_path / "questions.jsonl"
  path.write_text(LINES)
  config.update(corpus=str(sample_store.path), questions=str(path))
  return config, path


def test_question_files_of_one_name_and_other_content_are_refused(second_host, questions):
  config, path = questions
  first = second_host(config)
  assert second_host(config, heard=first)["questions"] == first["questions"]
  path.write_text(LINES.replace("there", "elsewhere"))
  with pytest.raises(ValueError, match="^questions is '[0-9a-f]{32}' on host 1, '[0-9a-f]{32}' on the first host"):
    second_host(config, heard=first)


def test_an_indexer_needs_no_questions(second_host, questions):
  config, path = questions
  path.unlink()
  assert "questions" not in second_host(config, trains=False)
  with pytest.raises(OSError, match=r"questions\.jsonl"):
    second_host(config)


def test_a_mixture_is_compared_by_the_content_of_its_corpora(second_host, sample_store):
  config = paper_config("pretrain")
  config.update(corpus=str(sample_store.path), mixture=f"{sample_store.path}:1")
  assert second_host(config)[f"mixture {sample_store.path}"] == sample_store.content_digest


def test_a_workdir_that_is_not_shared(second_host, questions, tmp_path):
  """The first host would go on from step 4, the second one begin anew."""
  config, _ = questions
  (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
  first = second_host(config)
  second_host(config, heard=first)
  (tmp_path / "run" / "checkpoints" / "4").rmdir()
  with pytest.raises(ValueError) as error:
    second_host(config, heard=first)
  assert str(error.value) == (
    "newest checkpoint of --workdir, a directory that all hosts must share, is None on host 1, 4 on the first host of "
    "this job; start all hosts with the same flags, files and software"
  )


@pytest.fixture
def check_as(monkeypatch, tmp_path):
  """Checks a directory as host 0 or 1 of two: the first one wrote "{}", and the other one says `heard` at each look."""

  def check(host, *, heard=0, within=0.0, is_preempted=False):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement, "_SHARED_WITHIN", within)
    monkeypatch.setattr(agreement, "tell_text", lambda mine: "{}")
    monkeypatch.setattr(agreement, "gather", lambda value: [heard, value] if host else [value, heard])
    monkeypatch.setattr(agreement, "is_preempted", lambda: is_preempted)
    agreement.check_shared(run_dir)

  run_dir = RunDir(tmp_path / "run")
  run_dir.path.mkdir()
  return run_dir, check


@pytest.mark.parametrize(("host", "content", "heard"), [(1, None, 0), (1, "{ }", 0), (0, "{}", 2)])
def test_a_new_workdir_that_is_not_shared(check_as, host, content, heard):
  """All hosts end with the same line, also the first one, which finds what it wrote."""
  run_dir, check = check_as
  if content:
    run_dir.files.replace(run_dir.config, content)
  with pytest.raises(ValueError) as error:
    check(host, heard=heard)
  assert str(error.value) == (
    f"--workdir must be a directory that all hosts share: in {run_dir.path} host 1 does not find the config.json that "
    "the first host of this job wrote; give a gs:// path, or a directory of a shared file system"
  )


def test_a_shared_workdir_may_show_a_new_file_late(check_as):
  run_dir, check = check_as
  write = threading.Timer(0.3, run_dir.files.replace, [run_dir.config, "{}"])
  write.start()
  check(1, within=60.0)
  assert write.finished.is_set()
  write.join()


def test_sigterm_while_hosts_look_for_what_the_first_one_wrote(check_as):
  _, check = check_as
  with pytest.raises(Preempted):
    check(1, within=60.0, is_preempted=True)
