# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GRPO with the MedLoc-R1 curriculum on TN3K from Qwen2.5-VL-3B-Instruct.

medloc train --config=configs/grpo/tn3k_3b.py --workdir=runs/tn3k_3b \
    --config.model.init_from=checkpoints/Qwen2.5-VL-3B-Instruct

`--config=configs/grpo/tn3k_3b.py:medloc_as_written` is the paper taken literally. `medloc prepare
tn3k` writes the manifest (2,655 / 544 images by the paper's Table 5); the tokenizer comes from
`model.init_from`.

Hardware: one H200 (141 GB) or the paper's 4 x H800 (80 GB). Memory: 57 GB (68 GB as written) over
all devices for weights, moments, gradients and the bf16 reference (computed from the sizes;
activations and caches come on top). Not run on a GPU by the authors.

To expect: the threshold moves after step 30 at the earliest; a threshold that stops at 0.60 is
what the mean IoU of its Table 1 allows. The paper reports A@0.8 29.60.
"""

from medloc_jax.config import paper_config


def get_config(variant: str = "medloc"):
    """Returns the experiment, of any method in medloc_jax/methods.py."""
    config = paper_config("grpo", variant)
    config.model.preset = "3b"
    config.data.manifest = "data/tn3k/manifest.jsonl"
    config.optim.total_steps = 1659  # 5 epochs of 2,655 images, 8 a step; num_steps cuts it short
    return config
