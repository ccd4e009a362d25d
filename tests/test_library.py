"""The library: the examples of its docstring, as they stand there but for the number of steps."""

import json
import re

import hf_files
import jax
import pytest
from tiny_runs import write_run

from realm_jax import library
from realm_jax.config import stored_config
from realm_jax.data.passages import PassageStore
from realm_jax.index.digest import tree_digest
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir
from realm_jax.serving.open_qa import OpenQA
from realm_jax.weights.source import read_weights

LEARNS = '{"num_steps": 25, "batch_size": 2, "optimizer.learning_rate": 5e-3}'
DOCUMENTS = [("Radium", "Marie and Pierre Curie discovered radium in 1898."), ("Neon", "Ramsay found neon.")]


@pytest.fixture(scope="module")
def written(sample_store, tmp_path_factory):
  path = tmp_path_factory.mktemp("library")
  for stage in ("finetune", "pretrain"):
    write_run(path / "runs" / stage, sample_store, stage=stage, steps=(20,))
  return path


@pytest.fixture
def runs(written, monkeypatch):
  """The directory of the two runs that the examples start from."""
  monkeypatch.chdir(written)
  return written / "runs"


def test_the_examples_run(runs, capsys):
  code = "\n".join(line[2:] for line in library.__doc__.splitlines() if line.startswith("  "))
  code, num_replaced = re.subn(re.escape('{"num_steps": 200}'), LEARNS, code)
  assert num_replaced == 1
  exec(compile(code, "docstring", "exec"), {})  # noqa: S102
  out = [line for line in capsys.readouterr().out.splitlines() if "[[" in line]
  read, taught = out
  # The untrained model marks something in one of the two documents, the fine-tuned one what it was taught.
  assert re.fullmatch(r"(.+) 0\.\d+ .*\[\[\1\]\].*", read)
  assert re.sub(r".* 0\.\d+ |\[\[|\]\]", "", read) in dict(DOCUMENTS).values()
  assert (
    re.sub(r" 0\.\d+ ", ": ", taught) == "Marie and Pierre Curie: [[Marie and Pierre Curie]] discovered radium in 1898."
  )

  store = PassageStore(runs / "mine" / "corpus")
  assert [(store.title(i), store.body(i)) for i in range(len(store))] == DOCUMENTS
  given, taken = (restore_params(RunDir(runs / name)) for name in ("finetune", "mine"))
  assert given[0] == taken[0] == 20 and tree_digest(given[1]) == tree_digest(taken[1])
  assert OpenQA.load(runs / "mine").snapshot.params_step == 20
  config = stored_config(RunDir(runs / "taught").read_config())
  assert (config.stage, config.num_steps, config.batch_size, config.model.hidden_size) == ("finetune", 25, 2, 16)
  assert RunDir(runs / "taught").is_done()


def test_the_example_of_a_run_runs(runs, capsys):
  code = "\n".join(line[4:] for line in OpenQA.__doc__.splitlines() if line.startswith("    "))
  exec(compile(code, "docstring", "exec"), {"OpenQA": OpenQA})  # noqa: S102
  assert re.fullmatch(r"(.+) 0\.\d+ .*\[\[\1\]\].*\n", capsys.readouterr().out)


def test_both_towers_are_trained_with_the_null_passage_and_a_refreshed_index(runs):
  """The passage tower changes, its snapshots are adopted, and answers come with the null passage's probability."""
  questions = [("Who found neon?", "Ramsay"), ("Who painted Guernica?", "Picasso")]
  settings = {
      "num_steps": 5, "batch_size": 2, "optimizer.learning_rate": 5e-3, "index.export_every": 2, "log_every": 1,
      "trains_passage_tower": True, "reads_null_passage": True,
  }  # fmt: skip
  open_qa = library.finetune("runs/pretrain", DOCUMENTS, questions, workdir="runs/both", settings=settings)
  run = RunDir(runs / "both")
  assert run.adoption_steps() == [0, 2, 4]
  lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
  assert [line["index_age"] for line in lines] == [0, 1, 0, 1, 0]
  assert all(0 < line["null_probability"] < 1 for line in lines)
  start, end = (restore_params(RunDir(runs / name))[1]["retriever"] for name in ("pretrain", "both"))
  assert tree_digest(start["query_tower"]) != tree_digest(end["passage_tower"]) != tree_digest(end["query_tower"])
  assert (open_qa.step, open_qa.snapshot.params_step) == (5, 5)  # none but its own tower's index would be loaded
  (answer,) = open_qa.answer(["Who found neon?"])
  assert 0 < answer.null_probability < 1


def test_a_workdir_is_not_written_twice(runs):
  with pytest.raises(FileExistsError, match="runs/pretrain is in use; open what is there with OpenQA.load, or choose"):
    library.open_qa("runs/finetune", DOCUMENTS, workdir="runs/pretrain")


def test_what_was_begun_is_made_once(runs, monkeypatch):
  first = library.open_qa("runs/finetune", DOCUMENTS, workdir="runs/again")
  answers = first.answer(["Who found neon?"])
  run_dir = RunDir("runs/again")
  for lost in ([], [run_dir.index], [run_dir.index, run_dir.checkpoints, run_dir.config]):
    for path in [run_dir.done, *lost]:  # as if it had been stopped before these were there
      path.rmtree() if path.is_dir() else path.unlink()
    assert library.open_qa("runs/finetune", DOCUMENTS, workdir="runs/again").answer(["Who found neon?"]) == answers
    assert run_dir.is_done()
  monkeypatch.setattr(library, "embed_passages", None)
  assert library.open_qa("runs/finetune", DOCUMENTS, workdir="runs/again").answer(["Who found neon?"]) == answers
  assert RunDir("runs/again").snapshot_versions() == [1]
  with pytest.raises(FileExistsError, match="holds others than those given; give the same ones to go on, or another"):
    library.open_qa("runs/finetune", DOCUMENTS[:1], workdir="runs/again")
  with pytest.raises(
    FileExistsError, match="again/corpus was built for another model .passages of 256 wordpieces, now 176"
  ):
    library.open_qa("realm-tiny", DOCUMENTS, workdir="runs/again")
  monkeypatch.setattr(library, "restore_params", lambda run_dir: other_params(restore_params(run_dir), run_dir))
  with pytest.raises(FileExistsError, match="runs/again was made of other parameters than runs/finetune has now"):
    library.open_qa("runs/finetune", DOCUMENTS, workdir="runs/again")


def other_params(restored, run_dir):
  """As if the run that is started from had been trained on."""
  step, params = restored
  return (step, jax.tree.map(lambda x: x + 1, params)) if run_dir.path.name == "finetune" else restored


def test_the_model_that_comes_with_the_package_reads_documents(tmp_path, realm):
  documents = [("Radium", "Marie Curie discovered radium in 1898. " * 40), ("Neon", "William Ramsay found neon.")]
  open_qa = library.open_qa("realm-tiny", documents, workdir=str(tmp_path / "mine"))
  assert open_qa.store.passage_length == 176 and open_qa.config.joint_length == 240
  assert len(open_qa.store) > 2 and open_qa.vocabulary.digest == read_weights("realm-tiny").vocabulary.digest
  (answer,) = open_qa.answer(["Who found neon?"])
  assert answer.text == "William Ramsay"
  assert realm("convert", "--input=realm-tiny", "--to=hf", f"--output={tmp_path}/hf")[0] == 0
  taught = library.finetune(
    f"{tmp_path}/hf", documents, [("Who found neon?", "William Ramsay")], workdir=str(tmp_path / "taught"),
    settings={"num_steps": 1, "batch_size": 1},
  )  # fmt: skip
  assert taught.step == 1 and taught.config.model.hidden_size == 128
  assert taught.store.content_digest == open_qa.store.content_digest


def test_weights_without_a_retriever_are_refused_before_anything_is_made(tmp_path):
  hf_files.write(tmp_path / "bert", hf_files.random(0, hf_files.bert_shapes()), hf_files.CONFIG)
  with pytest.raises(ValueError, match="bert has no retriever; train one with  realm train --config.init=.*bert  and"):
    library.open_qa(str(tmp_path / "bert"), DOCUMENTS, workdir=str(tmp_path / "mine"))
  with pytest.raises(ValueError, match="holds no weights: neither a run's"):
    library.open_qa(str(tmp_path / "berd"), DOCUMENTS, workdir=str(tmp_path / "mine"))
  assert not (tmp_path / "mine").exists()


QUESTIONS = [("Who discovered radium?", "Marie and Pierre Curie"), ("Who found neon?", "Ramsay")]


def finetune(documents=DOCUMENTS, questions=QUESTIONS, *, workdir="runs/resumed", **settings):
  settings = {"batch_size": 2, "log_every": 1, "checkpoint.every": 2} | settings
  return library.finetune("runs/pretrain", documents, questions, workdir=workdir, settings=settings)


def test_fine_tuning_goes_on_where_it_was_stopped(runs):
  finetune(num_steps=2)
  run_dir = RunDir("runs/resumed")
  first = run_dir.metrics.read_text()
  again = finetune(num_steps=2)  # done: nothing is trained
  assert again.step == 2 and run_dir.metrics.read_text() == first
  assert finetune(num_steps=4).step == 4
  lines = run_dir.metrics.read_text().splitlines(keepends=True)
  assert "".join(lines[:2]) == first and [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
  assert run_dir.is_done()
  for others in ({"documents": DOCUMENTS[:1]}, {"questions": QUESTIONS[:1]}):
    with pytest.raises(FileExistsError, match="holds others than those given; give the same ones to go on, or another"):
      finetune(**others, num_steps=4)
  with pytest.raises(ValueError, match="belongs to a run with batch_size=2, now it is 1"):
    finetune(num_steps=4, batch_size=1)
  with pytest.raises(FileExistsError, match="runs/pretrain is in use"):
    finetune(workdir="runs/pretrain")


def test_documents_without_text_are_refused(runs):
  with pytest.raises(ValueError, match="empty corpus"):
    library.open_qa("runs/finetune", [("Radium", "")], workdir="runs/empty")
  library.open_qa("runs/finetune", DOCUMENTS, workdir="runs/empty")  # nothing stands in the way


def test_documents_may_have_names_and_ids(runs):
  documents = [{"title": "Radium", "text": DOCUMENTS[0][1], "id": "ra"}, ["Neon", "Ramsay found neon."]]
  library.open_qa("runs/finetune", documents, workdir="runs/named")
  store = PassageStore(runs / "named" / "corpus")
  assert [(store.title(i), store.body(i)) for i in range(len(store))] == DOCUMENTS
  assert [store.id(i).partition("/")[0].split("-")[0] for i in range(len(store))] == ["ra", "1"]


@pytest.mark.parametrize(
  ("document", "named"),
  [
    ("Ramsay found neon.", "'Ramsay found neon.'"),
    ("ab", "'ab'"),
    ({"name": "Neon", "text": "Ramsay found neon."}, "{'name': 'Neon', 'text': 'Ramsay found neon.'}"),
    (("Neon", None), "('Neon', None)"),
    (("Neon", "Ramsay", "found"), "('Neon', 'Ramsay', 'found')"),
  ],
)
def test_what_is_no_document_is_named(runs, document, named):
  message = f'documents[1] is {named}; give (title, text) or {{"title": ..., "text": ...}}, where both are texts'
  with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
    library.open_qa("runs/finetune", [DOCUMENTS[0], document], workdir="runs/refused")
  assert not (runs / "refused").exists()


def test_what_is_no_question_is_named(runs):
  with pytest.raises(ValueError, match=r"^questions\[0\] is 'Who\?'; give \(question, answer\) or "):
    finetune(questions=["Who?"], workdir="runs/unasked")


def test_answers_that_stand_nowhere_are_counted(runs, capsys, monkeypatch):
  nowhere = [("Who painted Guernica?", "Picasso")]
  with pytest.raises(ValueError, match="^none of the 1 answers stands in the documents, as 'Picasso' doesn't; give"):
    finetune(questions=nowhere, workdir="runs/nowhere")
  assert not RunDir("runs/nowhere").config.exists()
  trained = []
  monkeypatch.setattr(library, "train", lambda config, run_dir: trained.append(config.questions))
  monkeypatch.setattr(library.OpenQA, "load", lambda workdir: workdir)
  assert finetune(questions=QUESTIONS + nowhere, workdir="runs/nowhere") == "runs/nowhere"
  assert [json.loads(line)["answer"] for line in open(trained[0])][-1] == ["Picasso"]
  said = "1 of 3 answers stand in no document, as 'Picasso'; such questions teach nothing"
  assert said in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"num_step": 2}, "settings: the config has no field 'num_step'; did you mean 'num_steps'?"),
    (
      {"learning_rate": 2},
      "settings: the config has no field 'learning_rate'; did you mean 'optimizer.learning_rate'?",
    ),
    ({"num_steps": "many"}, "settings: num_steps takes int, such as 1000; 'many' came"),
    ({"num_steps": 0}, "num_steps=0, expected at least 1"),
  ],
)
def test_what_is_wrong_with_a_setting_is_one_line(runs, settings, message):
  with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
    finetune(workdir="runs/set", **settings)
  assert not RunDir("runs/set").config.exists()
