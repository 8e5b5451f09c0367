# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Figure 6: one step size throughout, 0.05 to 0.4.

medloc sweep --config=configs/sweeps/figure6.py --workdir=runs/figure6 \
    --set=model.init_from=checkpoints/Qwen2.5-VL-3B-Instruct

Varies configs/grpo/ham10000_3b.py; --config.base=configs/grpo/heel_3b.py is another data set, and
--config.base=configs/ham10000_tiny.py with --set=model.init_from=runs/ham_sft and
--set=data.manifest=ham10000/manifest.jsonl one for a laptop.

The paper draws these without a table: the grid is ours.

Report, with step_15 (the default's first step) less every other arm:

medloc report runs/figure6 --reference=step_15
"""

from medloc_jax.config import arm, default_sweep

STEP_SIZES = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40)


def get_config():
    """Returns the sweep."""
    sweep = default_sweep(
        [
            arm(
                f"step_{round(100 * size):02d}",
                changes={
                    "curriculum.step_size": "constant",
                    "curriculum.step_size_start": size,
                },
            )
            for size in STEP_SIZES
        ]
    )
    sweep.note = "The grid is ours: the paper only draws it."
    sweep.reference = "step_15"
    return sweep
