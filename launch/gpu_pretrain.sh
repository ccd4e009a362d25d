#!/usr/bin/env bash
# REALM pre-training on GPUs of Compute Engine: machines for the trainer and one for the indexer, on the same run
# directory in a bucket. Rents them, installs this checkout, starts both, follows the trainer's log, starts again what is
# pre-empted, and stops both when the run is done. It may be stopped and started again at any time.
#
#   export PROJECT=my-project ZONE=us-central1-a WORKDIR=gs://bucket/runs/pretrain CORPUS=gs://bucket/corpora/wikipedia
#   export INIT=gs://bucket/runs/ict
#   bash launch/gpu_pretrain.sh --dry-run    # shows every gcloud call and makes none
#   bash launch/gpu_pretrain.sh
#   bash launch/gpu_pretrain.sh --stop       # stops the machines; disks and bucket stay
#   bash launch/gpu_pretrain.sh -- --config.num_steps=100000    # more flags of realm train
#
# Needs gcloud, logged in, with a quota, and read and write access of the machines' service account to the bucket.
# TRAINER (a2-highgpu-8g: 8 A100 of 40 GB) and INDEXER (a2-highgpu-1g) are machine types with GPUs; TRAINERS (1)
# machines train together, and reach the first at port 8476, as the rules of the default network let them; NAME (realm)
# begins their names; SPOT=0 rents on demand, else they are spot machines. IMAGE_FAMILY, of ubuntu-os-accelerator-images,
# needs a driver for CUDA 13: 580 or newer.
#
# Cost: about $33 an hour on demand for 9 A100, $62 for 17 of two trainers (list price in the US in 2025, typed from
# memory of cloud.google.com/compute/all-pricing: look there, and for spot prices too); stopped, their disks of 200 GB
# each.
# Hours: 200,000 steps of 1.54 PFLOP are 34 hours at the peak of 8 A100 (312 TFLOP/s each), two to three times that in
# practice. Not run at this size by this project yet; tested with a stand-in for gcloud.
set -euo pipefail
[[ " $* " != *" --help "* ]] || exec sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
: "${PROJECT:?set PROJECT}" "${ZONE:?set ZONE}" "${WORKDIR:?set WORKDIR to gs://bucket/runs/pretrain}"
: "${CORPUS:?set CORPUS to gs://bucket/corpora/wikipedia}" "${INIT:?set INIT to the run of the warm start}"
SPOT="${SPOT-1}"
NAME="${NAME:-realm}"
IMAGE_FAMILY="${IMAGE_FAMILY:-ubuntu-accelerator-2204-amd64-with-nvidia-580}"
source "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

extras=gpu,gcs
where=(--project="$PROJECT" --zone="$ZONE")
split_arguments "$@"
TRAINERS="${TRAINERS:-1}"
if [[ ! "$TRAINERS" =~ ^[1-9][0-9]*$ ]]; then
  echo "TRAINERS=$TRAINERS; set it to the number of machines that train, at least 1" >&2
  exit 1
fi
names=()
declare -A machine_types=() arguments=()
for ((i = 0; i < TRAINERS; i++)); do
  names+=("$NAME-trainer-$i")
  machine_types["${names[i]}"]="${TRAINER:-a2-highgpu-8g}"
  arguments["${names[i]}"]="$(
    pretrain_with cudnn --coordinator_address="${names[0]}:8476" --num_processes="$TRAINERS" --process_id="$i"
  )"
done
names+=("$NAME-indexer")
machine_types["$NAME-indexer"]="${INDEXER:-a2-highgpu-1g}"
arguments["$NAME-indexer"]="$(quoted "${refresh[@]}")"

check() { :; } # Compute Engine knows its types

state() {
  local found
  found="$(call compute instances list --project="$PROJECT" --zones="$ZONE" --filter="name=$1" --format="value(status)")" || return
  case "$found" in
    "") ;;
    RUNNING) echo ready ;;
    STOPPING | SUSPENDING | SUSPENDED | TERMINATED) echo gone ;;
    *) echo waiting ;;
  esac
}

create() {
  call compute instances create "$1" "${where[@]}" --machine-type="${machine_types[$1]}" --boot-disk-size=200GB \
    --image-project=ubuntu-os-accelerator-images --image-family="$IMAGE_FAMILY" --scopes=cloud-platform \
    --maintenance-policy=TERMINATE \
    ${SPOT:+--provisioning-model=SPOT --instance-termination-action=STOP}
}

revive() { call compute instances start "$1" "${where[@]}"; }

remove() { call compute instances stop "$1" "${where[@]}"; }

on() { call compute ssh "$1" "${where[@]}" --command="$2"; }

log_of() { call_for_a_while compute ssh "$1" "${where[@]}" --command="journalctl --unit=realm --follow --lines=20"; }

copy_to() {
  local name="$1"
  shift
  call compute scp "$@" "$name:" "${where[@]}"
}

main "${own_flags[@]}"
