# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""MedGround-R1: what its released code does, and our reading of what its paper describes, in parts.

medloc sweep --config=configs/sweeps/medground.py --workdir=runs/medground \
    --set=model.init_from=checkpoints/Qwen2.5-VL-3B-Instruct \
    --set=rewards.semantic_scorer=MODULE:FUNCTION

The semantic term needs a scorer of yours (medloc_jax/rewards/semantic.py tells its arguments);
--only=medground_released,medground_described_spatial_only runs without one.

Report, with medground_released less every other arm:

medloc report runs/medground --reference=medground_released
"""

from medloc_jax.config import arm, default_sweep

METHODS = (
    "medground_released",
    "medground_described",
    "medground_described_spatial_only",
    "medground_described_semantic_only",
    "medground_described_no_chain",
)


def get_config():
    """Returns the sweep."""
    sweep = default_sweep([arm(name) for name in METHODS])
    sweep.note = "All but medground_released are our reading of an abstract."
    sweep.reference = "medground_released"
    return sweep
