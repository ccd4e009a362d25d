"""The whole loop with both processes: train, refresh, kill, resume, fine-tune, evaluate, ask."""

import json
import signal
import time

import pytest
from processes import build_corpus, lines_of, realm, train

from realm_jax.data.sample import SAMPLE_QUESTIONS
from realm_jax.index.digest import tree_digest
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return build_corpus(tmp_path_factory.mktemp("loop"))


@pytest.fixture(scope="module")
def pretrained(corpus):
  """ICT and the reader's warm start, then pre-training with adoption at fixed steps."""
  ict, run = corpus.parent / "ict", corpus.parent / "pretrain"
  train("ict", corpus, ict, "--config.num_steps=4")
  train("mlm", corpus, corpus.parent / "mlm", "--config.num_steps=2", "--config.recurring_rate=0.5")
  return ict, pretrain(corpus, ict, run)


def pretrain(corpus, ict, run, *, kill_at=None):
  flags = [
      f"--config.init={ict}", f"--config.init_reader={ict.parent / 'mlm'}", "--config.num_steps=12",
      "--config.index.export_every=3", "--config.index.sync=True", "--config.num_passages=3",
  ]  # fmt: skip
  indexer = realm("refresh_index", f"--workdir={run}", "--quiet", wait=False)
  try:
    if kill_at is not None:
      trainer = train("pretrain", corpus, run, *flags, wait=False)
      deadline = time.monotonic() + 200
      while len(lines_of(run)) < kill_at:
        assert trainer.poll() is None and time.monotonic() < deadline, trainer.communicate()[0]
        time.sleep(0.02)
      trainer.send_signal(signal.SIGKILL)
      trainer.communicate()
      assert not RunDir(run).done.exists()
    train("pretrain", corpus, run, *flags)
    output, _ = indexer.communicate(timeout=120)
    assert indexer.returncode == 0, output
  finally:
    indexer.kill()
  return run


def test_pretraining_adopts_snapshots_and_logs_them(pretrained):
  _, run = pretrained
  lines = lines_of(run)
  assert [line["step"] for line in lines] == list(range(1, 13))
  # With index.sync: at step 6 the snapshot of step 3, and so on.
  assert RunDir(run).adoption_steps() == [0, 6, 9]
  assert [line["index_age"] for line in lines] == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5]
  for line in lines:
    assert 0 < line["null_mass"] < 1 and line["loss"] > 0 and line["tokens_per_second"] > 0
    assert abs(line["retrieval_utility"]) < 5
  versions = RunDir(run).snapshot_versions()
  assert versions[-1] == 5  # of steps 0, 3, 6, 9 and 12


def test_the_readers_warm_start_has_no_retriever(pretrained, corpus):
  mlm = corpus.parent / "mlm"
  assert set(restore_params(RunDir(mlm))[1]) == {"reader"}
  assert RunDir(mlm).done.exists() and not RunDir(mlm).retriever.exists()
  assert [line["step"] for line in lines_of(mlm)] == [1, 2]


def test_killed_run_ends_with_the_same_bits(pretrained, corpus):
  ict, calm = pretrained
  killed = pretrain(corpus, ict, corpus.parent / "killed", kill_at=6)
  assert [line["step"] for line in lines_of(killed)] == list(range(1, 13))
  assert RunDir(killed).adoption_steps() == RunDir(calm).adoption_steps()
  (calm_step, calm_params), (killed_step, killed_params) = restore_params(RunDir(calm)), restore_params(RunDir(killed))
  assert calm_step == killed_step == 12
  assert tree_digest(calm_params) == tree_digest(killed_params)
  assert [line["loss"] for line in lines_of(killed)] == [line["loss"] for line in lines_of(calm)]


def test_fine_tuning_evaluation_and_asking(pretrained, corpus):
  _, run = pretrained
  qa = corpus.parent / "qa"
  indexer = realm("refresh_index", f"--workdir={qa}", "--quiet", wait=False)
  train("finetune", corpus, qa, f"--config.init={run}", "--config.num_steps=4", "--config.beam_size=10",
        f"--config.questions={SAMPLE_QUESTIONS['train']}")  # fmt: skip
  assert indexer.wait(timeout=120) == 0
  # The frozen passage tower is the pre-trained one to the bit.
  pretrained_tower = restore_params(RunDir(run))[1]["retriever"]["query_tower"]
  retriever = restore_params(RunDir(qa))[1]["retriever"]
  assert tree_digest(retriever["passage_tower"]) == tree_digest(pretrained_tower)
  assert tree_digest(retriever["query_tower"]) != tree_digest(pretrained_tower)

  assert [line["index_age"] for line in lines_of(qa)] == [0, 0, 0, 0]

  questions = corpus.parent / "questions.jsonl"
  lines = SAMPLE_QUESTIONS["test"].read_text(encoding="utf-8").splitlines(keepends=True)[:10]
  questions.write_text("".join(lines), encoding="utf-8")
  result = json.loads(realm("evaluate", f"--workdir={qa}", f"--questions={questions}").splitlines()[-1])
  assert result["num_questions"] == 10
  assert 0 <= result["recall@1"] <= result["recall@5"] <= result["recall@20"] <= 100
  assert 0 <= result["exact_match"] <= result["f1"] <= 100
  predictions = [
    json.loads(line) for line in (qa / "evaluation" / "questions.predictions.jsonl").read_text().splitlines()
  ]
  assert [p["question"] for p in predictions] == [json.loads(line)["question"] for line in lines]
  for p in predictions:
    assert p["passage"][p["start"] : p["end"]] == p["prediction"] != ""
  table = realm("evaluate", f"--table={qa}")
  assert f"{result['recall@20']:.1f}" in table

  answer = json.loads(realm("ask", f"--workdir={qa}", "--json", "Who discovered radium?").splitlines()[-1])
  assert answer["question"] == "Who discovered radium?"
  assert answer["passage"][answer["start"] : answer["end"]] == answer["text"] != ""
  assert 0 < answer["probability"] <= 1


def test_ask_refuses_a_run_that_has_not_learnt_to_answer(pretrained):
  _, run = pretrained
  process = realm("ask", f"--workdir={run}", "Who?", wait=False)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 1
  assert "give a fine-tuned run" in output


def test_inline_the_trainer_refreshes_its_own_index(pretrained, corpus):
  ict, _ = pretrained
  run = corpus.parent / "inline"
  flags = [
      f"--config.init={ict}", "--config.index.export_every=3", "--config.index.refresh=inline",
      "--config.num_passages=3", "--config.index.num_slices=2",
  ]  # fmt: skip
  train("pretrain", corpus, run, *flags, "--config.num_steps=5")  # alone: no other process
  assert RunDir(run).adoption_steps() == [0, 3] and RunDir(run).snapshot_versions() == [1, 2, 3]  # 0, 3 and the last
  train("pretrain", corpus, run, *flags, "--config.num_steps=8")
  assert not RunDir(run).damaged.exists() and RunDir(run).is_done()
  lines = lines_of(run)
  assert [line["step"] for line in lines] == list(range(1, 9))
  assert RunDir(run).adoption_steps() == [0, 3, 6]
  # Each refresh embeds half of the corpus anew: at step 6 the other half is as old as the last one of the first run.
  ages = [line["index_age"] for line in lines]
  assert ages[:3] == [0, 1, 2] and ages[3] == pytest.approx(1.5, abs=0.2) and ages[6] == pytest.approx(1.0, abs=1.5)
