#!/usr/bin/env bash
# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# medloc train on all workers of a Cloud TPU VM, or of a pod slice of them.
#
#   launch/tpu_vm/run.sh NAME ZONE install          this commit, into a fresh environment (Python
#                                                   3.12 by uv: the machines' own is too old)
#   launch/tpu_vm/run.sh NAME ZONE train FLAG...    as `medloc train FLAG...`; also continues
#   launch/tpu_vm/run.sh NAME ZONE stop             SIGTERM: saves and ends
#   launch/tpu_vm/run.sh NAME ZONE log              what the first worker says
#
# The training outlives the connection: when that is lost, `log` shows how it goes on. The workdir
# must be one that all workers see: gs://... The project is the one that gcloud is set to.
set -euo pipefail

if [[ $# -lt 3 ]]; then
  sed -n '/^#   launch/s/^# *//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2 verb=$3
shift 3
cd "$(dirname "$0")/../.."

on() { # workers, then one line of shell
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$1" --command="$2"
}

# What runs on the workers expands there. Words of ours are quoted by %q.
# shellcheck disable=SC2016
install='set -e
rm -rf ~/medloc_jax && mkdir ~/medloc_jax && tar -xzf ~/medloc_jax.tar.gz -C ~/medloc_jax
cd ~/medloc_jax && python3 -m pip install --user -q uv
~/.local/bin/uv venv -q --python 3.12 .venv
~/.local/bin/uv pip install -q --python .venv -e ".[tpu,cloud]"
.venv/bin/medloc --help > /dev/null && echo "installed on $(hostname)"'
# shellcheck disable=SC2016
stop='kill -TERM "$(cat ~/medloc.pid)"'

case $verb in
  install)
    archive=$(mktemp -d)/medloc_jax.tar.gz
    git archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$name:medloc_jax.tar.gz" --zone="$zone" --worker=all
    on all "$install"
    ;;
  train)
    [[ $# -gt 0 ]] || { echo "$0: train needs the flags of medloc train" >&2; exit 2; }
    flags=$(printf ' %q' "$@")
    # nohup: a lost connection must not end it. `wait` gives medloc's own exit code.
    on all "! kill -0 \$(cat ~/medloc.pid 2> /dev/null) 2> /dev/null || {
  echo \"\$(hostname): a training goes on already: stop it first\" >&2; exit 1; }
cd ~/medloc_jax && {
  MEDLOC_COORDINATOR=auto nohup .venv/bin/medloc train$flags >> ~/medloc.log 2>&1 & echo \$! > ~/medloc.pid
  tail --pid=\$! -n 0 -F ~/medloc.log 2> /dev/null & wait \$(cat ~/medloc.pid); }"
    ;;
  stop) on all "$stop" ;;
  log) on 0 'tail -n 100 -F ~/medloc.log' ;;
  *)
    echo "$0: no such verb: $verb" >&2
    exit 2
    ;;
esac
