"""The corpus swap: which facts are replaced, and answers that follow the documents without training."""

import importlib.util
import json
import pathlib

import pytest

from realm_jax import cli
from realm_jax.data.answers import exact_match

SCRIPT = pathlib.Path(__file__).parent.parent / "benchmarks" / "corpus_swap.py"
spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
corpus_swap = importlib.util.module_from_spec(spec)
spec.loader.exec_module(corpus_swap)
Question = corpus_swap.Question

DOCUMENTS = {
  "ann": ("Ann Lee", "Ann Lee was born in Oslo in 1901. She died in 1950."),
  "bob": ("Bob Ray", "Bob Ray was born in Bern in 1902. He met Ann Lee in Oslo."),
  "cat": ("Cat", "A cat was born in Bonn in 1901. Its name was Tom Cat, or Tom."),
}
QUESTIONS = [
  Question("Where was Ann Lee born?", ("Oslo",), "ann"),
  Question("Where was Bob Ray born?", ("Bern",), "bob"),
  Question("Where was the cat born?", ("Bonn",), "cat"),
  Question("In what year was Ann Lee born?", ("1901",), "ann"),
  Question("In what year did Ann Lee die?", ("1950",), "ann"),
  Question("What was the cat's name?", ("Tom Cat", "Tom"), "cat"),
  Question("What was the dog's name?", ("Rex Dog",), "cat"),  # doesn't stand there
]


def test_a_value_is_replaced_where_the_fact_is_held():
  swaps = {swap.question.text: swap for swap in corpus_swap.find_swaps(DOCUMENTS, QUESTIONS)}
  # Ann's is in Bob's document too, which names her, and where Bern is no new value. The other year stands in Ann's
  # document already, and no other name is asked for.
  assert {text: (swap.old, swap.new, swap.documents) for text, swap in swaps.items()} == {
    "Where was Ann Lee born?": ("Oslo", "Bonn", ("ann", "bob")),
    "Where was Bob Ray born?": ("Bern", "Bonn", ("bob",)),
    "Where was the cat born?": ("Bonn", "Oslo", ("cat",)),
  }
  documents = corpus_swap.edited(DOCUMENTS, [swaps["Where was Ann Lee born?"], swaps["Where was the cat born?"]])
  assert documents == {
    "ann": ("Ann Lee", "Ann Lee was born in Bonn in 1901. She died in 1950."),
    "bob": ("Bob Ray", "Bob Ray was born in Bern in 1902. He met Ann Lee in Bonn."),
    "cat": ("Cat", "A cat was born in Oslo in 1901. Its name was Tom Cat, or Tom."),
  }


def test_an_edition_changes_no_document_twice_and_leaves_half_alone():
  question = QUESTIONS[0]
  swaps = [corpus_swap.Swap(question, "", "", names) for names in (("a",), ("a", "b"), ("c",), ("d",), ("b",))]
  a, ab, c, d, b = swaps
  assert corpus_swap.make_editions(swaps, 4) == [[a, c], [ab], [d, b]]
  documents, questions = corpus_swap.read_sample()
  swaps = corpus_swap.find_swaps(documents, questions)
  editions = corpus_swap.make_editions(swaps, len(documents))
  assert (len(documents), len(questions), len(swaps), len(editions)) == (336, 1008, 559, 7)
  assert sorted(map(str, swaps)) == sorted(str(swap) for edition in editions for swap in edition)


def test_what_is_counted():
  ann, bob, cat, year = QUESTIONS[:4]
  swap = corpus_swap.Swap(ann, "Oslo", "Bonn", ("ann",))
  swapped, untouched = corpus_swap.compare(
    [ann, bob, cat, year], [swap], ["Oslo", "Bern", "x", "1901"], ["Bonn", "Bern", "y", "1950"]
  )
  assert [a.question for a in swapped] == [ann] and [a.question for a in untouched] == [bob, cat]
  assert corpus_swap.summarize(swapped, untouched) == {
    "swapped": 1, "right_before": 1, "of_these_new_value": 1, "of_these_old_value": 0, "right_after": 1,
    "old_value_after": 0, "untouched": 2, "untouched_same_answer": 1, "untouched_right_before": 1,
    "of_these_right_after": 1,
  }  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """realm-tiny as a run, untouched by any training here."""
  path = tmp_path_factory.mktemp("swap")
  (path / "one.jsonl").write_text(json.dumps({"id": "1", "title": "Cat", "text": "A cat."}) + "\n")
  build = [f"--input={path}/one.jsonl", f"--output={path}/corpus", "--vocab=realm-tiny", "--passage_length=176"]
  assert cli.run(["build_corpus", *build, "--workers=1"]) == 0
  convert = ["--input=realm-tiny", "--to=realm", f"--corpus={path}/corpus", f"--output={path}/run"]
  assert cli.run(["convert", *convert]) == 0
  return str(path / "run")


def test_answers_follow_the_documents(model, tmp_path):
  """The first 24 documents of the sample encyclopedia, where even realm-tiny finds some answers."""
  documents, questions = corpus_swap.read_sample()
  documents = dict(list(documents.items())[:24])
  questions = [q for q in questions if q.document in documents]
  edition = corpus_swap.make_editions(corpus_swap.find_swaps(documents, questions), len(documents))[0]
  before = corpus_swap.answer(model, documents, questions, tmp_path / "before")
  after = corpus_swap.answer(model, corpus_swap.edited(documents, edition), questions, tmp_path / "after")
  swapped, untouched = corpus_swap.compare(questions, edition, before, after)
  right = [(a.before, a.after, a.swap.new) for a in swapped if exact_match(a.before, a.question.answers)]
  assert right == [("Joachimsthal", "Bath", "Bath")]
  assert len(untouched) == 36
  assert sum(a.after == a.before for a in untouched) >= 29  # all passages compete with the changed ones; 31 were seen
