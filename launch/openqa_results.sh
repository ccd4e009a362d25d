#!/usr/bin/env bash
# Makes the open-QA numbers of docs/results.md: a retriever that starts from MiniLM beside BM25, over 30,000 passages of
# Wikipedia, both read by the same reader, which starts from MiniLM too. About two hours of CPU time. What is done
# is not done again. Needs
#   ARTICLES   articles, jsonl(.xz) with id, title and text
#   MINILM     the directory of all-MiniLM-L6-v2, with config.json, model.safetensors and vocab.txt
#   QUESTIONS  a directory with nq.train.jsonl, nq.dev.jsonl, webquestions.train.jsonl and curatedtrec.train.jsonl
#   SQUAD      jsonl with title, context and questions of SQuAD
#   HOTPOTQA   jsonl with question, answer and passages of HotpotQA
#   RUNS       where to write (runs/openqa)
#   MEASURE    files of questions to measure with, such as test sets, separated by spaces (the development questions)
# To try it through in minutes: a file of a few hundred articles, NUM_PASSAGES=2000 (30,000) and NUM_STEPS=2 (the config's).
set -euo pipefail
: "${ARTICLES:?set ARTICLES to a jsonl file}" "${MINILM:?set MINILM to a directory}" "${QUESTIONS:?set QUESTIONS to a directory}"
: "${SQUAD:?set SQUAD to a jsonl file}" "${HOTPOTQA:?set HOTPOTQA to a jsonl file}"
ARTICLES="$(realpath "$ARTICLES")" MINILM="$(realpath "$MINILM")" QUESTIONS="$(realpath "$QUESTIONS")"
SQUAD="$(realpath "$SQUAD")" HOTPOTQA="$(realpath "$HOTPOTQA")"
dev=("$QUESTIONS/nq.dev.jsonl" "$QUESTIONS/webquestions.train.jsonl:dev" "$QUESTIONS/curatedtrec.train.jsonl:dev")
if [ -n "${MEASURE:-}" ]; then
  read -ra dev <<< "$MEASURE"
  mapfile -t dev < <(realpath -m "${dev[@]}")
fi
for file in "${dev[@]}"; do
  [ -e "${file%:*}" ] || { echo "no file ${file%:*}; see QUESTIONS and MEASURE in $0" >&2; exit 1; }
done
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment "[dev]"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
runs="$(realpath -m "${RUNS:-runs/openqa}")"
train=("$QUESTIONS/nq.train.jsonl" "$QUESTIONS/webquestions.train.jsonl:train")

# corpus INPUT OUTPUT FLAGS...: a store of passages, once.
corpus() {
  [ -e "$2" ] || realm build_corpus --input="$1" --output="$2" --vocab="$MINILM" --passage_length=128 --tagger=none "${@:3}"
}

# training NAME FLAGS...: goes on where it was, and does nothing if it is done.
training() {
  realm train --config="configs/openqa.py:$1" --workdir="$runs/$1" "${@:2}" ${NUM_STEPS:+"--config.num_steps=$NUM_STEPS"}
}

# The passages that are searched, with answers or at random; and others with questions, to train on.
corpus "$ARTICLES" "$runs/all"
[ -e "$runs/data/train.jsonl" ] ||
  python launch/openqa_corpus.py "$runs/data" --corpus="$runs/all" --num_passages="${NUM_PASSAGES:-30000}" --dev "${dev[@]}" --train "${train[@]}"
corpus "$runs/data/passages.jsonl" "$runs/corpus" --whole
corpus "$runs/data/train_passages.jsonl" "$runs/train_corpus" --whole

# MiniLM as it is; then it learns to read.
training before --config.corpus="$runs/corpus" --config.questions="$runs/data/train.jsonl" --config.init="$MINILM"
[ -e "$runs/reading/real.jsonl" ] ||
  python launch/tiny_questions.py "$runs/reading" --squad "$SQUAD" --hotpotqa "$HOTPOTQA" --num_hotpotqa=4000
corpus "$runs/reading/articles.jsonl" "$runs/reading_corpus"
training reader --config.corpus="$runs/reading_corpus" --config.questions="$runs/reading/real.jsonl" --config.init="$MINILM"
training finetune --config.corpus="$runs/train_corpus" --config.questions="$runs/data/train.jsonl" --config.init="$runs/reader"

# Both retrievers' passages and BM25's, read by the same reader, compared question by question: with the retriever's own
# scores beside the spans', as in training, and without any, as BM25's are read.
for name in reader finetune; do
  run="$runs/$name.dev"
  [ -e "$run" ] || realm convert --input="$runs/$name" --to=realm --corpus="$runs/corpus" --output="$run"
  if [ ! -e "$run/index" ]; then # the passage tower is the same, so is the index
    cp -r "$runs/before/index" "$run/index.copying"
    mv "$run/index.copying" "$run/index"
  fi
  for questions in "${dev[@]}"; do
    flags=(--workdir="$run" "--questions=$questions" "--recall_at=1,5,20,100" --answerable)
    base="$(basename "$questions")"
    base="${base/.jsonl/}"
    bm25="$run/evaluation/bm25.${base/:/.}.predictions.jsonl"
    [ -e "$bm25" ] || realm evaluate "${flags[@]}" --bm25
    realm evaluate "${flags[@]}" --compare="$bm25"
    realm evaluate "${flags[@]}" --compare="$bm25" --retriever="$run" # the fair control: the same passages, no scores
  done
done
realm evaluate --table="$runs/reader.dev,$runs/finetune.dev"
