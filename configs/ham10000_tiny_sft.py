# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The warm start on real dermoscopy, from random weights, with boxes drawn too large.

medloc train --config=configs/ham10000_tiny_sft.py --config.data.manifest=ham10000/manifest.jsonl \
    --workdir=runs/ham_sft

HAM10000 at 80 x 64 px. Flips make four pictures of each.
"""

from medloc_jax.config import default_config


def get_config():
    """Returns the experiment."""
    config = default_config()
    config.method = "sft"
    config.num_steps = 600
    config.model.freeze_vision = False
    config.model.remat = "none"
    config.data.template = "box"
    config.data.min_pixels = 2304
    config.data.max_pixels = 6144
    config.data.augment = ("hflip", "vflip")
    config.rl.max_completion_tokens = 16
    config.sft.batch_size = 32
    config.sft.box_scale = 1.5
    config.optim.learning_rate = 2e-3
    config.optim.warmup_steps = 20
    config.eval.every = 100
    config.eval.at_start = False
    config.eval.batch_size = 64
    config.checkpoint.every = 200
    return config
