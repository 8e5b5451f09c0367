# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Table 2: which of the three criteria are needed, in both window units.

medloc sweep --config=configs/sweeps/table2.py --workdir=runs/table2 \
    --set=model.init_from=checkpoints/Qwen2.5-VL-3B-Instruct

Varies configs/grpo/ham10000_3b.py; --config.base=configs/grpo/heel_3b.py is another data set, and
--config.base=configs/ham10000_tiny.py with --set=model.init_from=runs/ham_sft and
--set=data.manifest=ham10000/manifest.jsonl one for a laptop.

With `step` a window entry is the mean over a step's prompts, and the stability row cannot differ
from the full method; with `prompt` it is one prompt, as in the paper's formulas. The paper does not
say which it used.

Report, with all_step less every other arm (all_prompt for the other unit):

medloc report runs/table2 --reference=all_step
"""

from medloc_jax.config import arm, default_sweep

CRITERIA = {
    "all": ("reward", "margin", "stability"),
    "no_reward": ("margin", "stability"),
    "no_margin": ("reward", "stability"),
    "no_stability": ("reward", "margin"),
    "only_reward": ("reward",),
    "only_margin": ("margin",),
    "only_stability": ("stability",),
}


def get_config():
    """Returns the sweep."""
    sweep = default_sweep(
        [
            arm(
                f"{name}_{unit}",
                changes={"curriculum.criteria": criteria, "curriculum.window_unit": unit},
            )
            for unit in ("step", "prompt")
            for name, criteria in CRITERIA.items()
        ]
    )
    sweep.note = "Both window units are ours: the paper does not say which it used."
    sweep.reference = "all_step"
    return sweep
