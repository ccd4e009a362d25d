#!/usr/bin/env bash
# Makes realm-tiny, the small model that comes with the package: the retriever and the reader of launch/wiki_results.sh,
# fine-tuned on questions. About 35 minutes on 2 CPU cores. Needs
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

# finetune NAME INIT FLAGS...: questions and corpus of $runs/NAME.data, the trainer with the indexer beside it.
finetune() {
  local name="$1" init="$2"
  shift 2
  mkdir -p "$runs/$name"
  realm refresh_index --workdir="$runs/$name" --quiet > "$runs/$name/indexer.log" 2>&1 &
  realm train --config=configs/wiki.py:finetune --config.corpus="$runs/$name.data/corpus" \
    --config.questions="$runs/$name.data/questions.jsonl" --config.init="$init" --workdir="$runs/$name" "$@"
  wait
}

# corpus NAME: passages of $runs/NAME.data/articles.jsonl.
corpus() {
  realm build_corpus --input="$runs/$1.data/articles.jsonl" --output="$runs/$1.data/corpus" --vocab="$BERT/vocab.txt" --passage_length=176
}

# First among 35,000 passages, then among SQuAD's own, where the retriever finds the right one more often.
python launch/tiny_questions.py "$runs/finetune.data" --squad "$SQUAD" --hotpotqa "$HOTPOTQA" --leads "$LEADS"
corpus finetune
python launch/tiny_questions.py "$runs/finetune.data" --corpus "$runs/finetune.data/corpus"
finetune finetune "$runs/ict" --config.init_reader="$runs/reading" --config.num_steps=640
python launch/tiny_questions.py "$runs/squad.data" --squad "$SQUAD"
corpus squad
python launch/tiny_questions.py "$runs/squad.data" --corpus "$runs/squad.data/corpus" --rounds=6 --cloze=6000
finetune squad "$runs/finetune" --config.num_passages=2 --config.beam_size=20 --config.num_steps=850
realm convert --input="$runs/squad" --to=compact --output="$runs/realm-tiny"
echo "$runs/realm-tiny: copy it to realm_jax/weights/tiny"
