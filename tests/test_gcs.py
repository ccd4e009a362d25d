"""A run in a bucket: the same bits as on a disk, also when requests fail, hang or are answered in vain."""

import concurrent.futures
import signal
import time

import ml_dtypes
import numpy as np
import pytest
from gcs_server import Faults, serve
from processes import build_corpus, realm, train
from test_checkpoint import abstract, adoption, make_state

from realm_jax.data.passages import PassageStore
from realm_jax.index.deletion import delete_old
from realm_jax.index.digest import tree_digest
from realm_jax.index.journal import read_journal
from realm_jax.index.neighbours import mine_neighbours, read_neighbours
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import load, publish
from realm_jax.training.checkpoint import Checkpoints

SYNC = ["--config.index.export_every=3", "--config.index.sync=True", "--config.num_passages=3"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return build_corpus(tmp_path_factory.mktemp("gcs"))


@pytest.fixture
def server(monkeypatch):
  with serve("bucket") as server:
    for name, value in server.environment.items():
      monkeypatch.setenv(name, value)
    yield server


def pretrain(corpus, run, *, num_steps, kill=False, timeout=240):
  """Trainer and indexer; the trainer, if told so, is killed after its first checkpoint and started again."""
  flags = [*SYNC, f"--config.num_steps={num_steps}", "--config.index.keep=2", "--config.checkpoint.keep=1"]
  indexer = realm("refresh_index", f"--workdir={run}", "--quiet", wait=False)
  try:
    if kill:
      trainer = train("pretrain", corpus, run, "--config.init=", *flags, wait=False)
      deadline = time.monotonic() + timeout
      while not RunDir(run).checkpoint_steps():
        assert trainer.poll() is None and time.monotonic() < deadline, trainer.communicate()[0]
        time.sleep(0.1)
      trainer.send_signal(signal.SIGKILL)
      trainer.communicate()
    train("pretrain", corpus, run, "--config.init=", *flags, timeout=timeout)
    output, _ = indexer.communicate(timeout=timeout)
    assert indexer.returncode == 0, output
  finally:
    indexer.kill()
  # Whether the indexer's last round could delete a version depends on when the trainer's last checkpoint came.
  delete_old(RunDir(run), keep=2)
  return result(run)


def result(run):
  """What must not depend on where a run is kept, nor on what happened to it."""
  run_dir = RunDir(run)
  step, params = restore_params(run_dir)
  lines = (run_dir.files.read(run_dir.metrics) or b"").decode().splitlines()
  return step, tree_digest(params), read_journal(run_dir), run_dir.snapshot_versions(), len(lines)


@pytest.fixture(scope="module")
def on_disk(corpus):
  return pretrain(corpus, corpus.parent / "run", num_steps=7)


def test_the_same_bits_as_on_a_disk_after_a_kill_too(corpus, on_disk, server):
  assert pretrain(corpus, "gs://bucket/run", num_steps=7, kill=True) == on_disk
  step, _, journal, versions, num_lines = on_disk
  assert (step, list(journal.entries), num_lines) == (7, [0, 6], 7)
  assert versions[0] > 1  # old ones were deleted, with all that was below them
  found = {int(name.split("/")[2]) for name in server.names("bucket", "run/index/")}
  assert found == set(versions)
  assert load(RunDir("gs://bucket/run"), versions[-1], PassageStore(corpus)).params_step == 7


def test_one_in_twenty_requests_fails(corpus, on_disk, server):
  server.faults = Faults(seed=1, rate=0.05, delays=(0.1, 0.3))
  assert pretrain(corpus, "gs://bucket/run", num_steps=7) == on_disk
  assert set(server.faults.count) == set(Faults.KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_delays_of_up_to_30_seconds(corpus, on_disk, server, seed):
  server.faults = Faults(seed=seed, rate=0.05, delays=(0.1, 30.0))
  assert pretrain(corpus, "gs://bucket/run", num_steps=7, kill=True, timeout=1800) == on_disk


def test_an_answer_that_is_lost_makes_no_second_owner(server):
  """Of writers whose requests are answered in vain, each learns whether it was the first."""
  server.faults = Faults(seed=2, rate=0.3, delays=(0.01, 0.02))
  files = RunDir("gs://bucket/run").files
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    for race in range(2):
      path = RunDir("gs://bucket/run").adoption(race)
      won = list(pool.map(lambda writer: files.create(path, f"writer {writer}"), range(3)))  # noqa: B023
      assert won.count(True) == 1
      assert files.read(path) == f"writer {won.index(True)}".encode()


def test_a_damaged_checkpoint_is_copied_aside(server):
  run_dir = RunDir("gs://bucket/run")
  checkpoints = Checkpoints(run_dir, keep=2)
  for step in (10, 20, 30):
    checkpoints.save(step, make_state(step), adoption(step))
  checkpoints.close()
  assert run_dir.checkpoint_steps() == [20, 30]
  assert server.names("bucket", "run/checkpoints/10/") == []
  objects = server.buckets["bucket"]
  whole = server.names("bucket", "run/checkpoints/30/")
  damaged = max((name for name in whole if "/state/" in name), key=lambda name: len(objects[name].content))
  content = bytearray(objects[damaged].content)
  content[len(content) // 2] ^= 4
  objects[damaged] = objects[damaged]._replace(content=bytes(content))
  lines = []
  checkpoints = Checkpoints(run_dir, keep=2, log=lines.append)
  state, adopted = checkpoints.restore(abstract())
  checkpoints.close()
  assert tree_digest(state) == tree_digest(make_state(20)) and adopted == adoption(20)
  aside = "run/damaged/checkpoints-30-0/"
  assert len(lines) == 1 and f"moved to gs://bucket/{aside.rstrip('/')}; going on from 20" in lines[0]
  assert run_dir.checkpoint_steps() == [20]
  assert server.names("bucket", "run/checkpoints/30/") == []
  assert server.names("bucket", aside) == [name.replace("run/checkpoints/30/", aside) for name in whole]


def test_a_corpus_in_a_bucket_is_copied_once(corpus, server, tmp_path, monkeypatch):
  monkeypatch.setenv("REALM_CACHE", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="^no corpus at gs://bucket/corpus "):
    PassageStore("gs://bucket/corpus")
  run_dir = RunDir("gs://bucket")
  for path in corpus.iterdir():
    (run_dir.path / "corpus" / path.name).write_bytes(path.read_bytes())
  store = PassageStore("gs://bucket/corpus")
  store.verify()
  here = PassageStore(corpus)
  assert (store.content_digest, store.body(7)) == (here.content_digest, here.body(7))
  reads = server.requests["read"]
  assert PassageStore("gs://bucket/corpus").path == store.path
  assert server.requests["read"] - reads <= 2  # corpus.json alone
  assert [p.name for p in (tmp_path / "corpora").iterdir()] == [store.content_digest]


def test_an_index_of_scann_in_a_bucket(server, sample_store):
  pytest.importorskip("scann")
  run_dir = RunDir("gs://bucket/scann")
  emb_ND = np.random.default_rng(0).normal(size=(len(sample_store), 4)).astype(ml_dtypes.bfloat16)
  assert publish(run_dir, emb_ND, sample_store, params_step=3, params_digest="", searcher="scann") == 1
  assert any("/scann/" in name for name in server.names("bucket", "scann/index/"))
  here = load(run_dir, 1, sample_store)
  apart = load(run_dir, 1, sample_store, beside_a_loop=True, is_awaited=True)
  query_BD = emb_ND[:5].astype(np.float32)
  np.testing.assert_array_equal(here.searcher.search(query_BD, 3)[1], apart.searcher.search(query_BD, 3)[1])
  np.testing.assert_array_equal(apart.passage_emb_ND, emb_ND)


def test_mined_negatives_in_a_bucket(corpus, server, tmp_path):
  store = PassageStore(corpus)
  for place in (tmp_path / "negatives", "gs://bucket/negatives"):
    mine_neighbours(store, place, 3)
  here, there = (read_neighbours(place, store) for place in (tmp_path / "negatives", "gs://bucket/negatives"))
  assert here.shape == (len(store), 3) and (here == there).all() and (here >= 0).mean() > 0.9


@pytest.mark.slow
def test_every_verb_takes_a_bucket(corpus, server, tmp_path):
  """Starts from a run in a bucket, fine-tunes into another one there, evaluates, asks and inspects it."""
  first, run = "gs://bucket/first", "gs://bucket/qa"
  inline = ["--config.index.refresh=inline", "--config.num_steps=2"]
  train("pretrain", corpus, first, "--config.init=", "--config.num_passages=3", *inline)
  questions = tmp_path / "questions.jsonl"
  questions.write_text('{"question": "who discovered radium", "answer": ["Marie Curie", "Curie"]}\n' * 2)
  train("finetune", corpus, run, f"--config.init={first}", f"--config.questions={questions}", "--config.beam_size=5",
        "--config.num_passages=2", *inline)  # fmt: skip
  realm("evaluate", f"--workdir={run}", f"--questions={questions}")
  assert RunDir(run).files.read(RunDir(run).evaluation / "questions.json") is not None
  assert '"question": "who?"' in realm("ask", f"--workdir={run}", "--json", "who?")
  assert "finetune" in realm("inspect", run)
