"""Our scores beside public evaluators', which nobody must have: docs/evaluation.md says which, and how to install them.

Over BM25's passages for the sample's questions, or over what realm evaluate has written for questions of one's own:
REALM_EVALUATED=RUN/evaluation/NAME. And over texts made to be difficult.
"""

import json
import os
import pathlib
import random
import re
import unicodedata

import numpy as np
import pytest

from realm_jax.data.answers import dpr_words, has_answer, has_words
from realm_jax.data.build import build_passages
from realm_jax.data.passages import PassageStore
from realm_jax.data.questions import Question, is_curated_trec, read_questions
from realm_jax.data.sample import SAMPLE_PASSAGES, SAMPLE_QUESTIONS
from realm_jax.data.spans import NoTagger
from realm_jax.index.bm25 import Bm25
from realm_jax.serving.evaluation import answer_scores, find_answers_in_passages, recall_scores, summarize
from realm_jax.serving.evaluation_files import Retrieved, dpr_json, predictions_jsonl, trec_qrels, trec_run

pytestmark = pytest.mark.slow
RECALL_AT = (1, 5, 20)
FRAGMENTS = (
  "the a an The A. an' theatre cat Cat's U.S. rock-n-roll 1,000 3.5 -- ... ? “q” ‘s don’t x—y É e\u0301 à a\u0300 ñ "
  "ß ſ İ I\u0307 ı ΑΣ Σ ς ﬁ ½ ² ª № Å \u212b 東京 日本 ｶﾞ テスト 한국 हिन्दी ไทย עִבְרִית العَرَبِيَّة 🎉 👩\u200d🚀 "
  "€ ° ± ≠ _ a_b \u0301 \u200b \u00ad \u00a0 \u2028 \u3000 \t \n \x7f \ufeff ` ^ ' \" \\ / |"
).split(" ")


@pytest.fixture(scope="module")
def difficult_texts():
  """3,000 pairs: a text, and a piece of it or another text."""
  draw = random.Random(0)

  def text(length):
    return "".join(draw.choice(FRAGMENTS) + draw.choice(["", " "]) for _ in range(length))

  pairs = []
  for _ in range(3000):
    long = text(draw.randrange(12))
    begin = draw.randrange(len(long) + 1)
    piece = long[begin : begin + draw.randrange(1, 12)]
    pairs.append((long, draw.choice([piece, piece.swapcase(), unicodedata.normalize("NFKC", piece), text(2)])))
  return pairs


@pytest.fixture(scope="module")
def evaluated(sample_vocabulary, tmp_path_factory):
  """RUN/evaluation/NAME: the beginning of the paths of an evaluation's files."""
  if path := os.environ.get("REALM_EVALUATED"):
    return pathlib.Path(path)
  path = tmp_path_factory.mktemp("evaluated")
  build_passages(
    SAMPLE_PASSAGES, path / "store", vocabulary=sample_vocabulary, passage_length=256, tagger=NoTagger(), whole=True
  )
  store, questions = PassageStore(path / "store"), read_questions(str(SAMPLE_QUESTIONS["train"])).questions
  score_BK, passage_id_BK = Bm25(store).retrieve([q.question for q in questions], max(RECALL_AT))
  found = find_answers_in_passages(store, questions, passage_id_BK)
  retrieved = Retrieved(score_BK, passage_id_BK, found["token_"])
  draw = random.Random(0)
  predictions = [prediction(draw, q, store.body(row)) for q, row in zip(questions, passage_id_BK[:, 0])]
  scores = recall_scores(found, RECALL_AT) | answer_scores(predictions, questions)
  for suffix, content in {
    "json": json.dumps(summarize(scores)),
    "predictions.jsonl": predictions_jsonl(questions, predictions),
    "dpr.json": dpr_json(store, questions, retrieved),
    "trec": trec_run(store, retrieved, "sample"),
    "qrels": trec_qrels(store, retrieved),
  }.items():
    (path / f"sample.{suffix}").write_text(content, encoding="utf-8")
  return path / "sample"


def prediction(draw: random.Random, question: Question, passage: str) -> str:
  """As a reader's: right, nearly right, or some words of a passage."""
  answer, words = draw.choice(question.answers), passage.split()
  begin = draw.randrange(len(words))
  return draw.choice([answer, f"The {answer.upper()}.", f"{answer}, {words[0]}", " ".join(words[begin : begin + 4])])


def read(evaluated: pathlib.Path, suffix: str) -> str:
  return evaluated.with_name(f"{evaluated.name}.{suffix}").read_text(encoding="utf-8")


def predictions_of(evaluated: pathlib.Path) -> list[tuple[str, tuple[str, ...]]]:
  records = map(json.loads, read(evaluated, "predictions.jsonl").split("\n")[:-1])
  return [(record["prediction"], tuple(record["answer"])) for record in records]


def decomposed(text: str) -> str:
  """SQuAD's programs don't split accents off; Google's rule, which is ours, is theirs after this."""
  return unicodedata.normalize("NFD", text)


def assert_squad_agrees(pairs: list[tuple[str, tuple[str, ...]]]) -> dict[str, float]:
  """Question by question; returns the means in percent."""
  squad = pytest.importorskip("torchmetrics.functional.text", reason="needs torch and torchmetrics").squad
  ours = answer_scores([p for p, _ in pairs], [Question("", answers) for _, answers in pairs])
  theirs = [
    squad(
      {"prediction_text": decomposed(p), "id": "0"},
      {"answers": {"answer_start": [0] * len(answers), "text": [*map(decomposed, answers)]}, "id": "0"},
    )
    for p, answers in pairs
  ]
  for name, score_B in ours.items():
    np.testing.assert_allclose(100 * score_B, [float(scores[name]) for scores in theirs], atol=1e-4)
  return {name: 100 * score_B.mean() for name, score_B in ours.items()}


def test_exact_match_and_f1_are_torchmetrics_squads(evaluated):
  if is_curated_trec(evaluated.name):
    pytest.skip("answers are patterns")
  means, result = assert_squad_agrees(predictions_of(evaluated)), json.loads(read(evaluated, "json"))
  assert result["exact_match"] == pytest.approx(means["exact_match"], abs=0.006)
  assert result["f1"] == pytest.approx(means["f1"], abs=0.006)


def test_exact_match_and_f1_of_difficult_texts(difficult_texts):
  means = assert_squad_agrees([(text, (answer,)) for text, answer in difficult_texts])
  assert 5 < means["exact_match"] < means["f1"] < 50


def test_has_answer_is_dprs(evaluated):
  """As Pyserini has it."""
  pyserini = pytest.importorskip("pyserini.eval.evaluate_dpr_retrieval", reason="needs pyserini")
  tokenizer, regex = pyserini.SimpleTokenizer(), is_curated_trec(evaluated.name)
  entries = json.loads(read(evaluated, "dpr.json"))
  for entry in entries:
    theirs = [pyserini.has_answers(c["text"], entry["answers"], tokenizer, regex) for c in entry["ctxs"]]
    assert [c["has_answer"] for c in entry["ctxs"]] == theirs
  assert 0 < sum(c["has_answer"] for entry in entries for c in entry["ctxs"])


def test_has_answer_in_difficult_texts(difficult_texts):
  pyserini = pytest.importorskip("pyserini.eval.evaluate_dpr_retrieval", reason="needs pyserini")
  tokenizer, found = pyserini.SimpleTokenizer(), []
  for text, answer in difficult_texts:
    theirs = pyserini.has_answers(text, [answer], tokenizer)
    ours = has_words(dpr_words(text), [dpr_words(answer)])
    if tokenizer.tokenize(decomposed(answer)).words():
      assert ours == theirs, (text, answer)
    else:  # of an answer without a token DPR says that every passage holds it; here none does
      assert (ours, theirs) == (False, True)
    found.append(ours)
  assert 500 < sum(found) < 2500


def test_patterns_are_found_as_dpr_finds_them(difficult_texts):
  pyserini = pytest.importorskip("pyserini.eval.evaluate_dpr_retrieval", reason="needs pyserini")
  found = []
  for text, answer in difficult_texts:
    if answer:  # else the pattern finds nothing everywhere, which is a find of DPR's alone
      patterns = [f"{re.escape(answer)}(", f"qqq|{re.escape(answer[:2])}.?{re.escape(answer[3:])}"]
      ours = has_answer(decomposed(text), [*map(decomposed, patterns)], regex=True)
      assert ours == pyserini.has_answers(text, patterns, None, regex=True), (text, patterns)
      found.append(ours)
  assert 500 < sum(found) < 2500


def token_recall(evaluated: pathlib.Path) -> dict[int, float]:
  """k -> percent of the questions, as realm evaluate printed it."""
  result = json.loads(read(evaluated, "json"))
  return {int(name.split("@")[1]): result[name] for name in result if name.startswith("token_recall@")}


def test_recall_is_trec_evals_success(evaluated):
  pytrec_eval = pytest.importorskip("pytrec_eval", reason="needs pytrec_eval-terrier")
  qrels = pytrec_eval.parse_qrel(read(evaluated, "qrels").split("\n")[:-1])
  run = pytrec_eval.parse_run(read(evaluated, "trec").split("\n")[:-1])
  recall = token_recall(evaluated)
  success = pytrec_eval.RelevanceEvaluator(qrels, {f"success.{','.join(map(str, recall))}"}).evaluate(run)
  theirs = {k: 100 * np.mean([scores[f"success_{k}"] for scores in success.values()]) for k in recall}
  assert theirs == pytest.approx(recall, abs=0.006) and len(success) == len(predictions_of(evaluated))


def test_recall_is_ranx_hit_rate(evaluated):
  ranx = pytest.importorskip("ranx", reason="needs ranx")
  qrels = ranx.Qrels.from_file(f"{evaluated}.qrels", kind="trec")
  run = ranx.Run.from_file(f"{evaluated}.trec", kind="trec")
  recall = token_recall(evaluated)
  theirs = ranx.evaluate(qrels, run, [f"hit_rate@{k}" for k in recall])
  assert {k: 100 * theirs[f"hit_rate@{k}"] for k in recall} == pytest.approx(recall, abs=0.006)
