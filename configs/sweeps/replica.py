# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Table 1 at the size of a laptop: every method, five seeds, a model of a million parameters.

medloc sweep --config=configs/sweeps/replica.py:synthetic --workdir=runs/replica/synthetic --jobs=2
medloc sweep --config=configs/sweeps/replica.py:ham10000 --workdir=runs/replica/ham10000 --jobs=2 \
    --set=data.manifest=ham10000/manifest.jsonl

All methods start from one warm start (it learns the format and where to look, from boxes drawn 1.5
times too large), see the same batches, and get the same number of tries to choose a learning rate
by val. The tries have a seed of their own and do not look at test.

BoxMed-RL is not among them. It is raw IoU with another prompt, and a base that has read one prompt
has no valid answer to another: tried, nothing was learned (benchmarks/replica/README.md).
"""

from medloc_jax.config import arm, default_sweep

# The size of the replica, all of it.
SEEDS = (42, 43, 44, 45, 46)
NUM_STEPS = 200
PROMPTS_PER_STEP = 8
EVAL_EVERY = 50
LEARNING_RATES = (3e-4, 6e-4, 1.2e-3)
SFT_LEARNING_RATES = (3e-4, 1e-3, 3e-3)  # each target token teaches: it bears, and needs, more

DATA = {  # variant -> (experiment, warm start, what else is set)
    "synthetic": ("configs/demo.py", "configs/demo_sft.py", {}),
    "ham10000": (
        "configs/ham10000_tiny.py",
        "configs/ham10000_tiny_sft.py",
        {"data.manifest": "data/ham10000/manifest.jsonl"},
    ),
}
METHODS = (
    *("zero_shot", "sft", "fixed", "fixed_60", "fixed_70", "fixed_80", "raw_iou"),
    *("v_triune", "v_triune_original", "medground_released"),
    *("medloc", "medloc_linear", "medloc_cosine", "medloc_no_margin", "medloc_as_written"),
    "rivals",
)
# The tiny model has one prompt, and a choice needs a val: the paper's prompts and its whole train
# split stay out.
AS_WRITTEN = {
    "data.template": "box",
    "data.val_fraction": 0.1,
    "eval.every": EVAL_EVERY,
    "eval.split": "val",
}


def get_config(data: str = "synthetic"):
    """Returns the sweep.

    Args:
        data: synthetic or ham10000.
    """
    if data not in DATA:
        raise ValueError(f"replica.py:{data}: choose one of {', '.join(DATA)}")
    experiment, warm_start, changes = DATA[data]
    special = {
        "zero_shot": {"seeds": SEEDS[:1]},  # greedy decoding of the same weights
        "sft": {"tune": ("optim.learning_rate", SFT_LEARNING_RATES)},
        "medloc_as_written": {"changes": AS_WRITTEN},
    }
    sweep = default_sweep([arm(name, **special.get(name, {})) for name in METHODS], experiment)
    sweep.seeds = SEEDS
    sweep.warm_start = warm_start
    sweep.warm_start_changes = (*changes.items(), ("eval.final_split", ""))
    sweep.tune_values = LEARNING_RATES
    sweep.changes = (
        *changes.items(),
        ("num_steps", NUM_STEPS),
        ("rl.prompts_per_step", PROMPTS_PER_STEP),
        ("sft.batch_size", PROMPTS_PER_STEP),
        ("eval.every", EVAL_EVERY),
        ("eval.num_examples", 0),
        ("checkpoint.every", EVAL_EVERY),
        ("checkpoint.keep_last", 1),
        ("checkpoint.keep_best", 0),
        ("log.rollouts_every", 10),
        ("log.tensorboard", False),
    )
    sweep.note = "All methods at the size of a laptop. Learning rates are chosen on val."
    return sweep
