# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GRPO with the MedLoc-R1 curriculum on HAM10000 from Qwen2.5-VL-72B-Instruct.

medloc train --config=configs/grpo/ham10000_72b.py --workdir=runs/ham10000_72b \
    --config.model.init_from=checkpoints/Qwen2.5-VL-72B-Instruct

`--config=configs/grpo/ham10000_72b.py:medloc_as_written` is the paper taken literally. The paper
stops at 32B; this shows what a pod takes. `medloc prepare ham10000` writes the manifest; the
tokenizer comes from `model.init_from`.

Hardware: 256 x TPU v5p (v5p:4x8x8), fsdp 32 x tensor 8: 8 parts of the heads, as there are 8 key
heads, and 32 prompts a step instead of 8, one for each of the 32 parts of a batch. `medloc plan`
says what it takes (launch/PLAN.md). Not run by the authors.

To expect: no published figure.
"""

from medloc_jax.config import paper_config


def get_config(variant: str = "medloc"):
    """Returns the experiment, of any method in medloc_jax/methods.py."""
    config = paper_config("grpo", variant)
    config.model.preset = "72b"
    config.data.manifest = "data/ham10000/manifest.jsonl"
    config.rl.prompts_per_step = 32
    config.optim.total_steps = 1251  # 5 epochs of 8,012 images, 32 a step; num_steps cuts it short
    config.mesh.fsdp = 32
    config.mesh.tensor = 8
    return config
