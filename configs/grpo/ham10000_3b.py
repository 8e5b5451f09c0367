# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GRPO with the MedLoc-R1 curriculum on HAM10000 from Qwen2.5-VL-3B-Instruct.

medloc train --config=configs/grpo/ham10000_3b.py --workdir=runs/ham10000_3b \
    --config.model.init_from=checkpoints/Qwen2.5-VL-3B-Instruct

`--config=configs/grpo/ham10000_3b.py:medloc_as_written` is the paper taken literally. `medloc
prepare ham10000` writes the manifest (8,012 / 2,003 images by the paper's Table 5); the tokenizer
comes from `model.init_from`.

Hardware: one H200 (141 GB) or the paper's 4 x H800 (80 GB). Memory: 57 GB (68 GB as written) over
all devices for weights, moments, gradients and the bf16 reference (computed from the sizes;
activations and caches come on top). Not run on a GPU by the authors.

To expect: the threshold moves after step 30 at the earliest; its mean IoU lets the threshold
reach 0.80 at best. The paper reports A@0.5 94.46 +- 0.89 (Table 1; other tables of the paper
print 93.96 to 94.96).
"""

from medloc_jax.config import paper_config


def get_config(variant: str = "medloc"):
    """Returns the experiment, of any method in medloc_jax/methods.py."""
    config = paper_config("grpo", variant)
    config.model.preset = "3b"
    config.data.manifest = "data/ham10000/manifest.jsonl"
    config.optim.total_steps = 5007  # 5 epochs of 8,012 images, 8 a step; num_steps cuts it short
    return config
