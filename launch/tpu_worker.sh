#!/usr/bin/env bash
# Set up and run the training on one host of a TPU slice; tpu_pod.sh sends this tree to every host and calls it there.
#
#   bash launch/tpu_worker.sh install              an interpreter and this tree's packages; with MOUNT also gcsfuse
#   bash launch/tpu_worker.sh run FLAGS...         (re)start the training as a service; with MOUNT, mount BUCKET first
#   bash launch/tpu_worker.sh stop                 SIGTERM: all hosts save the same step
#   bash launch/tpu_worker.sh status               one line: worker HOST absent|running|done|mend|failed
#   DRY_RUN=1                                      print the commands, run nothing
#
# Variables: BUCKET, MOUNT, PYTHON_VERSION (see tpu_pod.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SERVICE=simcse # tpu_pod.sh reads its journal
PYTHON_VERSION=${PYTHON_VERSION:-3.12}
DRY_RUN=${DRY_RUN:-}

do_() {
  if [[ -n $DRY_RUN ]]; then printf '%q ' "$@"; echo; else "$@"; fi
}

install_packages() {
  do_ python3 -m pip install --user --quiet uv
  do_ python3 -m uv venv --clear --python "$PYTHON_VERSION" .venv
  do_ python3 -m uv pip install --quiet --python .venv/bin/python '.[tpu,gcs]'
}

install_gcsfuse() {
  if [[ -z $DRY_RUN ]] && command -v gcsfuse >/dev/null; then return; fi
  local site=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc release=jammy
  [[ -n $DRY_RUN ]] || release=$(lsb_release -cs)
  do_ sudo curl --fail --silent --show-error --output "$key" "$site/doc/apt-key.gpg"
  do_ sudo bash -c "echo 'deb [signed-by=$key] $site gcsfuse-$release main' >/etc/apt/sources.list.d/gcsfuse.list"
  # A new machine holds the lock for minutes while it installs its updates.
  do_ sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  do_ sudo apt-get -qq -o DPkg::Lock::Timeout=600 install --yes gcsfuse
}

mount_bucket() {
  if [[ -z $DRY_RUN ]] && mountpoint --quiet "$MOUNT"; then return; fi
  do_ sudo mkdir -p "$MOUNT"
  do_ sudo chown "$(id -u):$(id -g)" "$MOUNT"
  # No cached metadata: after a restart each host must see the checkpoint that another has just renamed.
  do_ gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$BUCKET" "$MOUNT"
}

run_service() {
  if [[ -n ${MOUNT:-} ]]; then : "${BUCKET:?the bucket to mount is missing}"; mount_bucket; fi
  # Hosts of one slice may become ready many minutes apart.
  local training=(.venv/bin/python -m simcse_jax.train --join_timeout_s=1800 "$@")
  # In a file, because systemd would interpret `$` and `%` in an argument.
  if [[ -n $DRY_RUN ]]; then
    printf '# service.sh: exec'
    printf ' %q' "${training[@]}"
    echo
  else
    { printf 'exec'; printf ' %q' "${training[@]}"; echo; } >service.sh
  fi
  stop_service
  do_ sudo systemctl reset-failed "$SERVICE" 2>/dev/null || true
  # on-failure: restart after a crash and after 143 (a save on SIGTERM), not after 0 and 2. The TPU's driver locks
  # memory, and a service does not get the limits of a login.
  do_ sudo systemd-run --quiet --unit="$SERVICE" --uid="$(id -u)" --working-directory="$PWD" --remain-after-exit \
    --property=Restart=on-failure --property=RestartPreventExitStatus=2 --property=RestartSec=10 \
    --property=StartLimitIntervalSec=3600 --property=StartLimitBurst=10 \
    --property=KillMode=mixed --property=TimeoutStopSec=180 \
    --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576 \
    --setenv=PYTHONUNBUFFERED=1 /bin/bash "$PWD/service.sh"
}

stop_service() {
  do_ sudo systemctl stop "$SERVICE" 2>/dev/null || true
}

status() {
  if [[ -n $DRY_RUN ]]; then do_ systemctl show "$SERVICE"; return; fi
  local load='' active='' sub='' code='' name value state
  while IFS='=' read -r name value; do
    case $name in
      LoadState) load=$value ;;
      ActiveState) active=$value ;;
      SubState) sub=$value ;;
      ExecMainStatus) code=$value ;;
    esac
  done < <(systemctl show "$SERVICE")
  case $load/$active/$sub/$code in
    not-found/* | */inactive/*) state=absent ;;
    */active/exited/*) state='done' ;;
    */failed/*/2) state=mend ;;
    */failed/*) state=failed ;;
    *) state=running ;;
  esac
  echo "worker $(hostname) $state"
}

case ${1:-} in
  install) stop_service; install_packages; if [[ -n ${MOUNT:-} ]]; then install_gcsfuse; fi ;;
  run) shift; run_service "$@" ;;
  stop) stop_service ;;
  status) status ;;
  *) echo "launch: '${1:-}': install, run, stop or status is needed" >&2; exit 2 ;;
esac
