#!/usr/bin/env bash
# Makes realm-tiny, the small model that comes with the package: the retriever and the reader of launch/wiki_results.sh,
# fine-tuned on questions. About 30 minutes on 2 CPU cores. Needs
#   RUNS      where launch/wiki_results.sh wrote (runs/wiki)
#   BERT      the directory with the BERT that it started from
#   LEADS     articles, jsonl.xz with id, title and text
#   SQUAD     jsonl with title, context and questions of SQuAD
#   HOTPOTQA  jsonl with question, answer and passages of HotpotQA
set -euo pipefail
: "${BERT:?set BERT}" "${LEADS:?set LEADS}" "${SQUAD:?set SQUAD}" "${HOTPOTQA:?set HOTPOTQA}"
BERT="$(realpath "$BERT")" LEADS="$(realpath "$LEADS")" SQUAD="$(realpath "$SQUAD")" HOTPOTQA="$(realpath "$HOTPOTQA")"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment "[dev]"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
runs="$(realpath -m "${RUNS:-runs/wiki}")"
questions="$runs/questions"
python launch/tiny_questions.py "$questions" --squad "$SQUAD" --hotpotqa "$HOTPOTQA" --leads "$LEADS"
realm build_corpus --input="$questions/articles.jsonl" --output="$questions/corpus" --vocab="$BERT/vocab.txt" --passage_length=176
python launch/tiny_questions.py "$questions" --corpus "$questions/corpus"
mkdir -p "$runs/finetune"
realm refresh_index --workdir="$runs/finetune" --quiet > "$runs/finetune/indexer.log" 2>&1 &
realm train --config=configs/wiki.py:finetune --config.corpus="$questions/corpus" --config.questions="$questions/questions.jsonl" \
  --config.init="$runs/ict" --config.init_reader="$runs/reading" --workdir="$runs/finetune"
wait
realm convert --input="$runs/finetune" --to=compact --output="$runs/realm-tiny"
echo "$runs/realm-tiny: copy it to realm_jax/weights/tiny"
