# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The vision tower, frozen or trained.

medloc sweep --config=configs/sweeps/vision_tower.py --workdir=runs/vision_tower \
    --set=model.init_from=checkpoints/Qwen2.5-VL-3B-Instruct

Varies configs/grpo/ham10000_3b.py; --config.base=configs/grpo/heel_3b.py is another data set, and
--config.base=configs/ham10000_tiny.py with --set=model.init_from=runs/ham_sft and
--set=data.manifest=ham10000/manifest.jsonl one for a laptop.

The paper does not say which it did; V-Triune reports a collapse where it is trained. Ours.

Report, with medloc_frozen less every other arm:

medloc report runs/vision_tower --reference=medloc_frozen
"""

from medloc_jax.config import arm, default_sweep


def get_config():
    """Returns the sweep."""
    sweep = default_sweep(
        [
            arm(f"{method}_{name}", method, {"model.freeze_vision": frozen})
            for method in ("medloc", "fixed")
            for name, frozen in (("frozen", True), ("trained", False))
        ]
    )
    sweep.note = "Ours: the paper does not say whether it trains the tower."
    sweep.reference = "medloc_frozen"
    return sweep
