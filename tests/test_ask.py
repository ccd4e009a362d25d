"""The verb ask: answers in a terminal, as JSON, of a file; how it ends; what it does not import."""

import gzip
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from tiny_runs import write_run

from realm_jax import ask, cli
from realm_jax.serving.open_qa import OpenQA

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def workdir(sample_store, tmp_path_factory):
  return write_run(tmp_path_factory.mktemp("ask") / "run", sample_store, steps=(20,)).path


@pytest.fixture(scope="module")
def open_qa(workdir):
  return OpenQA.load(workdir)


@pytest.fixture
def realm_ask(capsys, monkeypatch, open_qa, workdir):
  """Runs the verb on a run that was loaded once."""
  monkeypatch.delenv("REALM_DEBUG", raising=False)
  monkeypatch.setattr(ask.OpenQA, "load", lambda workdir, checkpoint, num_passages: open_qa)

  def run(*arguments, stdin=""):
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    capsys.readouterr()
    status = cli.run(["ask", f"--workdir={workdir}", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err

  return run


def asked(output):
  return [line.removeprefix("Q: ") for line in output.splitlines() if line.startswith("Q: ")]


def test_an_answer_in_a_terminal(realm_ask, open_qa, sample_store):
  (answer,) = open_qa.answer(["Who was Marie Curie?"])
  status, out, err = realm_ask("Who was Marie Curie?")
  assert (status, err) == (0, "")
  question, answered, passage, source, empty = out.splitlines()
  assert question == "Q: Who was Marie Curie?" and empty == ""
  assert (
    answered
    == f"A: {answer.text}  (probability {answer.probability:.2f}, retrieval score {answer.retrieval_score:.1f})"
  )
  body = answer.passage
  assert passage == f"   {answer.title}: {body[: answer.start]}[[{answer.text}]]{body[answer.end :]}"
  assert source == f"   passage {answer.passage_id} of {sample_store.path}"


def test_source_and_licence_of_the_corpus_are_named(open_qa, monkeypatch):
  (answer,) = open_qa.answer(["Who?"])
  described = open_qa.store.description | {"source": "my shelf", "license": "CC0"}
  monkeypatch.setattr(open_qa.store, "description", described)
  assert ask.format_answer("Who?", [answer], open_qa).splitlines()[-1].endswith(f"{open_qa.store.path} (my shelf, CC0)")


def test_json_has_what_the_answer_is_made_of(realm_ask, open_qa, sample_store):
  answers = open_qa.answer(["Who?", "Où?"])
  _, out, _ = realm_ask("--json", "Who?", "Où?")
  lines = out.splitlines()
  assert [json.loads(line) for line in lines] == [
    {"question": q, "is_answered": True, **a._asdict(), "corpus": str(sample_store.path)}
    for q, a in zip(["Who?", "Où?"], answers)
  ]
  assert '"Où?"' in lines[1]
  for line in map(json.loads, lines):
    assert line["passage"][line["start"] : line["end"]] == line["text"] and 0 < line["probability"] <= 1


def test_further_answers(realm_ask, open_qa, sample_store):
  (answers,) = open_qa.answers(["Who?"], 3)
  assert len({a.passage_id for a in answers}) == 3 and answers[0].probability > answers[1].probability
  _, out, _ = realm_ask("--num_answers=3", "Who?")
  said = [line for line in out.splitlines() if re.match(r"A: |\d\. ", line)]
  assert said == [
    f"{mark} {a.text}  (probability {a.probability:.2f}, retrieval score {a.retrieval_score:.1f})"
    for mark, a in zip(("A:", "2.", "3."), answers)
  ]
  assert out.count(f" of {sample_store.path}\n") == 3 and answers[2].marked() in out
  answers, others = open_qa.answers(["Who?", "Why?"], 3)
  _, out, _ = realm_ask("--json", "--num_answers=3", "Who?", "Why?")
  first, second = map(json.loads, out.splitlines())
  assert first["text"] == answers[0].text and first["further_answers"] == [a._asdict() for a in answers[1:]]
  assert [a["text"] for a in second["further_answers"]] == [a.text for a in others[1:]]
  status, _, err = realm_ask("--num_answers=0", "Who?")
  assert status == 2 and "num_answers" in err


def test_no_answer_where_the_null_passage_is_more_probable(open_qa):
  (answer,) = open_qa.answer(["Who?"])
  assert answer.null_probability is None and not answer.is_withheld(0.0)  # this run doesn't read the null passage
  answer = answer._replace(null_probability=0.75)
  for above, is_withheld in ((None, False), (0.8, False), (0.75, False), (0.7, True)):
    line = ask.format_answer("Who?", [answer], open_qa, no_answer_above=above).splitlines()[1]
    numbers = f"probability {answer.probability:.2f}, retrieval score {answer.retrieval_score:.1f}, no answer 0.75"
    assert line == (
      f"A: no answer  (at best {answer.text}: {numbers})" if is_withheld else f"A: {answer.text}  ({numbers})"
    )
    record = json.loads(ask.format_json("Who?", [answer], open_qa, no_answer_above=above))
    assert (record["is_answered"], record["null_probability"]) == (not is_withheld, 0.75)


def test_no_answer_is_refused_where_it_was_not_learnt(realm_ask):
  status, out, err = realm_ask("--no_answer_above=0.5", "Who?")
  assert (status, out) == (1, "")
  assert "fine-tune one with --config.reads_null_passage=True, or leave out --no_answer_above" in err


def test_questions_of_a_text_file_are_answered_in_order_with_a_bar(realm_ask, tmp_path, monkeypatch):
  monkeypatch.setattr(ask, "_CHUNK", 4)
  questions = [f"Who was number {i}?" for i in range(10)]
  (tmp_path / "mine.txt").write_text("\ufeff" + "\n\n".join(questions) + "\n  \n", encoding="utf-8")
  status, out, err = realm_ask(f"--questions={tmp_path / 'mine.txt'}")
  assert (status, asked(out)) == (0, questions)
  assert "answering: " in err and " 10/10 " in err and "Q:" not in err
  status, out, _ = realm_ask(f"--questions={tmp_path / 'mine.txt'}", "--json")
  assert [json.loads(line)["question"] for line in out.splitlines()] == questions


def test_questions_of_a_set_with_answers(realm_ask, tmp_path):
  path = tmp_path / "mine.jsonl.gz"
  path.write_bytes(
    gzip.compress(b'{"question": "Who?", "answer": ["x"]}\n{"question": 3}\n{"question": "Why?", "answer": "y"}\n')
  )
  status, out, err = realm_ask(f"--questions={path}")
  assert (status, asked(out)) == (0, ["Who?", "Why?"])
  assert f"{path}: skipped 1 with no text as question (line 2)\n" in err


def test_questions_are_asked_for_until_an_empty_line_or_the_end(realm_ask):
  status, out, err = realm_ask(stdin="Who?\n  Why? \n\nnever read\n")
  assert (status, asked(out), err) == (0, ["Who?", "Why?"], "")
  status, out, err = realm_ask(stdin="Who?")
  assert (status, asked(out), err) == (0, ["Who?"], "")
  assert realm_ask(stdin="") == (0, "", "")


def test_control_c_ends_it(realm_ask, monkeypatch):
  def interrupt(prompt):
    raise KeyboardInterrupt

  monkeypatch.setattr("builtins.input", interrupt)
  assert realm_ask() == (130, "", "\nrealm ask: stopped\n")


@pytest.mark.parametrize(
  ("arguments", "content", "message"),
  [
    ([" "], "", 'an empty question; give one, such as "Who discovered radium?", or none to be asked for it'),
    (["Who?", ""], "", "an empty question; give one"),
    (["Who?", "--questions={}"], "Why?", "give questions, or --questions=FILE, not both"),
    (["--questions={}"], " \n", "{} holds no question; write one on each line"),
    (["--questions={}"], b"caf\xe9?\n", "{} holds bytes that are not UTF-8"),
    (["--questions=/nonexistent.txt"], "", "/nonexistent.txt is no file of questions"),
  ],
)
def test_wrong_use(realm_ask, tmp_path, arguments, content, message):
  path = tmp_path / "q.txt"
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  status, out, err = realm_ask(*(a.format(path) for a in arguments))
  assert (status, out) == (1, "")
  assert err.startswith(f"realm ask: {message.format(path)}")


def test_a_run_that_can_not_read_says_so(capsys, sample_store, tmp_path):
  write_run(tmp_path / "ict", sample_store, stage="ict", steps=(20,))
  assert cli.run(["ask", f"--workdir={tmp_path / 'ict'}", "Who?"]) == 1
  assert "its reader has not learnt to answer; give a fine-tuned run" in capsys.readouterr().err


def python(code, *arguments):
  result = subprocess.run(
    [sys.executable, "-c", code, *map(str, arguments)],
    capture_output=True, text=True, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False,
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  return result.stdout


def test_an_answer_takes_neither_tensorflow_nor_torch(workdir):
  code = (
    "import sys; from realm_jax import cli; assert cli.run(['ask', f'--workdir={sys.argv[1]}', 'Who?']) == 0;"
    "print(sorted({'tensorflow', 'torch', 'seqio', 'tensorflow_datasets', 'scann'} & set(sys.modules)))"
  )
  assert python(code, workdir).splitlines()[-1] == "[]"


def test_realm_jax_is_imported_in_a_moment():
  code = (
    "import sys, time; t = time.process_time(); import realm_jax; seconds = time.process_time() - t;"
    "print(seconds, 'jax' in sys.modules)"
  )
  seconds, has_jax = python(code).split()
  assert float(seconds) < 1.5 and has_jax == "False"
