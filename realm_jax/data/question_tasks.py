"""Question sets as seqio tasks with their metrics, those of TFDS among them; seqio is imported when one is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from realm_jax.data.answers import regex_scores, string_scores
from realm_jax.data.question_files import Fault, Record, checked
from realm_jax.data.questions import is_curated_trec, read_questions

if TYPE_CHECKING:
  import seqio


class TfdsSet(NamedTuple):
  """Where a question set of TFDS keeps its answers and its test questions."""

  tfds_name: str
  answers: tuple[str, ...]  # keys that lead to the answers
  test_split: str  # the questions that papers report on


TFDS_SETS = {
  "nq_open": TfdsSet("natural_questions_open:1.0.0", ("answer",), "validation"),
  "web_questions": TfdsSet("web_questions:1.0.0", ("answers",), "test"),
  # The answers to TriviaQA's own test questions are not public.
  "trivia_qa": TfdsSet("trivia_qa/unfiltered.nocontext:1.1.0", ("answer", "aliases"), "validation"),
  "squad_open": TfdsSet("squad/v1.1:3.0.0", ("answers", "text"), "validation"),
}


def tfds_records(name: str, split: str) -> Iterator[Record]:
  """Yields the records of a set in TFDS_SETS; "train", "dev" and "all" give the training questions, all of them."""
  if name not in TFDS_SETS:
    raise ValueError(
      f"no question set {name!r}; TFDS has {', '.join(TFDS_SETS)}, and a file's name ends in .jsonl, .json, .tsv or "
      ".csv (.gz, .xz)"
    )
  import seqio  # noqa: PLC0415

  known = TFDS_SETS[name]
  source = seqio.TfdsDataSource(known.tfds_name, splits={"train": "train", "test": known.test_split})
  dataset = source.get_dataset("test" if split == "test" else "train", shuffle=False)
  for number, example in enumerate(dataset.as_numpy_iterator(), 1):
    try:
      yield Record(number, *checked(_text(example["question"]), _texts(example, known.answers)))
    except Fault as fault:
      yield Record(number, fault=str(fault))


def _texts(example: Any, keys: tuple[str, ...]) -> list[str]:
  for key in keys:
    example = example[key]
  return [_text(answer) for answer in example]


def _text(value: bytes) -> str:
  try:
    return value.decode("utf-8")
  except UnicodeDecodeError:
    raise Fault("bytes that are not UTF-8") from None


def question_task(name: str, *, regex: bool = False) -> seqio.Task:
  """A seqio task of the questions that `read_questions` reads under a name without a split.

  Its splits are train, dev, all and, for TFDS, test; an example is {"question": text, "answers": [text, ...]}. Its
  metric functions take the answers as targets: exact match and F1, or the match of a pattern.
  """
  import seqio  # noqa: PLC0415
  import tensorflow as tf  # noqa: PLC0415

  class Questions(seqio.DataSource):
    """Files and sets of TFDS alike, checked and split by `read_questions`."""

    def __init__(self):
      super().__init__(splits=["train", "dev", "test", "all"] if name in TFDS_SETS else ["train", "dev", "all"])

    @property
    def supports_arbitrary_sharding(self) -> bool:
      return False

    def list_shards(self, split: str) -> list[str]:
      return [split]

    def get_dataset(self, split="all", shuffle=False, seed=None, shard_info=None, num_epochs=1) -> tf.data.Dataset:
      del shard_info, num_epochs  # one shard; seqio repeats what it is given
      questions = read_questions(f"{name}:{split}", regex=regex).questions
      columns = {
        "question": [q.question for q in questions],
        "answers": tf.ragged.constant([q.answers for q in questions], tf.string),
      }
      dataset = tf.data.Dataset.from_tensor_slices(columns)
      return dataset.shuffle(len(questions), seed=seed) if shuffle else dataset

  def unragged(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.map(lambda example: {**example, "answers": tf.convert_to_tensor(example["answers"])})

  text = seqio.PassThroughVocabulary(size=2**31 - 1)
  return seqio.Task(
    "questions_" + "".join(c if c.isalnum() else "_" for c in name),
    source=Questions(),
    preprocessors=[unragged],
    output_features={
      "question": seqio.Feature(text, add_eos=False, rank=0, dtype=tf.string),
      "answers": seqio.Feature(text, add_eos=False, rank=1, dtype=tf.string),
    },
    metric_fns=[regex_scores if regex or is_curated_trec(name) else string_scores],
  )
