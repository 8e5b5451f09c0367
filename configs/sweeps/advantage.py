# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How advantages are normalised: the unbiased deviation, Eq. 1, or none.

medloc sweep --config=configs/sweeps/advantage.py --workdir=runs/advantage \
    --set=model.init_from=checkpoints/Qwen2.5-VL-3B-Instruct

Varies configs/grpo/ham10000_3b.py; --config.base=configs/grpo/heel_3b.py is another data set, and
--config.base=configs/ham10000_tiny.py with --set=model.init_from=runs/ham_sft and
--set=data.manifest=ham10000/manifest.jsonl one for a laptop.

Ours. Eq. 1 has the population deviation with epsilon inside the root; the code base that the paper
builds on has the unbiased one.

Report, with medloc_sample less every other arm:

medloc report runs/advantage --reference=medloc_sample
"""

from medloc_jax.config import arm, default_sweep


def get_config():
    """Returns the sweep."""
    sweep = default_sweep(
        [
            arm(f"{method}_{std}", method, {"rl.advantage_std": std})
            for method in ("medloc", "raw_iou", "fixed")
            for std in ("sample", "population_inside", "none")
        ]
    )
    sweep.note = "Ours: the paper has Eq. 1, its code base the unbiased deviation."
    sweep.reference = "medloc_sample"
    return sweep
