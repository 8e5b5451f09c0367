# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GRPO with the MedLoc-R1 curriculum on HEEL from Qwen2.5-VL-32B-Instruct.

medloc train --config=configs/grpo/heel_32b.py --workdir=runs/heel_32b \
    --config.model.init_from=checkpoints/Qwen2.5-VL-32B-Instruct

`--config=configs/grpo/heel_32b.py:medloc_as_written` is the paper taken literally. `medloc
prepare heel` writes the manifest (3,164 / 792 images by the paper's Table 5); the tokenizer comes
from `model.init_from`.

Hardware: 32 x H800 or 16 x H200. Memory: 591 GB (602 GB as written) over all devices for weights,
moments, gradients and the bf16 reference (computed from the sizes; activations and caches come on
top); 8 prompts a step split 8 ways, so the mesh is fsdp 8 x tensor the rest. Not run on a GPU by
the authors.

To expect: the threshold moves after step 30 at the earliest; a threshold that stops at 0.70 is
what the mean IoU of its Table 1 allows. The paper reports A@0.5 96.27.
"""

from medloc_jax.config import paper_config


def get_config(variant: str = "medloc"):
    """Returns the experiment, of any method in medloc_jax/methods.py."""
    config = paper_config("grpo", variant)
    config.model.preset = "32b"
    config.data.manifest = "data/heel/manifest.jsonl"
    config.optim.total_steps = 1977  # 5 epochs of 3,164 images, 8 a step; num_steps cuts it short
    config.mesh.fsdp = 8
    config.mesh.tensor = -1
    return config
