# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Table 6: step sizes and boundaries of the piecewise schedule, all four rows.

medloc sweep --config=configs/sweeps/table6.py --workdir=runs/table6 \
    --set=model.init_from=checkpoints/Qwen2.5-VL-3B-Instruct

Varies configs/grpo/ham10000_3b.py; --config.base=configs/grpo/heel_3b.py is another data set, and
--config.base=configs/ham10000_tiny.py with --set=model.init_from=runs/ham_sft and
--set=data.manifest=ham10000/manifest.jsonl one for a laptop.

Rows 1 and 2 are printed with a first boundary of 0.55 for HAM10000 and 0.50 for HEEL and TN3K: both
are here. The third step size is printed nowhere: 0.05 in every row.

Report, with row2_55, the default, less every other arm:

medloc report runs/table6 --reference=row2_55
"""

from medloc_jax.config import arm, default_sweep

ROWS = {  # (first and second step size, first boundary)
    "row1_55": (0.10, 0.05, 0.55),
    "row1_50": (0.10, 0.05, 0.50),
    "row2_55": (0.15, 0.10, 0.55),
    "row2_50": (0.15, 0.10, 0.50),
    "row3_60": (0.20, 0.15, 0.60),
    "row4_60": (0.25, 0.20, 0.60),
}


def get_config():
    """Returns the sweep."""
    sweep = default_sweep(
        [
            arm(
                name,
                changes={
                    "curriculum.step_sizes": (first, second, 0.05),
                    "curriculum.boundaries": (boundary, 0.75),
                },
            )
            for name, (first, second, boundary) in ROWS.items()
        ]
    )
    sweep.note = "A third step size of 0.05 in every row is ours: the paper lists two."
    sweep.reference = "row2_55"
    return sweep
