# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SFT, the baseline of the same budget: answers only, on HAM10000 from Qwen2.5-VL-32B-Instruct.

medloc train --config=configs/sft/ham10000_32b.py --workdir=runs/ham10000_32b_sft \
    --config.model.init_from=checkpoints/Qwen2.5-VL-32B-Instruct

`medloc prepare ham10000` writes the manifest (8,012 / 2,003 images by the paper's Table 5); the
tokenizer comes from `model.init_from`.

Hardware: 32 x H800 or 16 x H200. Memory: 526 GB over all devices for weights, moments, gradients
(computed from the sizes; activations and caches come on top); 8 prompts a step split 8 ways, so
the mesh is fsdp 8 x tensor the rest. Not run on a GPU by the authors.

To expect: a loss that falls from the first steps; the learning rate of 1e-6 is the paper's. A
tenth of train is cut off as val; the rest, about 7,210 images, is seen 1.1 times in 1,000 steps
of 8.
"""

from medloc_jax.config import paper_config


def get_config():
    """Returns the experiment."""
    config = paper_config("sft")
    config.model.preset = "32b"
    config.data.manifest = "data/ham10000/manifest.jsonl"
    config.optim.total_steps = 5007  # 5 epochs of 8,012 images, 8 a step; num_steps cuts it short
    config.mesh.fsdp = 8
    config.mesh.tensor = -1
    return config
