# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GRPO with the MedLoc-R1 curriculum on real dermoscopy, tiny model.

medloc train --config=configs/ham10000_tiny.py --config.data.manifest=ham10000/manifest.jsonl \
    --config.model.init_from=runs/ham_sft --workdir=runs/ham_medloc

The other methods are its variants: `--config=configs/ham10000_tiny.py:raw_iou`; all names are in
medloc_jax/methods.py. The curriculum's values are the paper's; a model of a million parameters
takes a higher learning rate than its 1e-6.
"""

from medloc_jax.config import apply_method, default_config


def get_config(variant: str = "medloc"):
    """Returns the experiment, of any method in medloc_jax/methods.py."""
    config = default_config()
    config.num_steps = 300
    config.model.remat = "none"
    config.data.template = "box"
    config.data.min_pixels = 2304
    config.data.max_pixels = 6144
    config.data.augment = ("hflip", "vflip")
    config.rl.prompts_per_step = 16
    config.rl.max_completion_tokens = 16
    config.optim.learning_rate = 3e-4
    config.optim.warmup_steps = 10
    config.eval.every = 50
    config.eval.batch_size = 64
    config.checkpoint.every = 100
    config.log.rollouts_every = 1
    return apply_method(config, variant)
