# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a group of answers to one question says together: how far they agree, and on which box."""

import numpy as np
from jaxtyping import Bool, Float64

from medloc_jax.grounding import boxes

# A box belongs to the consensus when it overlaps the most central one by this IoU.
SAME_PLACE_IOU = 0.5


def agreement(boxes_px: Float64[np.ndarray, "n 4"]) -> float:
    """Mean IoU over all pairs of answers.

    Args:
        boxes_px: one an answer, in one frame; NaN where an answer has no box.

    Returns:
        In [0, 1]: 1 where all say the same box. An answer without a box agrees with no other.

    Raises:
        ValueError: fewer than two answers.
    """
    if len(boxes_px) < 2:
        raise ValueError(f"{len(boxes_px)} answers have no pairs: agreement needs two or more")
    first, second = np.triu_indices(len(boxes_px), k=1)
    return float(np.mean(boxes.iou(boxes_px[first], boxes_px[second])))


def consensus(
    boxes_px: Float64[np.ndarray, "n 4"],
) -> tuple[Float64[np.ndarray, "4"], Bool[np.ndarray, " n"]] | None:
    """The box that most answers mean.

    The most central answer (highest mean IoU with the others) is taken, and the median of each
    side over the answers that overlap it by `SAME_PLACE_IOU` or more. A plain median or mean over
    all would lie between two lesions when the answers name both.

    Args:
        boxes_px: one an answer, in one frame; NaN where an answer has no box.

    Returns:
        The box, and which answers it was made of; None if no answer has a box.
    """
    there = np.isfinite(boxes_px).all(axis=1)
    if not there.any():
        return None
    pairs = np.asarray(boxes.iou(boxes_px[:, None], boxes_px[None]))
    central = int(np.argmax(np.where(there, pairs.sum(axis=1), -1.0)))
    members = there & (pairs[central] >= SAME_PLACE_IOU)
    # The central box stands for itself even where it is empty, and so overlaps nothing.
    members[central] = True
    return np.median(boxes_px[members], axis=0), members
