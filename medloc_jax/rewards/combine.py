# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Scores, threshold and weights -> reward, on the device.

Reference: MedLoc-R1 (arXiv 2603.28120), Eq. 3 (hit); V-Triune (arXiv 2505.18129), Eq. 5 (IoU if
hit). Departure: a hit is `>=`, as Eq. 3 prints it; VLM-R1's code uses `>`. The shape "rivals" is
ours (`curriculum/rivals.py`).
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float


def share_beaten(iou: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """The share of its G - 1 siblings that a completion is better than; a tie is not better."""
    beaten = jnp.sum(iou[:, :, None] > iou[:, None, :], axis=2)
    return beaten.astype(iou.dtype) / (iou.shape[1] - 1)


REWARD_SHAPES = {  # name -> (IoU [B, G], threshold that broadcasts, rivals) -> term [B, G]
    "hit": lambda iou, threshold, rivals: (iou >= threshold).astype(iou.dtype),
    "raw_iou": lambda iou, threshold, rivals: iou,
    "iou_if_hit": lambda iou, threshold, rivals: jnp.where(iou >= threshold, iou, 0.0),
    "rivals": lambda iou, threshold, rivals: share_beaten(iou) ** rivals,
}


def combine(
    scores: Mapping[str, Float[Array, "B G"]],
    threshold: Float[Array, ""] | Float[Array, " B"] | float,
    weights: Mapping[str, float],
    reward_shape: str,
    rivals: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, "B G"], dict[str, Float[Array, "B G"]]]:
    """Weighs the terms of the reward; to be called inside jit.

    Args:
        scores: raw scores by name; "iou" makes the term "localization", every other its own.
        threshold: IoU in force, for all prompts or one a prompt; traced, so that moving it
            compiles nothing.
        weights: of the terms, static. A term of weight 0 is not rewarded; it is returned if it is
            scored.
        reward_shape: an entry of REWARD_SHAPES, static.
        rivals: how many siblings have to be beaten, for the shape of that name; > 0, traced.

    Returns:
        The reward, and each term before its weight.

    Raises:
        ValueError: an unknown reward shape, or a weight without a score.
    """
    if reward_shape not in REWARD_SHAPES:
        raise ValueError(f"reward shape {reward_shape!r} is none of {sorted(REWARD_SHAPES)}")
    iou = scores["iou"]
    # float32 on both sides: an IoU of exactly the threshold stays a hit after rounding.
    threshold = jnp.asarray(threshold, dtype=iou.dtype)
    if threshold.ndim == 1:
        threshold = threshold[:, None]
    terms = {name: score for name, score in scores.items() if name != "iou"}
    terms["localization"] = REWARD_SHAPES[reward_shape](
        iou, threshold, jnp.asarray(rivals, iou.dtype)
    )
    # A term of weight 0 may be one that is not scored: without a scorer there is no "semantic".
    weights = {name: weight for name, weight in weights.items() if weight}
    unknown = sorted(set(weights) - set(terms))
    if unknown:
        raise ValueError(f"rewards.weights names {unknown}, but the terms are {sorted(terms)}")
    reward = sum((weight * terms[name] for name, weight in weights.items()), jnp.zeros_like(iou))
    return reward, terms
