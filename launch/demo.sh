#!/usr/bin/env bash
# The whole loop on the sample encyclopedia: corpus, ICT, REALM pre-training with an indexer beside it, fine-tuning,
# evaluation, three questions. About 6 minutes on 2 CPU cores after installation (3 GB). Writes to runs/demo (DEMO=...).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment ""
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
demo="$(realpath -m "${DEMO:-runs/demo}")"
if [[ -e "$demo" ]]; then
  echo "$demo exists: the demo starts from nothing. Move it away, or choose another place: DEMO=runs/demo2 bash launch/demo.sh" >&2
  exit 1
fi
mkdir -p "$demo"
# The same programs run in several processes: compile each once.
export JAX_COMPILATION_CACHE_DIR="$demo/.compiled" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
started=$SECONDS
stage() { printf '\n== %3d s  %s\n' "$((SECONDS - started))" "$*"; }

# train_with_indexer STAGE WORKDIR FLAGS...: the trainer, and the indexer as a second process.
train_with_indexer() {
  local name="$1" workdir="$2" indexer status=0
  shift 2
  mkdir -p "$workdir"
  realm refresh_index --workdir="$workdir" --quiet > "$workdir/indexer.log" 2>&1 &
  indexer=$!
  trap 'kill $indexer 2>/dev/null || true' EXIT
  realm train --config="configs/demo.py:$name" --config.corpus="$demo/corpus" --workdir="$workdir" "$@" || status=$?
  if [[ $status -eq 130 || $status -eq 75 ]]; then # Ctrl-C and SIGTERM: it is saved
    exit "$status"
  elif [[ $status -ne 0 ]]; then
    echo "training failed; the indexer said:" >&2
    tail -n 5 "$workdir/indexer.log" >&2
    exit "$status"
  fi
  wait "$indexer"
  trap - EXIT
}

questions=realm_jax/data/sample
stage "build_corpus: the sample encyclopedia -> passages, a vocabulary, salient spans"
realm build_corpus --sample --output="$demo/corpus" --passage_length=176 --vocab=realm-tiny

stage "ict: the retriever learns which passage a sentence came from (inverse cloze task)"
realm train --config=configs/demo.py:ict --config.corpus="$demo/corpus" --config.init=realm-tiny --workdir="$demo/ict"
realm refresh_index --workdir="$demo/ict" --once --quiet

stage "pretrain: fill in masked names and dates with the help of retrieved passages; a second process refreshes the index"
train_with_indexer pretrain "$demo/pretrain" --config.init="$demo/ict" --config.init_reader=realm-tiny

stage "finetune: answer questions; the passages' embeddings stay as they are"
train_with_indexer finetune "$demo/finetune" --config.init="$demo/pretrain" --config.questions="$questions/questions.train.jsonl"

stage "evaluate: $(wc -l < "$questions/questions.test.jsonl") held-out questions"
realm evaluate --workdir="$demo/ict" --bm25 --questions="$questions/questions.test.jsonl" --name=bm25
for run in ict pretrain finetune; do
  realm evaluate --workdir="$demo/$run" --questions="$questions/questions.test.jsonl" --name=test
done

stage "results"
realm evaluate --table="$demo/ict,$demo/pretrain,$demo/finetune"
echo
realm ask --workdir="$demo/finetune" \
  "Which country won the first football World Cup?" \
  "In what year did the Berlin Wall fall?" \
  "Who painted the Mona Lisa?"
stage "done; ask your own:  $VENV/bin/realm ask --workdir=$demo/finetune \"...\""
