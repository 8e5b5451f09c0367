# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The warm start of the demo: a general model with sloppy boxes, made from nothing.

medloc train --config=configs/demo_sft.py --workdir=runs/demo/sft

Any laptop; about two minutes on 2 cores. Easier pictures than the demo's own, and boxes drawn 1.5
times too wide and too high, each side a little off: it learns the answer format and where to look,
not how tight a box is.
"""

from medloc_jax.config import default_config


def get_config():
    """Returns the experiment."""
    config = default_config()
    config.method = "sft"
    config.num_steps = 430
    config.model.freeze_vision = False
    config.model.remat = "none"
    config.data.template = "box"
    config.data.min_pixels = 2304
    config.data.max_pixels = 4096
    config.data.max_buckets = 1
    config.data.synthetic.variant = "easy"
    config.data.synthetic.num_train = 4000
    config.data.synthetic.num_test = 200
    config.rl.max_completion_tokens = 16
    config.sft.batch_size = 32
    config.sft.box_scale = 1.5
    config.sft.box_jitter = 0.10
    config.optim.learning_rate = 2e-3
    config.optim.warmup_steps = 20
    config.eval.every = 150
    config.eval.at_start = False
    config.eval.num_examples = 128
    config.eval.batch_size = 64
    config.checkpoint.every = 200
    return config
