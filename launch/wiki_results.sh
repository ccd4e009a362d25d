#!/usr/bin/env bash
# Makes the numbers of docs/results.md: ICT, the reader's warm start and REALM pre-training on 20,000 passages of
# Wikipedia, from BERT-tiny. About 75 minutes on 2 CPU cores. Needs
#   LEADS      articles, jsonl(.xz) with id, title and text
#   BERT       a directory with model.safetensors and vocab.txt of a BERT of 2 layers, 128 wide
#   QUESTIONS  a directory with webquestions.train.jsonl and curatedtrec.train.jsonl
#   RUNS       where to write (runs/wiki)
set -euo pipefail
: "${LEADS:?set LEADS to a jsonl file of articles}" "${BERT:?set BERT to a directory}" "${QUESTIONS:?set QUESTIONS to a directory}"
LEADS="$(realpath "$LEADS")" BERT="$(realpath "$BERT")" QUESTIONS="$(realpath "$QUESTIONS")"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment "[dev]"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
runs="$(realpath -m "${RUNS:-runs/wiki}")"
realm build_corpus --input="$LEADS" --output="$runs/corpus" --vocab="$BERT/vocab.txt" --passage_length=112 --num_passages=20000
realm train --config=configs/wiki.py:ict --config.corpus="$runs/corpus" --config.init="$BERT" --workdir="$runs/ict"
realm refresh_index --workdir="$runs/ict" --once
# The reader's warm start: first it learns words, then to take them from the passage.
realm train --config=configs/wiki.py:mlm --config.corpus="$runs/corpus" --config.init="$BERT" --workdir="$runs/mlm"
realm train --config=configs/wiki.py:mlm --config.corpus="$runs/corpus" --config.init="$runs/mlm" --config.num_steps=2000 \
  --config.recurring_rate=0.6 --workdir="$runs/reading"
python benchmarks/reading.py --retriever="$runs/ict" --reader="$runs/reading"

mkdir -p "$runs/pretrain"
realm refresh_index --workdir="$runs/pretrain" --quiet > "$runs/pretrain/indexer.log" 2>&1 &
realm train --config=configs/wiki.py:pretrain --config.corpus="$runs/corpus" --config.init="$runs/ict" \
  --config.init_reader="$runs/reading" --workdir="$runs/pretrain"
wait
for set in webquestions curatedtrec; do
  flags=(--questions="$QUESTIONS/$set.train.jsonl" --answerable)
  realm evaluate --workdir="$runs/ict" --bm25 --name="bm25.$set" "${flags[@]}"
  realm evaluate --workdir="$runs/ict" --name="$set" "${flags[@]}"
  realm evaluate --workdir="$runs/pretrain" --name="$set" "${flags[@]}"
done
realm evaluate --table="$runs/ict,$runs/pretrain"
python docs/plot_curves.py "$runs/pretrain" docs/curves.svg
