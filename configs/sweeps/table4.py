# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Table 4: forms of the step size.

medloc sweep --config=configs/sweeps/table4.py --workdir=runs/table4 \
    --set=model.init_from=checkpoints/Qwen2.5-VL-3B-Instruct

Varies configs/grpo/ham10000_3b.py; --config.base=configs/grpo/heel_3b.py is another data set, and
--config.base=configs/ham10000_tiny.py with --set=model.init_from=runs/ham_sft and
--set=data.manifest=ham10000/manifest.jsonl one for a laptop.

Linear and cosine start at a threshold of 0.2. The value of the identical step size is ours: the
paper does not give it. P and S are the default's in every row.

Report, with piecewise less every other arm:

medloc report runs/table4 --reference=piecewise
"""

from medloc_jax.config import arm, default_sweep


def get_config():
    """Returns the sweep."""
    constant = {"curriculum.step_size": "constant", "curriculum.step_size_start": 0.10}
    sweep = default_sweep(
        [
            arm("piecewise"),
            arm("linear", "medloc_linear"),
            arm("cosine", "medloc_cosine"),
            arm("constant", changes=constant),
        ]
    )
    sweep.note = "The identical step size of 0.10 is ours: the paper does not give it."
    sweep.reference = "piecewise"
    return sweep
