#!/usr/bin/env bash
# Makes the open-QA numbers of docs/results.md: a retriever that starts from MiniLM beside BM25, over 10,000 passages of
# Wikipedia, with the same reader, realm-tiny's. About 30 minutes of one CPU core. What is done is not done again. Needs
#   ARTICLES   articles, jsonl(.xz) with id, title and text
#   MINILM     the directory of all-MiniLM-L6-v2, with config.json, model.safetensors and vocab.txt
#   QUESTIONS  a directory with nq.train.jsonl, nq.dev.jsonl, webquestions.train.jsonl and curatedtrec.train.jsonl
#   RUNS       where to write (runs/openqa)
set -euo pipefail
: "${ARTICLES:?set ARTICLES to a jsonl file}" "${MINILM:?set MINILM to a directory}" "${QUESTIONS:?set QUESTIONS to a directory}"
ARTICLES="$(realpath "$ARTICLES")" MINILM="$(realpath "$MINILM")" QUESTIONS="$(realpath "$QUESTIONS")"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment "[dev]"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
runs="$(realpath -m "${RUNS:-runs/openqa}")"
train=("$QUESTIONS/nq.train.jsonl" "$QUESTIONS/webquestions.train.jsonl:train")
dev=("$QUESTIONS/nq.dev.jsonl" "$QUESTIONS/webquestions.train.jsonl:dev" "$QUESTIONS/curatedtrec.train.jsonl:dev")

# corpus INPUT OUTPUT FLAGS...: a store of passages, once.
corpus() {
  [ -e "$2" ] || realm build_corpus --input="$1" --output="$2" --vocab="$MINILM" --passage_length=128 --tagger=none "${@:3}"
}

# finetune NAME FLAGS...: goes on where it was, and does nothing if it is done.
finetune() {
  realm train --config=configs/openqa.py --config.corpus="$runs/corpus" --config.questions="$runs/data/train.jsonl" \
    --workdir="$runs/$1" "${@:2}"
}

# The corpus: passages with answers, and others at random.
corpus "$ARTICLES" "$runs/all"
[ -e "$runs/data/train.jsonl" ] ||
  python launch/openqa_corpus.py "$runs/data" --corpus="$runs/all" --dev "${dev[@]}" --train "${train[@]}"
corpus "$runs/data/passages.jsonl" "$runs/corpus" --whole

# MiniLM as it is: one step that changes nothing.
finetune before --config.init="$MINILM" --config.num_steps=1 --config.optimizer.learning_rate=0.0

# realm-tiny as it is.
[ -e "$runs/tiny" ] || realm convert --input=realm-tiny --corpus="$runs/corpus" --to=realm --output="$runs/tiny"
realm refresh_index --workdir="$runs/tiny" --once

# The passage tower is the same, so is the index.
[ -e "$runs/finetune/index" ] || {
  mkdir -p "$runs/finetune"
  cp -r "$runs/before/index" "$runs/finetune/index.copying"
  mv "$runs/finetune/index.copying" "$runs/finetune/index"
}
finetune finetune --config.init="$runs/before"

# Each retriever's passages, read by realm-tiny, and compared with BM25's question by question.
for questions in "${dev[@]}"; do
  flags=(--workdir="$runs/tiny" "--questions=$questions" "--recall_at=1,5,20,100" --answerable)
  name="$(basename "$questions")"
  name="${name/.jsonl/}"
  bm25="$runs/tiny/evaluation/bm25.${name/:/.}.predictions.jsonl"
  realm evaluate "${flags[@]}" --bm25
  realm evaluate "${flags[@]}" --compare="$bm25"
  realm evaluate "${flags[@]}" --compare="$bm25" --retriever="$runs/before"
  realm evaluate "${flags[@]}" --compare="$bm25" --retriever="$runs/finetune"
done
realm evaluate --table="$runs/tiny"
