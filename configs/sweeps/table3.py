# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Table 3: the piecewise schedule against one step size and one regime throughout.

medloc sweep --config=configs/sweeps/table3.py --workdir=runs/table3 \
    --set=model.init_from=checkpoints/Qwen2.5-VL-3B-Instruct

Varies configs/grpo/ham10000_3b.py; --config.base=configs/grpo/heel_3b.py is another data set, and
--config.base=configs/ham10000_tiny.py with --set=model.init_from=runs/ham_sft and
--set=data.manifest=ham10000/manifest.jsonl one for a laptop.

The fixed strategies are Table 3's (step size; P, S).

Report, with piecewise less every other arm:

medloc report runs/table3 --reference=piecewise
"""

from medloc_jax.config import arm, default_sweep

STRATEGIES = {  # (step size, P, S), with the default's start, target and margin
    "conservative": (0.05, 0.80, 0.15),
    "moderate": (0.10, 0.70, 0.25),
    "aggressive": (0.15, 0.60, 0.40),
}


def get_config():
    """Returns the sweep."""
    arms = [arm("piecewise")]
    for name, (step_size, min_reward, max_std) in STRATEGIES.items():
        changes = {
            "curriculum.step_size": "constant",
            "curriculum.step_size_start": step_size,
            "curriculum.regimes": ((1.01, min_reward, max_std),),
        }
        arms.append(arm(name, changes=changes))
    sweep = default_sweep(arms)
    sweep.reference = "piecewise"
    return sweep
