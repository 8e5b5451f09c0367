# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GRPO with the MedLoc-R1 curriculum on TN3K from Qwen2.5-VL-7B-Instruct.

medloc train --config=configs/grpo/tn3k_7b.py --workdir=runs/tn3k_7b \
    --config.model.init_from=checkpoints/Qwen2.5-VL-7B-Instruct

`--config=configs/grpo/tn3k_7b.py:medloc_as_written` is the paper taken literally. `medloc prepare
tn3k` writes the manifest (2,655 / 544 images by the paper's Table 5); the tokenizer comes from
`model.init_from`.

Hardware: 8 x H800 or 4 x H200. Memory: 138 GB (149 GB as written) over all devices for weights,
moments, gradients and the bf16 reference (computed from the sizes; activations and caches come on
top). Not run on a GPU by the authors.

To expect: the threshold moves after step 30 at the earliest; a threshold that stops at 0.60 is
what the mean IoU of its Table 1 allows. The paper reports A@0.8 27.02.
"""

from medloc_jax.config import paper_config


def get_config(variant: str = "medloc"):
    """Returns the experiment, of any method in medloc_jax/methods.py."""
    config = paper_config("grpo", variant)
    config.model.preset = "7b"
    config.data.manifest = "data/tn3k/manifest.jsonl"
    config.optim.total_steps = 1659  # 5 epochs of 2,655 images, 8 a step; num_steps cuts it short
    return config
