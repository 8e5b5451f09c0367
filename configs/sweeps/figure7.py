# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Figure 7: the window's length, and the share of it that is dropped after an update.

medloc sweep --config=configs/sweeps/figure7.py --workdir=runs/figure7 \
    --set=model.init_from=checkpoints/Qwen2.5-VL-3B-Instruct

Varies configs/grpo/ham10000_3b.py; --config.base=configs/grpo/heel_3b.py is another data set, and
--config.base=configs/ham10000_tiny.py with --set=model.init_from=runs/ham_sft and
--set=data.manifest=ham10000/manifest.jsonl one for a laptop.

The window of 30 with half of it dropped is the default, `window_030`, and stands in both halves of
the figure. The paper compares half with "a full or quarter replacement": none is ours.

Report, with window_030, the default, less every other arm:

medloc report runs/figure7 --reference=window_030
"""

from medloc_jax.config import arm, default_sweep

WINDOWS = (5, 10, 20, 30, 60, 120)
REFRESH = {"none": 0.0, "quarter": 0.25, "full": 1.0}  # half is the default


def get_config():
    """Returns the sweep."""
    sweep = default_sweep(
        [
            *(arm(f"window_{n:03d}", changes={"curriculum.window": n}) for n in WINDOWS),
            *(
                arm(f"refresh_{name}", changes={"curriculum.refresh_fraction": share})
                for name, share in REFRESH.items()
            ),
        ]
    )
    sweep.note = "The grid is ours: the paper only draws it."
    sweep.reference = "window_030"
    return sweep
