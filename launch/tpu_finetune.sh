#!/usr/bin/env bash
# Fine-tunes a pre-trained run on questions, on one Cloud TPU chip: rents it, installs this checkout, trains, follows the
# log, rents it again when it is pre-empted, gives it back at the end. It may be stopped and started again at any time.
#
#   export PROJECT=my-project ZONE=us-west4-a WORKDIR=gs://bucket/runs/nq CORPUS=gs://bucket/corpora/wikipedia
#   export INIT=gs://bucket/runs/pretrain QUESTIONS=nq_open:train
#   bash launch/tpu_finetune.sh --dry-run    # shows every gcloud call and makes none
#   bash launch/tpu_finetune.sh
#   bash launch/tpu_finetune.sh --stop       # gives the chip back; nothing in the bucket is deleted
#   bash launch/tpu_finetune.sh -- --config.num_steps=20000    # more flags of realm train
#
# Needs gcloud, logged in, with a quota, and read and write access of the machine's service account to the bucket.
# ACCELERATOR (v5litepod-1) is its type; NAME (realm) begins its name; SPOT=0 rents on demand, else it is a spot machine.
# The passages' embeddings stay as they are: the trainer makes the index itself, once, before the first step, and
# exports nothing after it. Where INDEXER is set, to an accelerator type too, a second slice does that, and both may be
# of several hosts; with more chips a step needs more questions than one: -- --config.batch_size=64.
#
# Cost: one v5e chip at $1.20 an hour on demand (list price in the US in 2025, typed from memory of
# cloud.google.com/tpu/pricing: look there, and for spot prices too).
# Hours: an index of 13 million passages is 694 PFLOP, an hour at the chip's peak and more in practice; then
# config.num_steps steps of one question. Not run at this size by this project yet, nor on a real TPU; tested with a
# stand-in for gcloud.
set -euo pipefail
[[ " $* " != *" --help "* ]] || exec sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
: "${PROJECT:?set PROJECT}" "${ZONE:?set ZONE}" "${WORKDIR:?set WORKDIR to gs://bucket/runs/nq}"
: "${CORPUS:?set CORPUS to gs://bucket/corpora/wikipedia}" "${INIT:?set INIT to a pre-trained run}"
: "${QUESTIONS:?set QUESTIONS, such as nq_open:train or gs://bucket/questions.jsonl}"
SPOT="${SPOT-1}"
NAME="${NAME:-realm}"
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

names=("$NAME-finetune")
declare -A accelerators=(["${names[0]}"]="${ACCELERATOR:-v5litepod-1}") arguments=()
split_arguments "$@"
how=(--config.index.refresh=inline)
if [[ -n "${INDEXER:-}" ]]; then
  how=(--multihost --config.index.timeout=86400)
  names+=("$NAME-indexer")
  accelerators["${names[1]}"]="$INDEXER"
  arguments["${names[1]}"]="$(quoted "${refresh[@]}" --multihost)"
fi
arguments["${names[0]}"]="$(
  quoted train --config=configs/finetune.py --config.corpus="$CORPUS" --config.init="$INIT" \
    --config.questions="$QUESTIONS" --workdir="$WORKDIR" --config.index.export_every=1000000000 \
    --config.model.dtype=bfloat16 "${how[@]}" "${more_flags[@]}"
)"
main "${own_flags[@]}"
