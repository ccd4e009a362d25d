"""Builds a passage store from raw text.

  realm build_corpus --input=articles.jsonl --output=corpora/mine
  realm build_corpus --sample --output=corpora/sample

The input has {"id": ..., "title": ..., "text": ...} on each line, plain or compressed (.gz, .xz).
"""

from __future__ import annotations

import sys

import tqdm
from absl import flags

from realm_jax import cli
from realm_jax.data.build import build_passages, train_vocabulary
from realm_jax.data.sample import SAMPLE_PASSAGES
from realm_jax.data.spans import make_tagger
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.weights.source import locate
from realm_jax.weights.vocabulary_file import read_vocabulary


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string("input", None, "jsonl file with id, title and text a line.", flag_values=values)
  flags.DEFINE_bool("sample", False, "Take the built-in sample encyclopedia as input.", flag_values=values)
  flags.DEFINE_string("output", None, "Directory to write; it must not exist.", required=True, flag_values=values)
  flags.DEFINE_integer(
    "passage_length", 288, "Wordpieces a passage, title and special tokens included.", 16, 512, flag_values=values
  )
  flags.DEFINE_bool("whole", False, "Each line is a ready passage: don't split it.", flag_values=values)
  flags.DEFINE_string(
    "vocab", None, "vocab.txt, a model's directory or realm-tiny: its vocabulary and casing [learnt from the input].",
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_integer("vocab_size", 30_522, "Wordpieces to learn at most.", 100, 65_536, flag_values=values)
  flags.DEFINE_bool("lowercase", True, "Lower-case and strip accents, as uncased BERT does.", flag_values=values)
  flags.DEFINE_string(
    "tagger", "rules", "Who finds named entities: rules, spacy, spacy:MODEL or none (dates only).", flag_values=values
  )
  flags.DEFINE_bool("strict", False, "Refuse the first bad line instead of skipping it.", flag_values=values)
  flags.DEFINE_integer("num_passages", None, "Stop at this many passages.", 1, flag_values=values)
  flags.DEFINE_string("source", "", "Where the text comes from; kept in corpus.json.", flag_values=values)
  flags.DEFINE_string("license", "", "The text's licence; kept in corpus.json.", flag_values=values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
  if bool(values.input) == values.sample or positional:
    raise ValueError("give either --input=FILE.jsonl or --sample")
  input_path = SAMPLE_PASSAGES if values.sample else values.input
  if values.vocab and locate(values.vocab).is_dir():
    vocabulary = read_vocabulary(locate(values.vocab))
    if vocabulary is None:
      raise FileNotFoundError(f"{values.vocab} has neither vocab.txt nor tokenizer.json")
  elif values.vocab:
    vocabulary = Vocabulary.load(values.vocab, lowercase=values.lowercase)
  else:
    print("learning a vocabulary ...", file=sys.stderr)
    vocabulary = train_vocabulary(input_path, size=values.vocab_size, lowercase=values.lowercase)
  description = {"source": values.source, "license": values.license}
  if values.sample:
    description = {"source": "the sample encyclopedia of realm_jax", "license": "Apache-2.0"}
  result = build_passages(
    input_path,
    values.output,
    vocabulary=vocabulary,
    passage_length=values.passage_length,
    tagger=make_tagger(values.tagger),
    whole=values.whole,
    strict=values.strict,
    num_passages=values.num_passages,
    description=description,
    progress=lambda articles: tqdm.tqdm(articles, desc="articles", unit="", mininterval=1.0),
  )
  if result["rejected_lines"]:
    print(f"skipped: {result['rejected_lines']}")
  spans = ", ".join(f"{count} {kind}" for kind, count in result["num_spans"].items() if count)
  print(
    f"{values.output}: {result['num_passages']} passages from {result['num_articles']} articles, "
    f"{len(vocabulary)} wordpieces, salient spans: {spans or 'none'}"
  )


if __name__ == "__main__":
  sys.exit(cli.run(["build_corpus", *sys.argv[1:]]))
