"""Builds a passage store from raw text, or describes one.

  realm build_corpus --input=articles.jsonl --output=corpora/mine
  realm build_corpus --input=notes --output=corpora/notes --vocab=realm-tiny --passage_length=176
  realm build_corpus --input='enwiki-*-pages-articles*.xml-p*.bz2' --output=corpora/wikipedia --workers=16
  realm build_corpus --input=tfds:wikipedia/20230601.en --output=corpora/wikipedia \\
    --runner=DataflowRunner --shards_dir=gs://mine/shards -- --project=mine --region=us-central1 --temp_location=gs://mine/tmp
  realm build_corpus --sample --output=corpora/sample
  realm build_corpus --describe=corpora/sample

Inputs, told apart by their names or by --format, plain or compressed (.gz, .xz, .bz2, .zst):
  jsonl          *.jsonl: {"id", "title", "text"} on each line
  text           *.txt, *.md, or a directory of them: each file an article, its title the first heading or the name
  tsv            *.tsv: DPR's ready passages (psgs_w100.tsv): id, text, title
  parquet        *.parquet: columns id, text and, if there is one, title
  wikiextractor  WikiExtractor's JSON: a directory, or files wiki_00, wiki_01 ...
  dump           *.xml: a dump of a MediaWiki, such as enwiki-latest-pages-articles.xml.bz2
  orqa           blocks.tfr: ORQA's ready passages, with titles.tfr beside it
  tfds           tfds:NAME or tfds:DIR: a data set of TFDS with title and text

A build that was stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

import os
import pathlib
import sys

import tqdm
from absl import flags

from realm_jax import cli
from realm_jax.data.build import Runner, build_passages, train_vocabulary
from realm_jax.data.card import describe_corpus
from realm_jax.data.passages import refuse_existing
from realm_jax.data.sample import SAMPLE_PASSAGES
from realm_jax.data.sources import FORMATS, find_sources
from realm_jax.data.spans import Tagger, make_tagger
from realm_jax.data.tag_cache import CachedTagger
from realm_jax.data.vocabulary import Vocabulary
from realm_jax.weights.source import locate
from realm_jax.weights.vocabulary_file import read_vocabulary


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_multi_string(
    "input", None, "File, directory, 'pattern' or tfds:NAME; may be given several times.", flag_values=values
  )
  flags.DEFINE_enum("format", None, list(FORMATS), "The inputs' format, if their names don't tell.", flag_values=values)
  flags.DEFINE_bool("sample", False, "Take the built-in sample encyclopedia as input.", flag_values=values)
  flags.DEFINE_string("output", None, "Directory to write; it must not exist.", flag_values=values)
  flags.DEFINE_string("describe", None, "Print the data card of this corpus, and do nothing else.", flag_values=values)
  flags.DEFINE_string(
    "export_tfds", None, "Also write the corpus as a data set of TFDS into this directory; without --input, the one "
    "that --output names.", flag_values=values,
  )  # fmt: skip
  flags.DEFINE_integer(
    "passage_length", 288, "Wordpieces a passage, title and special tokens included.", 16, 512, flag_values=values
  )
  flags.DEFINE_integer(
    "passage_words", None, "Cut after every so many words (DPR: 100), not between sentences.", 1, flag_values=values
  )
  flags.DEFINE_bool(
    "whole", None, "Each record is a ready passage: don't split it; the default is as the format has it.",
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_string(
    "drop_titles", None, "Leave out titles that begin with this regular expression; by default ORQA's for Wikipedia "
    "(lists, indices, outlines, disambiguation) and none for other formats.", flag_values=values,
  )  # fmt: skip
  flags.DEFINE_string(
    "vocab", None, "vocab.txt, a model's directory or realm-tiny: its vocabulary and casing [learnt from the input].",
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_integer("vocab_size", 30_522, "Wordpieces to learn at most.", 100, 65_536, flag_values=values)
  flags.DEFINE_bool("lowercase", True, "Lower-case and strip accents, as uncased BERT does.", flag_values=values)
  flags.DEFINE_string(
    "tagger", "rules", "Who finds named entities: rules, spacy, spacy:MODEL or none (dates only).", flag_values=values
  )
  flags.DEFINE_string(
    "tagger_cache", None, "Where to keep what spaCy found; the default is ~/.cache/realm_jax/spans, '' is nowhere.",
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_bool("strict", False, "Refuse the first bad record instead of skipping it.", flag_values=values)
  flags.DEFINE_integer("num_passages", None, "Stop at this many passages.", 1, flag_values=values)
  flags.DEFINE_string("source", "", "Where the text comes from; kept in corpus.json.", flag_values=values)
  flags.DEFINE_string("license", "", "The text's licence; kept in corpus.json.", flag_values=values)
  flags.DEFINE_integer("workers", os.cpu_count(), "Processes that build.", 1, flag_values=values)
  flags.DEFINE_string(
    "runner", "processes", "Who builds: processes of this machine, or a runner of Apache Beam (DirectRunner, "
    "DataflowRunner ...), whose own flags follow after --.", flag_values=values,
  )  # fmt: skip
  flags.DEFINE_string(
    "shards_dir", None, "Where the finished pieces lie meanwhile; all machines must see it.", flag_values=values
  )


def main(values: flags.FlagValues, positional: list[str]) -> None:
  if values.describe:
    print(describe_corpus(values.describe))
    return
  if not values.output:
    raise ValueError("give --output=DIR, where to write the corpus")
  if values.input or values.sample or not values.export_tfds:
    _build(values, positional)
  if values.export_tfds:
    from realm_jax.data.realm_passages import export_tfds  # noqa: PLC0415 TFDS takes seconds

    print(f"tfds:{export_tfds(values.output, values.export_tfds)}")


def _build(values: flags.FlagValues, positional: list[str]) -> None:
  if bool(values.input) == values.sample:
    raise ValueError("give either --input=FILE or --sample")
  if positional and values.runner == "processes":
    raise ValueError(f"unexpected {positional[0]!r}: flags after -- are for a runner of Apache Beam, see --runner")
  inputs = [str(SAMPLE_PASSAGES)] if values.sample else values.input
  description = {"source": values.source, "license": values.license}
  if values.sample:
    description = {"source": "the sample encyclopedia of realm_jax", "license": "Apache-2.0"}
  # Before a vocabulary is learnt, which takes time.
  refuse_existing(pathlib.Path(values.output))
  find_sources(inputs, values.format)
  vocabulary = _vocabulary(values, inputs)
  result = build_passages(
    inputs,
    values.output,
    vocabulary=vocabulary,
    passage_length=values.passage_length,
    passage_words=values.passage_words,
    tagger=_tagger(values),
    whole=values.whole,
    drop_titles=values.drop_titles,
    format_name=values.format,
    strict=values.strict,
    num_passages=values.num_passages,
    description=description,
    runner=Runner(values.runner, values.workers, tuple(positional), values.shards_dir),
    make_bar=_make_bar,
  )
  if result["rejected_records"]:
    print(f"skipped: {result['rejected_records']}")
  if result["left_out"]:
    print(f"left out: {', '.join(f'{count} for {reason}' for reason, count in result['left_out'].items())}")
  spans = ", ".join(f"{count} {kind}" for kind, count in result["num_spans"].items() if count)
  print(
    f"{values.output}: {result['num_passages']} passages from {result['num_articles']} articles, "
    f"{len(vocabulary)} wordpieces, salient spans: {spans or 'none'}"
  )


def _vocabulary(values: flags.FlagValues, inputs: list[str]) -> Vocabulary:
  if values.vocab and locate(values.vocab).is_dir():
    vocabulary = read_vocabulary(locate(values.vocab))
    if vocabulary is None:
      raise FileNotFoundError(f"{values.vocab} has neither vocab.txt nor tokenizer.json")
    return vocabulary
  if values.vocab:
    return Vocabulary.load(values.vocab, lowercase=values.lowercase)
  print("learning a vocabulary ...", file=sys.stderr)
  return train_vocabulary(inputs, size=values.vocab_size, lowercase=values.lowercase, format_name=values.format)


def _tagger(values: flags.FlagValues) -> Tagger:
  tagger = make_tagger(values.tagger)
  if values.tagger_cache is None:
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "realm_jax" / "spans"
    # The rules are as fast as the disk.
    return CachedTagger(tagger, str(cache)) if values.tagger.startswith("spacy") else tagger
  return CachedTagger(tagger, values.tagger_cache) if values.tagger_cache else tagger


def _make_bar(description: str, total: int) -> tqdm.tqdm:
  return tqdm.tqdm(desc=description, total=total, unit="", unit_scale=True, mininterval=1.0)


if __name__ == "__main__":
  sys.exit(cli.run(["build_corpus", *sys.argv[1:]]))
