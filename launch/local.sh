#!/usr/bin/env bash
# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs `medloc train`, or another command, as N processes of one distributed run on this machine.
#
#   launch/local.sh 2 --config=configs/demo.py --workdir=runs/two
#   launch/local.sh 2 medloc evaluate --workdir=runs/two
#
# Output lines carry the number of their process. When one process fails the others are ended (by
# SIGTERM, and by SIGKILL after GRACE_SECONDS=60), and its exit status is the script's. On CPU, XLA_FLAGS=--xla_force_host_platform_device_count=4 gives
# every process four devices.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 NUM_PROCESSES --FLAG... | COMMAND [ARGUMENT...]" >&2
  exit 2
fi
num_processes=$1
shift
if [[ $1 == --* ]]; then
  set -- "${PYTHON:-python3}" -m medloc_jax train "$@"
fi

port=$("${PYTHON:-python3}" -c '
import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])')

pipes=$(mktemp -d)
pids=()
printers=()

end_all() {
  local pid
  # Every process leads a group of its own (set -m below), so that its loader workers go with it.
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill -s "$1" -- "-$pid" 2>/dev/null || true
  done
}

clean_up() {
  # A process that is ended before it has become the command is still this script, traps and all.
  [[ ${BASHPID:-$$} == "$$" ]] || return 0
  trap '' INT TERM
  end_all TERM
  # Time to end a step and save, after SIGTERM.
  for _ in $(seq $((${GRACE_SECONDS:-60} * 5))); do
    any_left || break
    sleep 0.2
  done
  end_all KILL
  # A process that was ended before it opened its pipe leaves a printer that waits for a writer, or
  # that will: again and again, for on a busy machine a printer may come later than this line.
  while printers_left; do
    for pipe in "$pipes"/*; do
      [[ ! -p $pipe ]] || : <>"$pipe"
    done
    sleep 0.02
  done
  wait ${printers[@]+"${printers[@]}"} 2>/dev/null || true
  rm -rf "$pipes"
}

any_left() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill -0 -- "-$pid" 2>/dev/null && return 0
  done
  return 1
}

printers_left() {
  local pid
  for pid in ${printers[@]+"${printers[@]}"}; do
    kill -0 "$pid" 2>/dev/null && return 0
  done
  return 1
}

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

print_lines() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

for ((i = 0; i < num_processes; i++)); do
  mkfifo "$pipes/$i"
  print_lines "$i" <"$pipes/$i" &
  printers+=($!)
  set -m
  MEDLOC_COORDINATOR="127.0.0.1:$port" MEDLOC_NUM_PROCESSES=$num_processes MEDLOC_PROCESS_ID=$i \
    "$@" >"$pipes/$i" 2>&1 </dev/null &
  pids+=($!)
  set +m
done

# Polling instead of `wait -n`, which the bash of macOS does not have.
running=("${pids[@]}")
while [[ ${#running[@]} -gt 0 ]]; do
  still=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      still+=("$pid")
      continue
    fi
    status=0
    wait "$pid" || status=$?
    if [[ $status -ne 0 ]]; then
      echo "$0: a process ended with status $status; ending the others" >&2
      exit "$status"
    fi
  done
  running=(${still[@]+"${still[@]}"})
  [[ ${#running[@]} -eq 0 ]] || sleep 0.2
done
