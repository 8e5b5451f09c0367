#!/usr/bin/env bash
# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# Writes launch/PLAN.md: what the published sizes take on the machines that they are meant for.
#
#   bash launch/plan.sh [FOLDER]
#
# Needs no accelerator, but their compilers: Python environments with medloc_jax[cuda] and with
# medloc_jax[tpu], named by CUDA_PYTHON and TPU_PYTHON (default: python for both). Plans that FOLDER
# (default: runs/plan) holds already are not made again.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/plan}
mkdir -p "$folder"

plan() { # name, python, then flags
  local name=$1 python=$2 code=0
  shift 2
  [ -s "$folder/$name.json" ] && return
  "$python" -m medloc_jax plan "$@" --json >"$folder/$name.partial" || code=$?
  # 1: it does not fit, which is an answer; or an error, which is none.
  [ "$code" -le 1 ] && [ -s "$folder/$name.partial" ] || exit "$code"
  mv "$folder/$name.partial" "$folder/$name.json"
}
gpu=${CUDA_PYTHON:-python}
tpu=${TPU_PYTHON:-python}
plan 1-3b-h200 "$gpu" --config=configs/grpo/ham10000_3b.py --device_kind=h200 --devices=1
plan 2-3b-h800 "$gpu" --config=configs/grpo/ham10000_3b.py --device_kind=h800 --devices=4
plan 3-7b-h800 "$gpu" --config=configs/grpo/ham10000_7b.py --device_kind=h800 --devices=8
plan 4-32b-h800 "$gpu" --config=configs/grpo/ham10000_32b.py --device_kind=h800 --devices=32
plan 5-32b-v5p "$tpu" --config=configs/grpo/ham10000_32b.py --device_kind=v5p:4x4x4
plan 6-72b-v5p "$tpu" --config=configs/grpo/ham10000_72b.py --device_kind=v5p:4x8x8
"$gpu" launch/plan_table.py "$folder"/*.json
