# shellcheck shell=bash disable=SC2034,SC2154 # what the scripts that source this declare, or use
# Sourced by tpu_pretrain.sh and tpu_finetune.sh, before cloud.sh: slices of TPUs, by queued resources. Reads PROJECT,
# ZONE, SPOT and `accelerators`, an associative array: NAME -> accelerator type.

extras=tpu,gcs
where=(--project="$PROJECT" --zone="$ZONE")

runtime_version() {
  case "$1" in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *)
      echo "no runtime version is known for the type $1; use v4-N, v5litepod-N, v5p-N or v6e-N" >&2
      return 1
      ;;
  esac
}

check() {
  local type
  for type in "${accelerators[@]}"; do
    runtime_version "$type" > /dev/null
  done
}

state() {
  local found
  found="$(call compute tpus queued-resources list "${where[@]}" --filter="name~/queuedResources/$1\$" --format="value(state.state)")" || return
  case "$found" in
    "") ;;
    ACTIVE) echo ready ;;
    SUSPENDING | SUSPENDED) echo gone ;;
    FAILED) echo failed ;;
    *) echo waiting ;;
  esac
}

create() {
  local version
  version="$(runtime_version "${accelerators[$1]}")"
  call compute tpus queued-resources create "$1" "${where[@]}" --node-id="$1" --accelerator-type="${accelerators[$1]}" \
    --runtime-version="$version" ${SPOT:+--spot}
}

# A slice that was pre-empted is gone with its disks, which hold nothing that the bucket lacks; only its name is taken.
revive() {
  remove "$1"
  create "$1"
}

remove() { call compute tpus queued-resources delete "$1" "${where[@]}" --force --quiet; }

on() { call compute tpus tpu-vm ssh "$1" "${where[@]}" --worker=all --command="$2"; }

log_of() {
  call_for_a_while compute tpus tpu-vm ssh "$1" "${where[@]}" --worker=0 \
    --command="journalctl --unit=realm --follow --lines=20"
}

copy_to() {
  local name="$1"
  shift
  call compute tpus tpu-vm scp "$@" "$name:" "${where[@]}" --worker=all
}
