#!/usr/bin/env bash
# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# What `make demo` does after it has installed: a tiny Qwen2.5-VL learns the answer format and where
# to look by SFT on easy pictures with sloppy boxes, then to put tight boxes by GRPO with the
# curriculum, and is evaluated before and after. `make demo SEED=43` draws another run.
set -euo pipefail
cd "$(dirname "$0")/.."

seed=${SEED:-42}
runs=runs/demo
if [[ $seed != 42 ]]; then runs=runs/demo-$seed; fi

medloc train --config=configs/demo_sft.py --workdir="$runs/sft" --config.seed="$seed"
medloc train --config=configs/demo.py --workdir="$runs/grpo" --config.seed="$seed" \
  --config.model.init_from="$runs/sft"
medloc report "$runs/grpo"
python launch/demo_summary.py "$runs"
