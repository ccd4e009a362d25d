"""Answers from documents of one's own, with a run's model as it is or fine-tuned on questions of one's own.

  from realm_jax.library import open_qa

  documents = [("Radium", "Marie and Pierre Curie discovered radium in 1898."), ("Neon", "Ramsay found neon.")]
  reader = open_qa("runs/finetune", documents, workdir="runs/mine")
  answer = reader.answer(["Who discovered radium?"])[0]
  print(answer.text, answer.probability, answer.marked())

  from realm_jax.library import finetune

  questions = [("Who discovered radium?", "Marie and Pierre Curie"), ("Who found neon?", "Ramsay")]
  reader = finetune("runs/pretrain", documents, questions, workdir="runs/taught", settings={"num_steps": 200})
  answer = reader.answer(["Who discovered radium?"])[0]
  print(answer.text, answer.probability, answer.marked())

What they write is a run directory as any other, for  realm ask, evaluate, inspect  and OpenQA.load.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from realm_jax.config import make_tower, paper_config, stored_config
from realm_jax.data.build import build_passages
from realm_jax.data.passages import PassageStore
from realm_jax.data.spans import make_tagger
from realm_jax.index.digest import tree_digest
from realm_jax.index.embed import embed_passages
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import publish
from realm_jax.model.retriever import passage_tower_params
from realm_jax.serving.open_qa import OpenQA
from realm_jax.training.checkpoint import Checkpoints
from realm_jax.training.loop import train


def open_qa(model: str, documents: Iterable[tuple[str, str]], *, workdir: str) -> OpenQA:
  """A fine-tuned run's model over other documents: the passages are embedded anew, nothing is trained.

  Args:
    model: a fine-tuned run directory, of which the newest checkpoint is taken.
    documents: titles and texts; long texts become several passages.
    workdir: a run directory to write, with the corpus in it.

  Raises:
    FileExistsError: workdir holds a run or a corpus.
    FileNotFoundError: the model has no checkpoint, or its corpus, whose vocabulary is taken, is gone.
    ValueError: there is no document with text.
  """
  source = RunDir(model)
  config = stored_config(source.read_config())
  step, params = restore_params(source)
  run_dir, store = _new_run(workdir, documents, PassageStore(config.corpus))
  config.corpus = str(store.path)
  tower_params = passage_tower_params(params["retriever"])
  tower, vocabulary = make_tower(config.model, store.description["vocabulary_size"]), store.vocabulary()
  emb_ND = embed_passages(tower, tower_params, store, vocabulary, batch_size=config.index.batch_size)
  run_dir.write_config(config.to_dict())
  checkpoints = Checkpoints(run_dir, keep=1)
  checkpoints.save_params(step, params)
  checkpoints.close()
  publish(run_dir, emb_ND, store, params_step=step, params_digest=tree_digest(tower_params))
  run_dir.files.replace(run_dir.done, "done\n")
  return OpenQA.load(workdir)


def finetune(
  model: str,
  documents: Iterable[tuple[str, str]],
  questions: Iterable[tuple[str, str]],
  *,
  workdir: str,
  settings: Mapping[str, Any] | None = None,
) -> OpenQA:
  """Fine-tunes a run's model on questions with answers that stand in the documents.

  Args:
    model: a run directory of any stage with a retriever; the newest checkpoint is taken.
    documents: as for `open_qa`.
    questions: questions, each with one answer, which is to be found verbatim in the documents.
    workdir: as for `open_qa`.
    settings: fields of the config, such as {"num_steps": 500, "optimizer.learning_rate": 1e-4}; the rest is as in
      paper_config("finetune"), but for batches of 16, 1,000 steps and the model's own sizes and lengths.

  Raises:
    as `open_qa`, and ValueError where there is no question.
  """
  source = stored_config(RunDir(model).read_config())
  run_dir, store = _new_run(workdir, documents, PassageStore(source.corpus))
  lines = (json.dumps({"question": question, "answer": [answer]}) + "\n" for question, answer in questions)
  (run_dir.path / "questions.jsonl").write_text("".join(lines))
  config = paper_config("finetune")
  config.model.update(source.model)
  config.model.towers_are_shared = False
  config.update(
    corpus=str(store.path), questions=str(run_dir.path / "questions.jsonl"), init=model, num_steps=1000, batch_size=16,
    query_length=source.query_length, joint_length=source.joint_length,
    num_passages=min(config.num_passages, len(store)),
  )  # fmt: skip
  config.optimizer.corrects_bias = True  # without it, short runs start with steps that are too large
  config.index.refresh = "inline"
  config.update_from_flattened_dict(settings or {})
  train(config, run_dir)
  return OpenQA.load(workdir)


def _new_run(workdir: str, documents: Iterable[tuple[str, str]], like: PassageStore) -> tuple[RunDir, PassageStore]:
  """A run directory with a corpus of the documents, with the vocabulary and passage length of another corpus."""
  run_dir = RunDir(workdir)
  if run_dir.config.exists() or (run_dir.path / "corpus").exists():
    raise FileExistsError(f"{workdir} is in use; open what is there with OpenQA.load, or choose another workdir")
  run_dir.path.mkdir(parents=True, exist_ok=True)
  articles = run_dir.path / "documents.jsonl"
  articles.write_text(
    "".join(
      json.dumps({"id": str(i), "title": title, "text": text}) + "\n" for i, (title, text) in enumerate(documents)
    )
  )
  build_passages(
    str(articles), run_dir.path / "corpus", vocabulary=like.vocabulary(), passage_length=like.passage_length,
    tagger=make_tagger("rules"),
  )  # fmt: skip
  return run_dir, PassageStore(run_dir.path / "corpus")
