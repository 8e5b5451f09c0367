# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every method that is compared, as differences from an experiment: plain data.

An experiment file takes a method as its variant (`--config=configs/demo.py:raw_iou`), so that all
methods share its data, sizes and number of steps. `config.apply_method` sets the fields.

Reference: MedLoc-R1 (arXiv 2603.28120), Tables 1 and 7, and the systems named in NOTES.
"""

import difflib
from typing import Any, NamedTuple


class Like(NamedTuple):
    """The value of another field of the same configuration."""

    field: str


DEFAULT = "medloc"  # what an experiment file is without a variant

_MEDGROUND = {
    "curriculum.schedule": "fixed",
    "curriculum.threshold_fixed": 0.5,
}

# name -> {dotted field: value}
METHODS: dict[str, dict[str, Any]] = {
    "zero_shot": {"num_steps": 0},
    "sft": {
        "method": "sft",
        "sft.batch_size": Like("rl.prompts_per_step"),
        "sft.box_scale": 1.0,
        "sft.box_jitter": 0.0,
    },
    "fixed": {"curriculum.schedule": "fixed", "curriculum.threshold_fixed": 0.5},
    "fixed_60": {"curriculum.schedule": "fixed", "curriculum.threshold_fixed": 0.6},
    "fixed_70": {"curriculum.schedule": "fixed", "curriculum.threshold_fixed": 0.7},
    "fixed_80": {"curriculum.schedule": "fixed", "curriculum.threshold_fixed": 0.8},
    "raw_iou": {"curriculum.schedule": "raw_iou"},
    "boxmed": {
        "curriculum.schedule": "raw_iou",
        "data.template": "boxmed",
        "rewards.weights.format": 0.0,
    },
    "v_triune": {
        "curriculum.schedule": "v_triune",
        "curriculum.stages": ((0.10, 0.3), (0.25, 0.5), (1.0, 0.7)),
    },
    "v_triune_original": {
        "curriculum.schedule": "v_triune",
        "curriculum.stages": ((0.10, 0.85), (0.25, 0.95), (1.0, 0.99)),
    },
    "medground_released": {**_MEDGROUND, "rewards.weights.format": 1.0},
    # The scorer is for the user to give: rewards.semantic_scorer.
    "medground_described": {
        **_MEDGROUND,
        "rewards.weights.format": 1.0,
        "rewards.weights.semantic": 1.0,
        "data.template": "chain_of_box",
    },
    "medground_described_spatial_only": {
        **_MEDGROUND,
        "rewards.weights.format": 1.0,
        "data.template": "chain_of_box",
    },
    "medground_described_semantic_only": {
        **_MEDGROUND,
        "rewards.weights.localization": 0.0,
        "rewards.weights.format": 1.0,
        "rewards.weights.semantic": 1.0,
        "data.template": "chain_of_box",
    },
    "medground_described_no_chain": {
        **_MEDGROUND,
        "rewards.weights.format": 1.0,
        "rewards.weights.semantic": 1.0,
    },
    "medloc": {},
    "medloc_linear": {
        "curriculum.step_size": "linear",
        "curriculum.threshold_start": 0.2,
        "curriculum.step_size_start": 0.2,
    },
    "medloc_cosine": {
        "curriculum.step_size": "cosine",
        "curriculum.threshold_start": 0.2,
        "curriculum.step_size_start": 0.2,
    },
    "medloc_no_margin": {"curriculum.criteria": ("reward", "stability")},
    "medloc_as_written": {
        "rl.kl_weight": 0.4,
        "rl.advantage_std": "population_inside",
        "rl.ratio_level": "sequence",
        "rl.skip_no_signal": False,
        "data.template": "medloc",
        "rewards.weights.format": 0.0,
        "curriculum.window_unit": "prompt",
        "model.freeze_vision": False,
        # The whole training split: nothing is looked at before the end.
        "data.val_fraction": 0.0,
        "eval.every": 0,
        "eval.split": "test",
    },
    "rivals": {"curriculum.schedule": "rivals"},
}

# As tables print them.
TITLES: dict[str, str] = {
    "zero_shot": "Zero-shot",
    "sft": "SFT",
    "fixed": "Fixed 0.5",
    "fixed_60": "Fixed 0.6",
    "fixed_70": "Fixed 0.7",
    "fixed_80": "Fixed 0.8",
    "raw_iou": "Raw IoU",
    "boxmed": "BoxMed-RL",
    "v_triune": "V-Triune",
    "v_triune_original": "V-Triune (original)",
    "medground_released": "MedGround-R1 (released)",
    "medground_described": "MedGround-R1 (described)",
    "medground_described_spatial_only": "MedGround-R1 (described), spatial only",
    "medground_described_semantic_only": "MedGround-R1 (described), semantic only",
    "medground_described_no_chain": "MedGround-R1 (described), no Chain-of-Box",
    "medloc": "MedLoc (piecewise)",
    "medloc_linear": "MedLoc (linear)",
    "medloc_cosine": "MedLoc (cosine)",
    "medloc_no_margin": "MedLoc w/o margin",
    "medloc_as_written": "MedLoc (as written)",
    "rivals": "Rivals (ours)",
}

# What each stands for, and what of it is our reading.
NOTES: dict[str, str] = {
    "zero_shot": "The weights that every method starts from, evaluated before the first step.",
    "sft": "Cross-entropy of the answer alone, no reasoning, on the batches that GRPO sees. The "
    "target's format is ours: the paper does not give it.",
    "fixed": "A hit from IoU 0.5 on. VLM-R1 as the paper compares with it, before 2025-03-24; it "
    "wrote > where we write >=.",
    "fixed_60": "A control of ours: a hit from IoU 0.6 on.",
    "fixed_70": "A control of ours: a hit from IoU 0.7 on.",
    "fixed_80": "A control of ours: a hit from IoU 0.8 on, the curriculum's target from the start.",
    "raw_iou": "The IoU is the reward. VLM-R1 since 2025-03-24.",
    "boxmed": "The IoU is the reward, and BoxMed-RL's own prompt. Its code was never released: no "
    "format term is our reading.",
    "v_triune": "V-Triune's stages at 10 and 25 % of the run, the IoU where it reaches the "
    "threshold. Thresholds of 0.3, 0.5 and 0.7 are ours, to be tuned on val: the paper says that "
    "it tuned them, and not to what.",
    "v_triune_original": "V-Triune with its own thresholds, 0.85, 0.95 and 0.99.",
    "medground_released": "A hit from IoU 0.5 on, and the format: the spatial part of the released "
    "code. Its semantic term does not look at the completion, so it cannot tell a group's members "
    "apart.",
    "medground_described": "Our reading of its abstract: a hit from IoU 0.5 on, a semantic score "
    "of the box's content for hits and misses alike, and boxes in the reasoning. The scorer is the "
    "user's: rewards.semantic_scorer.",
    "medground_described_spatial_only": "The described method without its semantic term.",
    "medground_described_semantic_only": "The described method without its spatial term.",
    "medground_described_no_chain": "The described method with the experiment's own template.",
    "medloc": "The paper where it agrees with itself; the code base it builds on elsewhere.",
    "medloc_linear": "Step sizes that shrink linearly from 0.2 (Eq. 12). It starts at 0.2; P and S "
    "by the piecewise table are our reading.",
    "medloc_cosine": "Step sizes that shrink as a cosine from 0.2 (Eq. 13). It starts at 0.2; P "
    "and S by the piecewise table are our reading.",
    "medloc_no_margin": "MedLoc without the margin criterion (a row of Table 2, and a control).",
    "medloc_as_written": "The paper taken literally: beta 0.4, Eq. 1 and 2 as printed, one prompt "
    "a window entry, its prompts without tags, the tower trained, the whole training split.",
    "rivals": "In no paper: beat the best of k siblings of the same prompt, averaged over the "
    "draw: the share of siblings with a lower IoU, to the k-th power; k rises from 1 to 6.",
}


def fields_of(name: str) -> dict[str, Any]:
    """The fields that a method sets.

    Raises:
        ValueError: there is no such method; the nearest is named.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
        first = (DEFAULT, "medloc_as_written")
        known = ", ".join([*first, *(other for other in METHODS if other not in first)])
        raise ValueError(
            f"variant {name!r} is no method: choose of {known}; did you mean {near!r}?"
        )
    return METHODS[name]
