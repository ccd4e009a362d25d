"""The data card: counts, lengths, and where the text comes from."""

from realm_jax import cli
from realm_jax.data.build import build_passages
from realm_jax.data.card import describe_corpus
from realm_jax.data.sample import SAMPLE_PASSAGES
from realm_jax.data.spans import RuleTagger


def test_describes_a_corpus(tmp_path, sample_vocabulary, capsys):
  result = build_passages(
    SAMPLE_PASSAGES,
    tmp_path / "store",
    vocabulary=sample_vocabulary,
    passage_length=128,
    tagger=RuleTagger(),
    num_passages=60,
    description={"source": "the sample", "license": "Apache-2.0"},
  )
  card = describe_corpus(tmp_path / "store")
  rows = {line[2:21].strip(): line[21:].strip() for line in card.splitlines()}
  assert (rows["source"], rows["licence"], rows["tagger"]) == ("the sample", "Apache-2.0", "rules-1")
  assert rows["passages"] == "60 of at most 128 wordpieces, 3 special tokens included"
  assert rows["articles"] == f"{result['num_articles']:,}"
  assert rows["salient spans"].startswith(f"{result['num_spans']['date']} date (")
  assert (rows["rejected"], rows["left out"], rows["settings"]) == ("none", "none", "format jsonl")
  histogram = [line.split() for line in card.split("wordpieces a passage\n")[1].splitlines()]
  assert [(first, last) for first, _, last, *_ in histogram] == [(str(16 * n), str(16 * n + 15)) for n in range(8)]
  assert sum(int(count) for _, _, _, count, *_ in histogram) == 60
  assert max(len(bar[0]) for _, _, _, _, *bar in histogram if bar) == 40
  assert cli.run(["build_corpus", f"--describe={tmp_path / 'store'}"]) == 0
  assert capsys.readouterr().out == card + "\n"


def test_counts_what_is_missing(tmp_path, sample_vocabulary):
  lines = ['{"id": 1, "title": "Index of x", "text": "One."}', "{", '{"id": 2, "title": "B", "text": "Two."}']
  (tmp_path / "in.jsonl").write_text("\n".join(lines))
  arguments = ["--tagger=none", f"--vocab={tmp_path}/vocab.txt", r"--drop_titles=Index of"]
  sample_vocabulary.save(tmp_path / "vocab.txt")
  assert cli.run(["build_corpus", f"--input={tmp_path}/in.jsonl", f"--output={tmp_path}/out", *arguments]) == 0
  card = describe_corpus(tmp_path / "out")
  assert "rejected           1 with no valid JSON" in card
  assert "left out           1 with a title of a list or disambiguation page" in card
  assert "source             not given (--source)" in card
