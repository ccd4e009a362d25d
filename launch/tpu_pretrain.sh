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
# bucket. TRAINER (v5litepod-8) and INDEXER (v5litepod-1) are accelerator types; NAME (realm) begins their names; SPOT=
# rents on demand, else they are spot: cheaper, and pre-empted at any time. The indexer is one process on one chip as
# yet: it takes an hour and more for 13 million passages (694 PFLOP), where the paper's refreshed in 500 steps on 16
# chips. So --config.index.num_slices=8 is a good choice: an eighth of them anew at a time.
#
# The trainer runs on the chips of one host as yet, so TRAINER is a slice of one: eight chips, not the paper's 64. A
# slice of several hosts is refused when training starts.
#
# Cost: 9 chips of v5e at $1.20 an hour each on demand are $11 an hour (list price in the US in 2025, typed from memory
# of cloud.google.com/tpu/pricing: look there, and for spot prices too).
# Hours: realm plan --topology=v5e-8 says what a step would take; on v5e-64, once several hosts train together, it
# estimates 175 ms at the data sheet's peaks, 10 hours for 200,000 steps.
# Not run at this size by this project yet, nor on a real TPU; tested with a stand-in for gcloud.
set -euo pipefail
: "${PROJECT:?set PROJECT}" "${ZONE:?set ZONE}" "${WORKDIR:?set WORKDIR to gs://bucket/runs/pretrain}"
: "${CORPUS:?set CORPUS to gs://bucket/corpora/wikipedia}" "${INIT:?set INIT to the run of the warm start}"
SPOT="${SPOT-1}"
NAME="${NAME:-realm}"
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

names=("$NAME-trainer" "$NAME-indexer")
declare -A accelerators=(["${names[0]}"]="${TRAINER:-v5litepod-8}" ["${names[1]}"]="${INDEXER:-v5litepod-1}")
split_arguments "$@"
pretrain_with splash
main "${own_flags[@]}"
