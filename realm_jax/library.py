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

What they write is a run directory as any other, for  realm ask, evaluate, inspect  and OpenQA.load. Called again with
the same, both go on where they were stopped, and return what is there.
"""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from realm_jax.config import flat_fields, make_tower, paper_config, stored_config
from realm_jax.config_source import did_you_mean
from realm_jax.data.answers import has_words, matchable
from realm_jax.data.build import build_passages
from realm_jax.data.passages import PassageStore
from realm_jax.data.spans import make_tagger
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.index.digest import tree_digest
from realm_jax.index.embed import embed_passages
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import publish
from realm_jax.model.retriever import passage_tower_params
from realm_jax.serving.open_qa import OpenQA
from realm_jax.training.checkpoint import Checkpoints
from realm_jax.training.loop import check_run_dir, train
from realm_jax.weights.names import QUERY_TOWER
from realm_jax.weights.run_config import run_config
from realm_jax.weights.source import read_weights

Document = tuple[str, str] | Mapping[str, str]  # (title, text), or {"title", "text"} and perhaps "id"


class _Model(NamedTuple):
  """What the two calls start from."""

  read: Callable[[], tuple[int, dict[str, Any]]]  # the step, and the parameters
  config: Callable[[PassageStore], ConfigDict]  # of a run over other passages
  vocabulary: Vocabulary
  passage_length: int


def open_qa(model: str, documents: Iterable[Document], *, workdir: str) -> OpenQA:
  """A fine-tuned model over other documents: the passages are embedded anew, nothing is trained.

  A call that was stopped goes on when it is made again with the same arguments; one that is done returns what it made.

  Args:
    model: a fine-tuned run directory, of which the newest checkpoint is taken; or weights, as --config.init takes them:
      "realm-tiny" is the small model that comes with this package.
    documents: titles and texts, as pairs or as {"title": ..., "text": ...}, also with "id" (else their number); long
      texts become several passages.
    workdir: a run directory to write, with the corpus in it, or one that this call has begun.

  Raises:
    FileExistsError: workdir holds another run, or one of other documents or of other parameters, as of a model that was
      trained on since.
    FileNotFoundError: the model's corpus, whose vocabulary is taken, is gone.
    ValueError: there is no document with text, or one of another form; there is no model, or it can't be read; or
      workdir's run has other settings.
  """
  source, run_dir = _read_model(model, workdir), RunDir(workdir)
  store = _own_corpus(run_dir, documents, source)
  config = source.config(store)
  check_run_dir(config, run_dir)
  step, params = source.read()
  has_checkpoint = bool(run_dir.checkpoint_steps())
  if has_checkpoint and tree_digest(restore_params(run_dir)[1]) != tree_digest(params):
    raise FileExistsError(f"{workdir} was made of other parameters than {model} has now; choose another workdir")
  run_dir.write_config(config.to_dict())
  if not has_checkpoint:
    checkpoints = Checkpoints(run_dir, keep=1)
    checkpoints.save_params(step, params)
    checkpoints.close()
  if not run_dir.is_done():
    tower_params = passage_tower_params(params["retriever"])
    tower, vocabulary = make_tower(config.model, store.description["vocabulary_size"]), store.vocabulary()
    emb_ND = embed_passages(tower, tower_params, store, vocabulary, batch_size=config.index.batch_size)
    publish(run_dir, emb_ND, store, params_step=step, params_digest=tree_digest(tower_params))
    run_dir.files.replace(run_dir.done, "done\n")
  loaded = OpenQA.load(workdir)
  loaded.warn_of_cut_passages()
  return loaded


def finetune(
  model: str,
  documents: Iterable[Document],
  questions: Iterable[tuple[str, str]],
  *,
  workdir: str,
  settings: Mapping[str, Any] | None = None,
) -> OpenQA:
  """Fine-tunes a run's model on questions with answers that stand in the documents.

  A call that was stopped goes on from its newest checkpoint when it is made again with the same arguments; only the
  number of steps may be another. A call that is done returns what it made.

  Args:
    model: a run directory of any stage with a retriever, of which the newest checkpoint is taken; or weights, as for
      `open_qa`.
    documents: as for `open_qa`.
    questions: questions, each with one answer, which is to be found verbatim in the documents.
    workdir: a run directory to write, or one that this call has begun.
    settings: fields of the config, such as {"num_steps": 500, "optimizer.learning_rate": 1e-4}; the rest is as in
      paper_config("finetune"), but for batches of 16, 1,000 steps and the model's own sizes and lengths.

  Raises:
    FileExistsError: workdir holds another run, or one of other documents or questions.
    FileNotFoundError: as `open_qa`.
    ValueError: there is no document or no question, or one of another form; no answer stands in the documents; a
      setting that the config doesn't have; or workdir's run has other settings.
  """
  model_read, run_dir = _read_model(model, workdir), RunDir(workdir)
  store = _own_corpus(run_dir, documents, model_read)
  source = model_read.config(store)
  pairs = [_pair(question, "questions", i, "question", "answer") for i, question in enumerate(questions)]
  lines = ({"question": question, "answer": [answer]} for question, answer in pairs)
  _write_lines(run_dir, "questions.jsonl", lines, is_used=run_dir.config.exists())
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
  _set(config, settings or {})
  _check_answers([answer for _, answer in pairs], store, may_lack=config.reads_null_passage)
  train(config, run_dir)
  return OpenQA.load(workdir)


def _read_model(model: str, workdir: str) -> _Model:
  """A run's newest checkpoint, or weights; before it takes its time, whether workdir is one of this module's."""
  if RunDir(workdir).config.exists() and not (RunDir(workdir).path / "documents.jsonl").exists():
    raise FileExistsError(f"{workdir} is in use; open what is there with OpenQA.load, or choose another workdir")
  run_dir = RunDir(model)
  if run_dir.checkpoints.exists():
    config = stored_config(run_dir.read_config())
    like = PassageStore(config.corpus)

    def over(store: PassageStore) -> ConfigDict:
      config.corpus = str(store.path)
      return config

    return _Model(lambda: restore_params(run_dir), over, like.vocabulary(), like.passage_length)
  weights = read_weights(model)
  if weights.vocabulary is None:
    raise ValueError(f"{model} has no vocabulary; put its vocab.txt there, so that the documents can be read with it")
  if QUERY_TOWER not in weights.parts:
    raise ValueError(f"{model} has no retriever; train one with  realm train --config.init={model}  and give that run")
  reading = paper_config("finetune").to_dict() | weights.reading
  joint_length = min(reading["joint_length"], weights.complete_model()["max_length"])
  return _Model(
    lambda: (0, weights.tree()),
    lambda store: run_config(weights, store),
    weights.vocabulary,
    joint_length - reading["query_length"],  # so that the reader sees the whole of a passage
  )


def _set(config: ConfigDict, settings: Mapping[str, Any]) -> None:
  """Sets fields by their whole names."""
  fields = flat_fields(config.to_dict())
  for name, value in settings.items():
    if name not in fields:
      raise ValueError(f"settings: the config has no field {name!r}{did_you_mean(name, list(fields))}")
    try:
      config.update_from_flattened_dict({name: value})
    except TypeError as error:
      raise ValueError(
        f"settings: {name} takes {type(fields[name]).__name__}, such as {fields[name]!r}; {value!r} came"
      ) from error


def _pair(item: Any, what: str, number: int, *names: str) -> tuple[str, str]:
  """Two texts, given as a pair or by their names."""
  texts: list[Any]
  match item:
    case Mapping():
      texts = [item.get(name) for name in names]
    case tuple() | list():
      texts = list(item)
    case _:
      texts = []
  if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
    named = ", ".join(f'"{name}": ...' for name in names)
    raise ValueError(
      f"{what}[{number}] is {reprlib.repr(item)}; give ({', '.join(names)}) or {{{named}}}, where both are texts"
    )
  return texts[0], texts[1]


def _check_answers(answers: Sequence[str], store: PassageStore, *, may_lack: bool) -> None:
  """An answer that no passage holds teaches nothing, unless the run learns to say so."""
  # As one text, which is searched at the speed of C; no answer holds a line's end.
  words = "\n".join(matchable(store.body(i)) for i in range(len(store)))
  missing = [answer for answer in answers if not has_words(words, [matchable(answer)])]
  if missing and len(missing) == len(answers):
    raise ValueError(
      f"none of the {len(answers)} answers stands in the documents, as {missing[0]!r} doesn't; give answers word for "
      "word as the documents have them, so that there is something to learn"
    )
  if missing and not may_lack:
    print(
      f"{len(missing)} of {len(answers)} answers stand in no document, as {missing[0]!r}; such questions teach nothing",
      file=sys.stderr,
    )


def _own_corpus(run_dir: RunDir, documents: Iterable[Document], model: _Model) -> PassageStore:
  """A corpus of the documents below the run, with the model's vocabulary and passage length; made once."""
  path = run_dir.path / "corpus"
  lines = (_article(document, i) for i, document in enumerate(documents))
  articles = _write_lines(run_dir, "documents.jsonl", lines, is_used=path.exists())
  if not path.exists():
    build_passages(
      str(articles), path, vocabulary=model.vocabulary, passage_length=model.passage_length,
      tagger=make_tagger("rules"),
    )  # fmt: skip
  store = PassageStore(path)
  length = store.passage_length
  if store.description["vocabulary_digest"] != model.vocabulary.digest or length != model.passage_length:
    raise FileExistsError(
      f"{path} was built for another model (passages of {length} wordpieces, now {model.passage_length}, or another "
      "vocabulary); choose another workdir"
    )
  return store


def _article(document: Document, number: int) -> dict[str, str]:
  title, text = _pair(document, "documents", number, "title", "text")
  id_ = document.get("id", number) if isinstance(document, Mapping) else number
  return {"id": str(id_), "title": title, "text": text}


def _write_lines(run_dir: RunDir, name: str, lines: Iterable[Mapping[str, Any]], *, is_used: bool) -> epath.Path:
  """A file of JSON lines; one that something was made of must be the same."""
  path, text = run_dir.path / name, "".join(json.dumps(line) + "\n" for line in lines)
  if not is_used:
    run_dir.path.mkdir(parents=True, exist_ok=True)
    run_dir.files.replace(path, text)
  elif run_dir.files.read(path) != text.encode():
    raise FileExistsError(f"{path} holds others than those given; give the same ones to go on, or another workdir")
  return path
