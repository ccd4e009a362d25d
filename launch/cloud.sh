# shellcheck shell=bash disable=SC2034,SC2154 # what the scripts that source this declare, or use
# Sourced by tpu_pretrain.sh, tpu_finetune.sh and gpu_pretrain.sh: rents machines, keeps on them what they are to run,
# and follows it to its end. The script that sources it declares
#   names           the machines; the first is the trainer, whose log is shown
#   arguments       an associative array, NAME -> the realm command line, each word quoted by printf %q
#   extras          what is installed besides the project: tpu,gcs
#   check           refuses, before anything is rented, what can't be
#   state NAME      prints ready, waiting, gone (pre-empted), failed, or nothing (no such machine); fails if it can't tell
#   create NAME     rents it        revive NAME   after it was pre-empted        remove NAME   ends the costs
#   on NAME COMMAND       runs it on all hosts of the machine; fails where it fails on one of them
#   log_of NAME           follows the log of its first host
#   copy_to NAME FILE...  to the home directories of all its hosts
# and calls `split_arguments "$@"` and `main "${own_flags[@]}"`. Nothing here, nor there, deletes anything in a
# bucket.

shopt -s inherit_errexit
export CLOUDSDK_CORE_DISABLE_PROMPTS=1
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dry_run=""
stop=""
poll_seconds="${POLL_SECONDS:-30}"      # between two looks at a machine
wait_seconds="${WAIT_SECONDS:-86400}"   # for a machine, at most: a day
follow_seconds="${FOLLOW_SECONDS:-600}" # of log between two looks at all machines
max_revivals="${MAX_REVIVALS:-100}"     # of pre-empted machines
declare -A looked_at=() away=()
num_revivals=0

say() { printf '== %s\n' "$*" >&2; }

quoted() { printf ' %q' "$@"; }

# pretrain_with ATTENTION FLAG...: the command line of pre-training. What realm plan says fits; see docs/performance.md.
pretrain_with() {
  quoted train --config=configs/pretrain.py --config.corpus="$CORPUS" --config.init="$INIT" --workdir="$WORKDIR" \
    --config.model.dtype=bfloat16 --config.model.attention="$1" --config.model.attention_dropout_rate=0 \
    --config.model.remat=layer --config.index.timeout=86400 "${@:2}" "${more_flags[@]}"
}

refresh=(refresh_index --workdir="$WORKDIR" --quiet)

# Shows a gcloud command, ready to be pasted.
show() { printf '+ gcloud%s\n' "$(quoted "$@")" >&2; }

# Shows it, and runs it unless this is a dry run.
call() {
  show "$@"
  [[ -n "$dry_run" ]] || gcloud "$@"
}

# The same, for follow_seconds at most; 124 when they are over.
call_for_a_while() {
  show "$@"
  [[ -n "$dry_run" ]] || timeout "$follow_seconds" gcloud "$@"
}

# 0: done. 1: not yet. Ends the script where the bucket can't tell: the machines would never be given back.
is_done() {
  local answer
  show storage ls "$WORKDIR/DONE"
  [[ -z "$dry_run" ]] || return 1
  if answer="$(gcloud storage ls "$WORKDIR/DONE" 2>&1)"; then
    return 0
  elif [[ "$answer" != *"matched no objects"* ]]; then
    printf '%s\n' "$answer" "can't see whether $WORKDIR is done: check WORKDIR, and that you may read its bucket" >&2
    exit 1
  fi
  return 1
}

# The flags before -- are the script's own, those behind it are added to realm train's.
split_arguments() {
  own_flags=() more_flags=()
  while (($#)) && [[ "$1" != -- ]]; do
    own_flags+=("$1")
    shift
  done
  (($# == 0)) || more_flags=("${@:2}")
}

how_to_stop() {
  say "the machines (${names[*]}) go on, and cost, until:  bash $0 --stop   (with the same variables)"
}

wait_until_ready() {
  local name="$1" waited=0 now
  while [[ -z "$dry_run" ]]; do
    now="$(state "$name")"
    case "$now" in
      ready) return ;;
      failed)
        echo "$name failed; its description says why. Then  bash $0 --stop  and start again." >&2
        return 1
        ;;
    esac
    if ((waited >= wait_seconds)); then
      echo "$name is not ready after $wait_seconds seconds (${now:-not there}); another ZONE or type may have room" >&2
      return 1
    fi
    sleep "$poll_seconds"
    waited=$((waited + (poll_seconds > 0 ? poll_seconds : 1)))
  done
}

# Sends the checkout, and has it installed with the command line as a service (see machine.sh).
install() {
  local name="$1" scratch="SCRATCH"
  say "installing on $name, to run: realm${arguments[$name]}"
  if [[ -z "$dry_run" ]]; then
    scratch="$(mktemp -d)" # less than 2 MB, left to the system to tidy away
    tar -czf "$scratch/realm.tar.gz" -C "$root" \
      LICENSE README.md configs launch pyproject.toml realm_jax requirements.txt setup.cfg
    printf '#!/usr/bin/env bash\nexec .venv/bin/realm%s\n' "${arguments[$name]}" > "$scratch/realm.sh"
  fi
  copy_to "$name" "$scratch/realm.tar.gz" "$scratch/realm.sh"
  on "$name" "mkdir -p realm && tar -xzf realm.tar.gz -C realm && bash realm/launch/machine.sh $extras"
}

# Rents a machine if there is none, and again if it was pre-empted; doesn't wait for it.
rent() {
  local name="$1" now
  now="$(state "$name")"
  case "$now" in
    "") create "$name" ;;
    gone)
      num_revivals=$((num_revivals + 1))
      if ((num_revivals > max_revivals)); then
        echo "pre-empted $max_revivals times; go on with  bash $0  when you want to" >&2
        return 1
      fi
      say "$name was pre-empted, or stopped: starting it again"
      revive "$name"
      ;;
  esac
  [[ "$now" == ready ]] || away[$name]=1
}

# Sees to it that the service of a machine runs, as soon as the machine is there.
serve() {
  local name="$1"
  wait_until_ready "$name"
  if [[ -n "${away[$name]:-}" ]]; then
    looked_at=() # machines that share its job may have given up waiting for it
    unset "away[$name]"
  fi
  if [[ -n "$dry_run" ]] || ! on "$name" "systemctl is-enabled --quiet realm"; then
    install "$name"
  elif ! on "$name" "! systemctl is-failed --quiet realm"; then # on one host at least
    if [[ -n "${looked_at[$name]:-}" ]]; then
      on "$name" "journalctl --unit=realm --no-pager --lines=20" || true
      echo "realm failed on $name again and again; see above. Start this script again when it is mended." >&2
      return 1
    fi
    on "$name" "sudo systemctl reset-failed realm && sudo systemctl start realm"
  fi
  looked_at[$name]=1
}

# Ends the costs of all machines, also where one of them can't be given back: then those that are left are `names`.
give_back() {
  local name now left=()
  for name in "${names[@]}"; do
    now="unknown"
    if [[ -n "$dry_run" ]] || now="$(state "$name")"; then
      [[ -z "$now" ]] || remove "$name" || left+=("$name")
    else
      left+=("$name")
    fi
  done
  ((${#left[@]} == 0)) || { names=("${left[@]}") && return 1; }
}

check_variables() {
  local name
  for name in WORKDIR CORPUS; do
    if [[ "${!name}" != gs://?* ]]; then
      echo "$name=${!name} is not in a bucket, where all machines can reach it; set it to gs://BUCKET/..." >&2
      return 1
    fi
  done
  case "$SPOT" in
    0) SPOT="" ;;
    1 | "") ;;
    *)
      echo "SPOT=$SPOT; set it to 1 for spot machines, to 0 for machines on demand" >&2
      return 1
      ;;
  esac
  check
}

main() {
  local flag name status
  for flag in "$@"; do
    case "$flag" in
      --dry-run) dry_run=1 ;;
      --stop) stop=1 ;;
      *)
        echo "unknown flag $flag; the flags are --dry-run, --stop and --help" >&2
        exit 2
        ;;
    esac
  done
  if [[ -n "$stop" ]]; then
    trap how_to_stop EXIT
    give_back
    trap - EXIT
    say "stopped. $WORKDIR is as it was; the same command without --stop goes on from there"
    return
  fi
  check_variables
  while ! is_done; do
    trap how_to_stop EXIT
    for name in "${names[@]}"; do # all, before any is waited for: none is to be idle while another queues
      rent "$name"
    done
    for name in "${names[@]}"; do
      serve "$name"
    done
    status=0
    log_of "${names[0]}" || status=$?
    [[ -z "$dry_run" ]] || break
    ((status == 124)) || sleep "$poll_seconds" # 124: there is more to follow
  done
  [[ -n "$dry_run" ]] || say "done: $WORKDIR"
  trap how_to_stop EXIT
  give_back
  trap - EXIT
}
