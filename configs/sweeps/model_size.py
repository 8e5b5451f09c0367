# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The model's size: 3B, 7B and 32B, the method and fixed 0.5.

medloc sweep --config=configs/sweeps/model_size.py --workdir=runs/model_size --print

Each size has an experiment file and weights of its own, so --config.base changes nothing here: the
weights are expected in checkpoints/Qwen2.5-VL-<size>-Instruct. Run each line on machines of its
size; the experiment files tell which.

Report, with medloc_3b less every other arm:

medloc report runs/model_size --allow=budget --reference=medloc_3b
"""

from medloc_jax.config import arm, default_sweep

SIZES = ("3b", "7b", "32b")
METHODS = ("medloc", "fixed")


def get_config(data: str = "ham10000"):
    """Returns the sweep.

    Args:
        data: ham10000, heel or tn3k.
    """
    sweep = default_sweep(
        [
            arm(
                f"{method}_{size}",
                method,
                {"model.init_from": f"checkpoints/Qwen2.5-VL-{size.upper()}-Instruct"},
                base=f"configs/grpo/{data}_{size}.py",
            )
            for method in METHODS
            for size in SIZES
        ]
    )
    sweep.note = "Fixed 0.5 at every size is ours."
    sweep.allow = ("budget",)  # each size starts from its own weights
    sweep.reference = "medloc_3b"
    return sweep
