#!/usr/bin/env bash
# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# The README's table on real dermoscopy: one warm start, MedLoc-R1's curriculum with three seeds, and
# each baseline once, all under the same budget.
#
#   bash launch/ham10000.sh MANIFEST [RUNS]
set -euo pipefail
cd "$(dirname "$0")/.."

manifest=${1:?the path of a manifest.jsonl of HAM10000}
runs=${2:-runs/ham}

medloc train --config=configs/ham10000_tiny_sft.py --config.data.manifest="$manifest" \
  --workdir="$runs/sft"

grpo() { # name, then overrides
  local name=$1
  shift
  medloc train --config=configs/ham10000_tiny.py --config.data.manifest="$manifest" \
    --config.model.init_from="$runs/sft" --workdir="$runs/$name" "$@"
}
for seed in 42 43 44; do
  grpo "medloc-$seed" --config.seed="$seed"
done
for schedule in fixed raw_iou v_triune; do
  grpo "$schedule-42" --config.curriculum.schedule="$schedule"
done
medloc report "$runs"/*-4? --out="$runs/report"
