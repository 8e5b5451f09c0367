# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Table 7, right: the group size, for the method and the baselines with a group.

medloc sweep --config=configs/sweeps/table7.py --workdir=runs/table7 \
    --set=model.init_from=checkpoints/Qwen2.5-VL-3B-Instruct

Varies configs/grpo/ham10000_3b.py; --config.base=configs/grpo/heel_3b.py is another data set, and
--config.base=configs/ham10000_tiny.py with --set=model.init_from=runs/ham_sft and
--set=data.manifest=ham10000/manifest.jsonl one for a laptop.

Group sizes 4, 6, 8 and 10. A larger group is more completions a step: the budget is equal in steps
and images, not in time. Table 7, left, is configs/sweeps/table1.py.

Report, with medloc_g8 less every other arm:

medloc report runs/table7 --allow=budget --reference=medloc_g8
"""

from medloc_jax.config import arm, default_sweep

METHODS = ("medloc", "fixed", "raw_iou")
GROUP_SIZES = (4, 6, 8, 10)


def get_config():
    """Returns the sweep."""
    sweep = default_sweep(
        [
            arm(f"{method}_g{size}", method, {"rl.group_size": size})
            for method in METHODS
            for size in GROUP_SIZES
        ]
    )
    sweep.note = "The baselines at each group size are ours: the paper has its own method alone."
    sweep.allow = ("budget",)  # the group size is what is compared
    sweep.reference = "medloc_g8"
    return sweep
