#!/usr/bin/env bash
# Train on a Cloud TPU slice of any size: create it with gcloud, start, watch, fetch, delete.
#
#   export PROJECT=my-project ZONE=us-west4-a ACCELERATOR=v5litepod-16 BUCKET=my-runs NAME=unsup
#   launch/tpu_pod.sh create                        ask for the slice (queued), wait until it is there
#   launch/tpu_pod.sh install                       send the tree at REF to every host, install it there
#   launch/tpu_pod.sh run -- --config.train.seed=1  start on every host, as a service; `resume` is the same
#   launch/tpu_pod.sh watch -- --config.train.seed=1  all three as needed, again after a preemption, until the run ends
#   launch/tpu_pod.sh status | logs | stop          what runs; the output of host 0; save and end (first end `watch`)
#   launch/tpu_pod.sh fetch                         copy the run folder here, without its checkpoints
#   launch/tpu_pod.sh delete                        give the slice back. Until then it costs money
#
# --dry-run before the command prints the gcloud commands and runs none. Everything after `--` goes to
# `python -m simcse_jax.train` after --config and --workdir. The hosts restart after a crash by themselves. A spot slice
# also needs `watch`, in tmux or on a small machine that stays: it requests a new slice after a preemption.
# Exit status of watch: 0: the run is complete; 2: something needs mending (see logs); 1: it gave up.
set -euo pipefail

# As in `gcloud projects list` and `gcloud compute tpus locations list`. Default project: gcloud's current one.
PROJECT=${PROJECT:-}
ZONE=${ZONE:-us-central1-a}
# Name of the slice, of its queued resource, and of the run.
NAME=${NAME:-simcse}
# Generation and size: v4-8 (cores), v5litepod-8 (chips), v5p-8 (cores), v6e-8 (chips) and up.
ACCELERATOR=${ACCELERATOR:-v5litepod-16}
# The machine image. Default: the one for the generation.
RUNTIME=${RUNTIME:-}
# 1: spot, cheaper, may be taken away at any time. 0: on demand.
SPOT=${SPOT:-1}
# The bucket for runs (without gs://). Make it once, in the slice's region:
#   gcloud storage buckets create gs://my-runs --location=REGION --uniform-bucket-level-access
BUCKET=${BUCKET:-}
# The commit, branch or tag of this clone to run; what is not committed is not sent.
REF=${REF:-HEAD}
# The recipe.
CONFIG=${CONFIG:-configs/unsup.py}
# Where the run is kept: an address in the bucket, or a folder that all hosts see.
WORKDIR=${WORKDIR:-gs://$BUCKET/runs/$NAME}
# For a WORKDIR below it only: a folder of the hosts where the bucket is mounted with Cloud Storage FUSE. The bucket then
# needs --enable-hierarchical-namespace: renaming a folder finishes a checkpoint, and is atomic only there.
MOUNT=${MOUNT:-}
# The hosts' service account, which must be able to write to the bucket. Default: the project's default one.
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-}
# The Python version to install on the hosts; the images' own, 3.10, is too old.
PYTHON_VERSION=${PYTHON_VERSION:-3.12}
# Seconds between two looks of `create` and `watch`.
POLL_S=${POLL_S:-60}
# Failures in a row after which they give up.
TRIES=${TRIES:-5}

clone=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=''
flags=()
site=("--zone=$ZONE")
[[ -z $PROJECT ]] || site+=("--project=$PROJECT")

ours=("--filter=name ~ /$NAME\$" '--format=value(state.state)')
node_state='--format=value(state)'
say() { echo "launch: $*" >&2; }
die() { say "$*"; exit 2; }
do_() {
  if [[ -n $dry_run ]]; then printf '%q ' "$@"; echo; else "$@"; fi
}
tpus() { do_ gcloud compute tpus "$@" "${site[@]}"; }

runtime() {
  [[ -z $RUNTIME ]] || { echo "$RUNTIME"; return; }
  case $ACCELERATOR in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die "ACCELERATOR=$ACCELERATOR: no image is known for it. v5litepod-16 would do, or set RUNTIME too" ;;
  esac
}

# Print the state of the request, or `none`. (A failing gcloud does not mean that there is no slice.)
request_state() {
  local state
  state=$(tpus queued-resources list "${ours[@]}") || return
  echo "${state:-none}"
}

request() {
  local image arguments
  image=$(runtime) || exit
  arguments=("$NAME" "--node-id=$NAME" "--accelerator-type=$ACCELERATOR" "--runtime-version=$image")
  [[ $SPOT != 1 ]] || arguments+=(--spot)
  [[ -z $SERVICE_ACCOUNT ]] || arguments+=("--service-account=$SERVICE_ACCOUNT")
  tpus queued-resources create "${arguments[@]}"
}

# Wait until state is ACTIVE, or one that never becomes ACTIVE by itself.
await_slice() {
  local misses=0
  while :; do
    if state=$(request_state); then
      misses=0
      case $state in ACTIVE | FAILED | SUSPENDED | none) return ;; esac
      say "the request for $NAME is $state; looking again in $POLL_S s"
    else
      ((++misses < TRIES)) || { say "gcloud has failed $TRIES times in a row"; exit 1; }
    fi
    sleep "$POLL_S"
  done
}

create() {
  local state
  request
  if [[ -n $dry_run ]]; then request_state; return; fi
  await_slice
  if [[ $state != ACTIVE ]]; then
    say "the request for $NAME is $state: gcloud compute tpus queued-resources describe $NAME ${site[*]}"
    return 1
  fi
}

everywhere() { # the command line $1, on every host
  tpus tpu-vm ssh "$NAME" --quiet --worker=all "--command=$1"
}

quoted() { printf '%q ' "$@"; } # for the hosts' shells

# Run tpu_worker.sh on every host.
workers() {
  local variables=("BUCKET=$BUCKET" "MOUNT=$MOUNT" "PYTHON_VERSION=$PYTHON_VERSION")
  everywhere "cd simcse_jax && $(quoted env "${variables[@]}" bash launch/tpu_worker.sh "$@")"
}

# Print one line per host; a host without the tree is `absent` too.
worker_states() {
  local ask
  ask=$(quoted bash launch/tpu_worker.sh status)
  everywhere "if cd simcse_jax 2>/dev/null; then $ask; else echo worker \$(hostname) absent; fi"
}

install() {
  local folder rc=0
  folder=$(mktemp -d)
  { do_ git -C "$clone" archive --format=tar.gz --output="$folder/simcse_jax.tar.gz" "$REF" &&
    tpus tpu-vm scp "$folder/simcse_jax.tar.gz" "$NAME:" --quiet --worker=all &&
    everywhere "rm -rf simcse_jax && mkdir simcse_jax && tar -xzf simcse_jax.tar.gz -C simcse_jax" &&
    workers install; } || rc=$?
  rm -rf "$folder"
  return "$rc"
}

need_bucket() {
  [[ $WORKDIR == "gs://$BUCKET/"* || -n $MOUNT ]] || return 0 # it needs no other bucket
  [[ -n $BUCKET ]] || die "BUCKET is not set: the name of the bucket for runs, such as BUCKET=my-runs"
  [[ $BUCKET != gs://* ]] || die "BUCKET=$BUCKET: the name alone is needed: BUCKET=${BUCKET#gs://}"
}

run() {
  need_bucket
  workers run "--config=$CONFIG" "--workdir=$WORKDIR" "${flags[@]}"
}

delete() { tpus queued-resources delete "$NAME" --force --quiet; }

fetch() {
  local from=$WORKDIR
  need_bucket
  if [[ -n $MOUNT && $WORKDIR == "$MOUNT"/* ]]; then from=gs://$BUCKET/${WORKDIR#"$MOUNT"/}; fi
  [[ $from == gs://* ]] || die "WORKDIR=$WORKDIR: not in a bucket, so it cannot be fetched from there"
  do_ mkdir -p "runs/$NAME"
  do_ gcloud storage rsync "$from" "runs/$NAME" --recursive '--exclude=^checkpoints/.*'
}

# Print the hosts' worst state, or `unreachable`.
worst_state() {
  local lines state
  lines=$(worker_states) || { echo unreachable; return; }
  for state in mend failed absent running 'done'; do
    if grep -q "^worker .* $state\$" <<<"$lines"; then echo "$state"; return; fi
  done
  echo unreachable
}

# Request a slice, after deleting the rest of the last one if $1 gives its state. Give up after TRIES.
renew() {
  [[ -z $1 ]] || say "the slice is gone ($1): a new one is requested"
  if { [[ -z $1 ]] || delete; } && request; then refused=0; return; fi
  ((++refused < TRIES)) || { say "requesting a slice failed $TRIES times in a row"; exit 1; }
  say "the request failed; trying again in $POLL_S s"
}

watch() {
  local state node verdict failures=0 refused=0 unreachable=0
  need_bucket
  RUNTIME=$(runtime)
  if [[ -n $dry_run ]]; then
    create
    tpus tpu-vm describe "$NAME" "$node_state"
    install
    run
    worker_states
    return
  fi
  while :; do
    await_slice
    case $state in
      none) renew '' ;;
      FAILED)
        ((++failures < TRIES)) || { say "the request has failed $TRIES times"; return 1; }
        renew FAILED
        ;;
      SUSPENDED) renew SUSPENDED ;;
      ACTIVE)
        failures=0
        node=$(tpus tpu-vm describe "$NAME" "$node_state") || node=unknown
        case $node in
          PREEMPTED | TERMINATED | STOPPED) renew "$node" ;;
          READY) look_after_run || return "$verdict" ;;
        esac
        ;;
    esac
    sleep "$POLL_S"
  done
}

# Start the run where it is missing. Fail where it has ended, with verdict set to the exit status of `watch`.
look_after_run() {
  verdict=''
  local before=$unreachable
  case $(worst_state) in
    'done') say "the run is complete. $0 fetch, then $0 delete"; verdict=0 ;;
    failed) say "the run fails again and again: $0 logs"; verdict=1 ;;
    mend) say "something needs mending: $0 logs; then $0 install, $0 watch"; verdict=2 ;;
    unreachable)
      if ((++unreachable < TRIES)); then
        say "the hosts cannot be asked; looking again in $POLL_S s"
      else
        say "the hosts could not be asked $TRIES times in a row: gcloud compute tpus tpu-vm ssh $NAME ${site[*]}"
        verdict=1
      fi
      ;;
    absent) say "(re)starting the run on every host"; { install && run; } || say "a host is not ready" ;;
  esac
  [[ $unreachable != "$before" ]] || unreachable=0
  [[ -z $verdict ]]
}

status() {
  request_state
  worker_states
}

[[ ${1:-} != --dry-run ]] || { dry_run=1; shift; }
action=${1:-}
(($# == 0)) || shift
if [[ ${1:-} == --dry-run ]]; then dry_run=1; shift; fi
if (($#)); then
  [[ $1 == -- ]] || die "unknown argument '$1'. Flags of the training go after --: $0 run -- --config.train.seed=1"
  shift
  flags=("$@")
fi
case $action in
  create | install | run | status | watch | fetch | delete) "$action" ;;
  resume) run ;;
  stop) workers stop ;;
  logs) tpus tpu-vm ssh "$NAME" --worker=0 "--command=sudo journalctl --unit=simcse --output=cat -n 200 --follow" ;;
  *) die "'$action': one of create, install, run, resume, watch, status, logs, stop, fetch, delete is needed" ;;
esac
