#!/usr/bin/env bash
# Makes the open-QA numbers of docs/results.md: MiniLM as REALM's retriever and reader beside BM25 with the same reader,
# over 20,000 passages of Wikipedia. About 70 minutes of one CPU core, and 3 GB of memory. What is done is not done again.
# Needs
#   ARTICLES   articles, jsonl(.xz) with id, title and text
#   MINILM     the directory of all-MiniLM-L6-v2, with config.json, model.safetensors and vocab.txt
#   SQUAD      jsonl with title, context and questions of SQuAD, to teach the reader
#   QUESTIONS  a directory with nq.train.jsonl, nq.dev.jsonl, webquestions.train.jsonl and curatedtrec.train.jsonl
#   RUNS       where to write (runs/openqa)
set -euo pipefail
: "${ARTICLES:?set ARTICLES to a jsonl file}" "${MINILM:?set MINILM to a directory}" "${SQUAD:?set SQUAD to a jsonl file}"
: "${QUESTIONS:?set QUESTIONS to a directory}"
ARTICLES="$(realpath "$ARTICLES")" MINILM="$(realpath "$MINILM")" SQUAD="$(realpath "$SQUAD")" QUESTIONS="$(realpath "$QUESTIONS")"
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

# finetune NAME CORPUS QUESTIONS FLAGS...: goes on where it was, and does nothing if it is done.
finetune() {
  realm train --config=configs/openqa.py --config.corpus="$2" --config.questions="$3" --workdir="$runs/$1" "${@:4}"
}

# The corpus: passages with answers, and others at random.
corpus "$ARTICLES" "$runs/all"
[ -e "$runs/data/train.jsonl" ] ||
  python launch/openqa_corpus.py "$runs/data" --corpus="$runs/all" --dev "${dev[@]}" --train "${train[@]}"
corpus "$runs/data/passages.jsonl" "$runs/corpus" --whole

# The reader's warm start on SQuAD, the retriever as it is.
[ -e "$runs/squad/real.jsonl" ] || python launch/tiny_questions.py "$runs/squad" --squad "$SQUAD"
corpus "$runs/squad/articles.jsonl" "$runs/squad/corpus"
finetune reader "$runs/squad/corpus" "$runs/squad/real.jsonl" --config.init="$MINILM"

# Both as they are before fine-tuning: one step that changes nothing.
finetune before "$runs/corpus" "$runs/data/train.jsonl" --config.init="$MINILM" --config.init_reader="$runs/reader" \
  --config.num_steps=1 --config.optimizer.learning_rate=0.0 --config.num_inference_passages=3

# Of the training questions those to which one of the 2 best passages holds an answer.
[ -e "$runs/data/readable.jsonl" ] || {
  realm evaluate --workdir="$runs/before" --questions="$runs/data/train.jsonl" --retrieval_only --recall_at=2
  python launch/openqa_corpus.py "$runs/data" --retrieved="$runs/before/evaluation/train.dpr.json"
}
# The passage tower is the same, so is the index.
mkdir -p "$runs/finetune"
[ -e "$runs/finetune/index" ] || cp -r "$runs/before/index" "$runs/finetune/index"
finetune finetune "$runs/corpus" "$runs/data/readable.jsonl" --config.init="$runs/before" --config.num_steps=60 \
  --config.num_passages=2 --config.num_inference_passages=3 --config.optimizer.learning_rate=1e-4 \
  --config.optimizer.retriever_scale=0.2 --config.optimizer.warmup_steps=6

for questions in "${dev[@]}"; do
  flags=(--questions="$questions" --recall_at=1,5,20,100)
  realm evaluate --workdir="$runs/finetune" "${flags[@]}"
  realm evaluate --workdir="$runs/finetune" "${flags[@]}" --bm25
  realm evaluate --workdir="$runs/before" "${flags[@]}" --retrieval_only
done
realm evaluate --table="$runs/before,$runs/finetune"
