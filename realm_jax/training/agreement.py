"""Before a job of several hosts starts: all have the same config, data and software, or all end with a line."""

from __future__ import annotations

import json
import time
from typing import Any

import jax
import xxhash
from ml_collections import ConfigDict

from realm_jax.config import flat_fields
from realm_jax.data.mixing import parse_mixture
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import read_questions
from realm_jax.index.hosts import Preempted, gather, is_preempted, tell_text
from realm_jax.index.run_dir import RunDir

# A client of NFS may believe for so long, by its defaults, that a file it once looked for in vain is still not there.
_SHARED_WITHIN = 60.0


def open_corpus(config: ConfigDict, *, trains_in: RunDir | None = None) -> PassageStore:
  """The config's corpus, verified, on each host.

  Args:
    trains_in: this job trains, and reads the config's questions and its mixture, too, and checkpoints from here.

  Raises:
    ValueError, OSError: it can't be read here, or another host has something else than the first one.
  """
  store, failure, digests = None, None, {}
  try:
    store = PassageStore(config.corpus)
    store.verify()
    if trains_in and jax.process_count() > 1:
      steps = trains_in.checkpoint_steps()
      newest = {"newest checkpoint of --workdir, a directory that all hosts must share,": steps[-1] if steps else None}
      digests = newest | _training_digests(config)
  except (ValueError, OSError) as error:
    failure = error
  if jax.process_count() > 1:
    # A host that fails must say so, or the others would wait for it.
    corpus = store.content_digest if store else None
    _check_others(failure, {"config": _comparable(config), "corpus": corpus} | digests)
  if failure:
    raise failure
  assert store is not None
  return store


def check_shared(run_dir: RunDir) -> None:
  """After the first host of a job has written config.json: all others must find the same one, in time.

  Raises:
    ValueError: on all hosts, if one doesn't.
    Preempted: SIGTERM came to one of several hosts.
  """
  if jax.process_count() == 1:
    return

  def content() -> str:
    return (run_dir.files.read(run_dir.config) or b"").decode(errors="replace")

  first, began = tell_text(content()), time.monotonic()
  while True:
    # All hosts go by what is gathered, and so look equally often. 0: found, 1: not yet, 2: not in time.
    states = gather(0 if content() == first else 1 if time.monotonic() - began < _SHARED_WITHIN else 2)
    if not any(states):
      return
    if 2 in states:
      raise ValueError(
        f"--workdir must be a directory that all hosts share: in {run_dir.path} host {states.index(2)} does not find "
        "the config.json that the first host of this job wrote; give a gs:// path, or a directory of a shared file "
        "system"
      )
    if is_preempted():
      raise Preempted
    time.sleep(run_dir.poll)


def _comparable(config: ConfigDict) -> dict[str, Any]:
  return {key: value for key, value in flat_fields(config.to_dict()).items() if key != "corpus"}  # its content is


def _training_digests(config: ConfigDict) -> dict[str, str]:
  """Of what a trainer reads besides its corpus. Questions count as they are read, whatever file they come from."""
  digests = {}
  if config.stage == "finetune" and config.questions:
    questions = read_questions(config.questions).questions
    digests["questions"] = xxhash.xxh3_128(json.dumps(questions).encode()).hexdigest()
  if config.mixture:
    digests |= {f"mixture {path}": PassageStore(path).content_digest for path in parse_mixture(config.mixture)}
  return digests


def _check_others(failure: Exception | None, mine: dict[str, Any]) -> None:
  failed = [host for host, is_whole in enumerate(gather(failure is None)) if not is_whole]
  if failed:
    raise failure or ValueError(f"host {failed[0]} of this job can't read its data; its output says why")
  mine |= {"jax": jax.__version__}
  first = flat_fields(json.loads(tell_text(json.dumps(mine))))
  here = flat_fields(json.loads(json.dumps(mine)))
  different = [key for key in sorted(first | here) if first.get(key) != here.get(key)]
  odd = [host for host, is_same in enumerate(gather(not different)) if not is_same]
  if different:
    key = different[0]
    raise ValueError(
      f"{key} is {here.get(key)!r} on host {jax.process_index()}, {first.get(key)!r} on the first host of this job; "
      "start all hosts with the same flags, files and software"
    )
  if odd:
    raise ValueError(f"host {odd[0]} of this job differs from the first one; its output says in what")
