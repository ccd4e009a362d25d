#!/usr/bin/env bash
# REALM pre-training on Cloud TPUs: one slice for the trainer and one for the indexer, on the same run directory in a
# bucket. Rents them (queued resources), installs this checkout, starts both, follows the trainer's log, rents again what
# is pre-empted, and gives all back when the run is done. It may be stopped and started again at any time.
#
#   export PROJECT=my-project ZONE=us-west4-a WORKDIR=gs://bucket/runs/pretrain CORPUS=gs://bucket/corpora/wikipedia
#   export INIT=gs://bucket/runs/ict
#   bash launch/tpu_pretrain.sh --dry-run    # shows every gcloud call and makes none
#   bash launch/tpu_pretrain.sh
#   bash launch/tpu_pretrain.sh --stop       # gives the slices back; nothing in the bucket is deleted
#   bash launch/tpu_pretrain.sh -- --config.num_steps=100000 --config.seed=1    # more flags of realm train
#
# Needs gcloud, logged in, with a quota for the slices, and read and write access of their service account to the
# bucket. TRAINER (v5litepod-64) and INDEXER (v5litepod-16) are accelerator types, here as many chips as the paper's, on
# 16 and 4 hosts; NAME (realm) begins their names; SPOT=0 rents on demand, else they are spot: cheaper, and pre-empted at
# any time. An index of 13 million passages is 694 PFLOP, 220 s at the peak of 16 chips, in which the trainer makes
# 1,260 steps; the paper's took 500. --config.index.num_slices=3 publishes as often: a third of the passages anew at a
# time.
#
# Cost: 80 chips of v5e at $1.20 an hour each on demand are $96 an hour (list price in the US in 2025, typed from memory
# of cloud.google.com/tpu/pricing: look there, and for spot prices too); $930 for the hours below.
# Hours: realm plan estimates 175 ms a step on v5e-64 (docs/performance.md), at the data sheet's peaks: 9.7 hours for
# 200,000 steps at least, and more in practice.
# Not run at this size by this project yet, nor on a real TPU; tested with a stand-in for gcloud.
set -euo pipefail
[[ " $* " != *" --help "* ]] || exec sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
: "${PROJECT:?set PROJECT}" "${ZONE:?set ZONE}" "${WORKDIR:?set WORKDIR to gs://bucket/runs/pretrain}"
: "${CORPUS:?set CORPUS to gs://bucket/corpora/wikipedia}" "${INIT:?set INIT to the run of the warm start}"
SPOT="${SPOT-1}"
NAME="${NAME:-realm}"
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

names=("$NAME-trainer" "$NAME-indexer")
declare -A accelerators=(["${names[0]}"]="${TRAINER:-v5litepod-64}" ["${names[1]}"]="${INDEXER:-v5litepod-16}")
split_arguments "$@"
declare -A arguments=(
  ["${names[0]}"]="$(pretrain_with splash --multihost)" ["${names[1]}"]="$(quoted "${refresh[@]}" --multihost)"
)
main "${own_flags[@]}"
