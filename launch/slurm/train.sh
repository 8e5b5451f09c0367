#!/usr/bin/env bash
# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# `medloc train` by srun in a batch job, which is queued again where a restart helps:
#
#   bash launch/slurm/train.sh --config=... --workdir=...
#
# It helps when a process was lost or hung (75), when they disagreed (77), when one was killed (137),
# and at the notice before the end of the time (143), which reaches the training alone. A SIGTERM to
# the batch script itself is somebody's scancel, or a preemption after which SLURM queues it again.
set -uo pipefail

max_restarts=${MAX_RESTARTS:-100}
told_to_end=
trap 'told_to_end=1' TERM

status=0
# Nobody is killed because another has ended: all save, and the watchdog tells who was lost.
# Between Slurm 22.05 and 23.11 srun does not know the batch job's CPUs a task.
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" medloc train "$@" || status=$?

case $status in
  75 | 77 | 137 | 143) ;;
  *) exit "$status" ;;
esac
if [[ -n $told_to_end ]]; then
  echo "medloc: ended from outside (status $status)"
elif ((${SLURM_RESTART_COUNT:-0} >= max_restarts)); then
  echo "medloc: status $status after $max_restarts restarts: not queued again" >&2
else
  echo "medloc: status $status: queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
