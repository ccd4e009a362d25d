"""The notebooks: their form, and each from top to bottom in a kernel of its own, on few passages and few steps."""

import ast
import json
import pathlib
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from processes import CACHE

from realm_jax.data.sample import SAMPLE_PASSAGES, SAMPLE_QUESTIONS

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Runs a notebook in an empty directory, with other parameters: the output of every code cell, as text."""
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("PATH", str(pathlib.Path(sys.executable).parent), prepend=":")
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
  for name, value in CACHE.items():
    monkeypatch.setenv(name, value)

  def run(name, **parameters):
    notebook = nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)
    (place,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    code = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(code))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return [text_of(cell) for cell in notebook.cells if cell.cell_type == "code"]

  return run


def text_of(cell):
  return "".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_clean_and_valid(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert cells
  for cell in cells:
    assert 1 <= len([line for line in cell.source.splitlines() if line.strip()]) <= 5
    assert (cell.outputs, cell.execution_count) == ([], None)


def test_the_notebooks_are_these():
  assert [path.stem for path in NOTEBOOKS] == ["ask", "look_inside", "own_documents"]


def test_files_of_ones_own_are_found_from_any_directory(tmp_path, monkeypatch):
  """Before the notebook changes to another one."""
  cells = [cell.source for cell in nbformat.read(ROOT / "colab" / "own_documents.ipynb", as_version=4).cells]
  (place,) = [i for i, source in enumerate(cells) if "resolve()" in source]
  assert place < min(i for i, source in enumerate(cells) if "%cd" in source)
  monkeypatch.chdir(tmp_path)
  for given, expected in (("mine.jsonl", str(tmp_path / "mine.jsonl")), ("/x/mine.jsonl", "/x/mine.jsonl"), ("", "")):
    names = {"DOCUMENTS": given, "QUESTIONS": given}
    exec(compile(cells[place], "own_documents", "exec"), names)  # noqa: S102
    assert (names["DOCUMENTS"], names["QUESTIONS"]) == (expected, expected)


def test_ask(run):
  outputs = run("ask")
  assert ast.literal_eval(outputs[-1]) == "Marie and Pierre Curie"
  assert "A: Marie and Pierre Curie" in outputs[-2]


# Both notebooks pre-train with the same numbers, so that the second finds its program compiled.
SMALL = {"BATCH_SIZE": 2, "PASSAGE_LENGTH": 64, "QUERY_LENGTH": 24}


def test_own_documents(run, tmp_path):
  """To the taught answers, of which the model as it comes gives one in four."""
  passages = [json.loads(line) for line in SAMPLE_PASSAGES.read_text().splitlines()[:8]]
  ids = {passage["id"] for passage in passages}
  questions = [json.loads(line) for line in SAMPLE_QUESTIONS["train"].read_text().splitlines()]
  questions = [question for question in questions if question["passage"] in ids][:4]
  for name, rows in {"documents": passages, "questions": questions}.items():
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  outputs = run(
    "own_documents", DOCUMENTS="documents.jsonl", QUESTIONS="questions.jsonl",
    ICT_STEPS=1, PRETRAIN_STEPS=3, FINETUNE_STEPS=8, LEARNING_RATE=1e-3, **SMALL,
  )  # fmt: skip
  assert any("runs/pretrain: pretrain, 3 of 3 steps, done" in output for output in outputs)
  assert float(outputs[-1]) == 1


def test_look_inside(run):
  outputs = run("look_inside", NUM_PASSAGES=24, STEPS=3, EXPORT_EVERY=1, **SMALL)
  distance = ast.literal_eval(outputs[-1])
  assert distance[0] == distance[1] > distance[2] > distance[3] == 0  # the warm-up's first step has a rate of 0
