# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GRPO with the MedLoc-R1 curriculum on synthetic lesions: what `make demo` runs after its SFT.

medloc train --config=configs/demo.py --workdir=runs/demo/grpo \
    --config.model.init_from=runs/demo/sft

Any laptop; about two minutes on 2 cores. `--config=configs/demo.py:raw_iou` is another method; all
names are in medloc_jax/methods.py. The curriculum's values are the paper's. The learning rate is
not: 5e-4 suits a model of a million parameters.
"""

from medloc_jax.config import apply_method, default_config


def get_config(variant: str = "medloc"):
    """Returns the experiment, of any method in medloc_jax/methods.py."""
    config = default_config()
    config.num_steps = 250
    config.model.remat = "none"
    config.data.template = "box"
    config.data.min_pixels = 2304
    config.data.max_pixels = 4096
    config.data.max_buckets = 1
    config.rl.prompts_per_step = 16
    config.rl.max_completion_tokens = 16
    config.optim.learning_rate = 5e-4
    config.optim.warmup_steps = 10
    config.optim.schedule = "constant"
    config.eval.every = 50
    config.eval.num_examples = 128
    config.eval.batch_size = 64
    config.checkpoint.every = 50
    config.log.rollouts_every = 1
    return apply_method(config, variant)
