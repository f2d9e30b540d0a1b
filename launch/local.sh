#!/usr/bin/env bash
# Start N processes of one run on this machine, as if each were a host; watch them, and restart all after a crash.
# (One long file, so that it can be copied to a machine alone.)
#
#   launch/local.sh --processes=2 --platform=cpu --devices_per_process=4 -- --config=configs/demo.py --workdir=runs/demo
#
# Everything after `--` goes to `python -m simcse_jax.train`. Run it in the clone's root. The output of process 0 is
# printed as it is, lines of the others as `[process 2] ...`.
#
#   --processes=N              number of processes. Default: 2
#   --platform=cpu|gpu         default: gpu where nvidia-smi lists a GPU, else cpu
#   --devices_per_process=D    cpu: virtual devices of each process (default 1). gpu: GPUs of each (default: all,
#                              evenly; those of $CUDA_VISIBLE_DEVICES where it is set)
#   --port=auto|PORT           port on which process 0 listens for the others. auto: a free one, new at each start
#   --restarts=R               number of restarts after crashes. Default: 3
#   --dry-run                  print the commands, run nothing
#   $KILL_S, $SAVE_S           seconds from SIGTERM to SIGKILL when others are stopped (default 10), and from the first
#                              process that ends after a save to the last (default 60)
#   $PYTHON                    the interpreter. Default: .venv/bin/python of this clone, else python
#
# Exit status: 0: the run is complete; 2: something needs mending (never restarted); 143, 130, 129: SIGTERM, SIGINT or
# SIGHUP to this script, and all processes have saved; else that of the process that died first in the last attempt.
# (SIGHUP is passed on to the processes as SIGTERM, on which they save.)
set -euo pipefail
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 501)); then
  echo "launch: bash $BASH_VERSION is too old; 5.1 or newer is needed (wait -n -p)" >&2
  exit 2
fi

POLL_S=2             # check this often, in case `wait` has missed the end of a process
KILL_S=${KILL_S:-10} # a process that waits in a collective for a dead one ignores SIGTERM
SAVE_S=${SAVE_S:-60} # all save the same step, so they end together

say() { echo "launch: $*" >&2; }
die() { say "$*"; exit 2; }
is_count() { [[ $1 =~ ^[1-9][0-9]{0,3}$ ]]; }

read_flags() {
  processes=2 platform='' per_process='' port=auto restarts=3 dry_run='' arguments=()
  while (($#)); do
    case $1 in
      --processes=*) processes=${1#*=} ;;
      --platform=*) platform=${1#*=} ;;
      --devices_per_process=*) per_process=${1#*=} ;;
      --port=*) port=${1#*=} ;;
      --restarts=*) restarts=${1#*=} ;;
      --dry-run) dry_run=1 ;;
      --help | -h) awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; exit 0 ;;
      --) shift; arguments=("$@"); break ;;
      *) die "unknown argument '$1'. Flags of the training go after --: $0 --processes=2 -- --config=configs/demo.py" ;;
    esac
    shift
  done
  is_count "$processes" || die "--processes=$processes: a whole number from 1 to 9999 is needed, such as 2"
  [[ -z $per_process ]] || is_count "$per_process" ||
    die "--devices_per_process=$per_process: a whole number from 1 to 9999 is needed, such as 4"
  [[ $restarts =~ ^[0-9]{1,4}$ ]] || die "--restarts=$restarts: a whole number from 0 to 9999 is needed, such as 3"
  [[ $port == auto ]] || is_port "$port" || die "--port=$port: 'auto' or a number from 1024 to 65535 is needed"
  [[ $platform =~ ^(cpu|gpu|)$ ]] || die "--platform=$platform: cpu or gpu is needed"
}

is_port() { [[ $1 =~ ^[1-9][0-9]{3,4}$ ]] && (($1 >= 1024 && $1 <= 65535)); }

find_python() {
  local clone
  clone=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  python=${PYTHON:-}
  [[ -n $python ]] || { [[ ! -x $clone/.venv/bin/python ]] || python=$clone/.venv/bin/python; }
  [[ -n $python ]] || python=python
  command -v "$python" >/dev/null || die "there is no '$python' to run. Make .venv (make demo) or set PYTHON=..."
}

# Set platform, per_process and, on gpu, gpus: the GPUs to divide among processes.
find_devices() {
  local listed=${CUDA_VISIBLE_DEVICES:-}
  [[ $listed != -1 ]] || listed='' # like the empty value: no GPU
  if [[ -z ${CUDA_VISIBLE_DEVICES+set} && $platform != cpu ]] && command -v nvidia-smi >/dev/null; then
    listed=$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd, -) || listed=''
  fi
  gpus=()
  [[ -z $listed ]] || IFS=, read -ra gpus <<<"$listed"
  [[ -n $platform ]] || { ((${#gpus[@]})) && platform=gpu || platform=cpu; }
  if [[ $platform == cpu ]]; then
    per_process=${per_process:-1}
    return
  fi
  if [[ -z $per_process ]]; then
    per_process=$((${#gpus[@]} / processes))
    ((${#gpus[@]} > 0 && per_process * processes == ${#gpus[@]})) ||
      die "--processes=$processes: ${#gpus[@]} GPUs cannot be split evenly." \
        "Take another number, --devices_per_process=D or --platform=cpu"
  fi
  ((per_process * processes <= ${#gpus[@]})) ||
    die "--processes=$processes --devices_per_process=$per_process: there are ${#gpus[@]} GPUs." \
      "Take fewer, or --platform=cpu"
}

# Print a free port, below those that systems assign by themselves.
free_port() {
  local tried candidate
  for tried in {1..100}; do
    candidate=$((20000 + SRANDOM % 12000))
    (: <>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null || { echo "$candidate"; return; }
  done
  die "no free port found in $tried tries; name one: --port=23456"
}

# Set command to the one that starts process $1, with its coordinator on port $2.
make_command() {
  local IFS=, xla="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$per_process"
  xla+=" --xla_cpu_collective_call_terminate_timeout_seconds=600" # many devices on few cores starve a collective
  command=(env)
  if [[ $platform == cpu ]]; then
    command+=(JAX_PLATFORMS=cpu "XLA_FLAGS=${xla# }")
  else
    command+=(JAX_PLATFORMS=cuda "CUDA_VISIBLE_DEVICES=${gpus[*]:$1*per_process:per_process}")
  fi
  command+=("$python" -m simcse_jax.train "${arguments[@]}")
  command+=("--coordinator=127.0.0.1:$2" "--num_processes=$processes" "--process_id=$1")
}

start_all() {
  local i out address=$port
  [[ $port != auto ]] || address=$(free_port)
  pids=() alive=() printers=() ranks=() results=()
  for ((i = 0; i < processes && ${#stopped_by} == 0; i++)); do
    make_command "$i" "$address"
    if ((i == 0)); then
      "${command[@]}" </dev/null &
    else
      # Ctrl-C reaches these too, but must not cut off what processes print while they save.
      exec {out}> >(trap '' INT TERM HUP; exec sed -u "s/^/[process $i] /")
      printers+=($!)
      "${command[@]}" </dev/null >&"$out" 2>&1 {out}>&- &
      exec {out}>&-
    fi
    pids+=($!) alive+=($!) ranks[$!]=$i
  done
}

# Wait until a process ends, a signal comes or $1 seconds have passed; note which have ended.
await_one() {
  local timer ended='' status=0
  sleep "$1" &
  timer=$!
  wait -n -p ended "${alive[@]}" "$timer" 2>/dev/null || status=$?
  if [[ ${ended:-$timer} != "$timer" ]]; then note "$ended" "$status"; fi
  if [[ ${ended:-} != "$timer" ]]; then
    kill "$timer" 2>/dev/null || true
    wait "$timer" 2>/dev/null || true
  fi
  note_dead
}

note() {
  local pid left=() rank=${ranks[$1]}
  results[rank]=$2
  for pid in "${alive[@]}"; do [[ $pid == "$1" ]] || left+=("$pid"); done
  alive=("${left[@]}")
}

# Note those that ended together with the one that woke us, or that `wait` has missed.
note_dead() {
  local pid status
  for pid in "${alive[@]}"; do
    kill -0 "$pid" 2>/dev/null && continue
    status=0
    wait "$pid" 2>/dev/null || status=$?
    note "$pid" "$status"
  done
}

# Wait until all have ended or $1 seconds have passed; with a second argument, also until one has crashed.
await_all() {
  local deadline=$((SECONDS + $1))
  while ((${#alive[@]} && SECONDS < deadline)); do
    await_one $((deadline - SECONDS < POLL_S ? deadline - SECONDS : POLL_S))
    if [[ -n ${2:-} ]] && any_crash; then return; fi
  done
}

signal_all() { # each process leads a group that includes its helpers
  local pid
  for pid in "${alive[@]}"; do kill -s "$1" -- "$2$pid" 2>/dev/null || true; done
}

end_others() {
  ((${#alive[@]})) || return 0
  signal_all TERM ''
  await_all "$KILL_S"
  signal_all KILL -
  await_all "$KILL_S"
}

has_saved() { [[ $1 == 143 || $1 == 130 ]]; }
any_crash() {
  local status
  for status in "${results[@]}"; do [[ $status == 0 ]] || has_saved "$status" || return 0; done
  return 1
}

# Set culprit to the process that ended first; of several at once, to the one that was not ended by another's death.
# 134: JAX aborts a process whose peer is gone.
find_culprit() {
  local i worst=-1 weight
  culprit=0
  for i in "${!results[@]}"; do
    case ${results[i]} in
      0) weight=0 ;;
      130 | 143) weight=1 ;;
      134) weight=2 ;;
      1) weight=3 ;;
      *) weight=4 ;;
    esac
    ((weight <= worst)) || { worst=$weight culprit=$i; }
  done
}

describe() { # how process $1 ended
  local status=${results[$1]} how
  if ((status > 128)) && how=$(kill -l "$((status - 128))" 2>/dev/null); then
    how="was killed by SIG$how"
  else
    how="ended with status $status"
  fi
  echo "process $1 (pid ${pids[$1]}) $how"
}

on_signal() {
  stopped_by=$1
  say "SIG$1: all processes save and end"
  signal_all "${1/HUP/TERM}" ''
}

# Run all processes once; set outcome to the status that they ended with.
attempt() {
  start_all
  while ((${#alive[@]})); do
    await_one "$POLL_S"
    find_culprit
    outcome=${results[culprit]:-0}
    [[ $outcome != 0 ]] || continue
    if has_saved "$outcome"; then # they save the same step and end together
      await_all "$SAVE_S" until_crash
      find_culprit
      outcome=${results[culprit]}
    fi
    if ! has_saved "$outcome"; then
      say "$(describe "$culprit")${alive[*]:+; stopping the others}"
    elif ((${#alive[@]})); then
      say "process ${ranks[${alive[0]}]} (pid ${alive[0]}) still runs $SAVE_S s after another has saved; ending it"
    fi
    end_others
  done
  await_printers
}

# Wait for their last lines, but at most 2 s: a helper that a killed process left behind may hold one open.
await_printers() {
  local printer tries
  for printer in "${printers[@]}"; do
    for ((tries = 0; tries < 40; tries++)); do
      kill -0 "$printer" 2>/dev/null || break
      sleep 0.05
    done
  done
}

main() {
  read_flags "$@"
  find_python
  find_devices
  if [[ -n $dry_run ]]; then
    local i address=$port
    [[ $port != auto ]] || address=$(free_port)
    for ((i = 0; i < processes; i++)); do
      make_command "$i" "$address"
      printf '%q ' "${command[@]}"
      echo
    done
    return
  fi
  say "$processes processes on $platform, $per_process devices each"
  set -m # a group each, so Ctrl-C reaches this script alone, which passes it on once
  stopped_by='' outcome=1
  trap 'on_signal TERM' TERM
  trap 'on_signal INT' INT
  trap 'on_signal HUP' HUP
  local crashes=0
  while :; do
    attempt
    if [[ -n $stopped_by ]]; then
      ! has_saved "$outcome" || exit $((128 + $(kill -l "$stopped_by")))
      exit "$outcome"
    fi
    case $outcome in
      0 | 2) exit "$outcome" ;;
      143 | 130) say "all were stopped by SIG$(kill -l $((outcome - 128))) after saving; starting again" ;;
      *)
        if ((crashes == restarts)); then say "$restarts restarts are used up"; exit "$outcome"; fi
        say "restart $((++crashes)) of $restarts"
        ;;
    esac
  done
}

main "$@"
