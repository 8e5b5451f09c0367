# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SFT, the baseline of the same budget: answers only, on HAM10000 from Qwen2.5-VL-7B-Instruct.

medloc train --config=configs/sft/ham10000_7b.py --workdir=runs/ham10000_7b_sft \
    --config.model.init_from=checkpoints/Qwen2.5-VL-7B-Instruct

`medloc prepare ham10000` writes the manifest (8,012 / 2,003 images by the paper's Table 5); the
tokenizer comes from `model.init_from`.

Hardware: 8 x H800 or 4 x H200. Memory: 123 GB over all devices for weights, moments, gradients
(computed from the sizes; activations and caches come on top). Not run on a GPU by the authors.

To expect: a loss that falls from the first steps; the learning rate of 1e-6 is the paper's. A
tenth of train is cut off as val; the rest, about 7,210 images, is seen 1.1 times in 1,000 steps
of 8.
"""

from medloc_jax.config import paper_config


def get_config():
    """Returns the experiment."""
    config = paper_config("sft")
    config.model.preset = "7b"
    config.data.manifest = "data/ham10000/manifest.jsonl"
    config.optim.total_steps = 5007  # 5 epochs of 8,012 images, 8 a step; num_steps cuts it short
    return config
