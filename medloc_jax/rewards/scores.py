# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Scores: named raw measurements of completions, made on the host before any threshold applies.

Order: parse (resized pixels), map to the stored image, clip to it (counted), compare. To add a
score, write one function here, enter it in `SCORES`, and give it a weight in `rewards.weights`.
Those that look at the image are in `OF_REGIONS`, and are made only where a scorer is configured.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64

from medloc_jax.grounding import answer, boxes, prompts
from medloc_jax.rewards import semantic


@dataclasses.dataclass(frozen=True, eq=False)
class Completions:
    """What a score function sees.

    Attributes:
        texts: [B][G] decoded completions.
        boxes_px: [B, G, 4] the answers, clipped to the stored image; NaN where there is none.
        target_boxes_px: [B, 4] the true boxes, in the stored image.
        template: that the prompts were written with.
    """

    texts: Sequence[Sequence[str]]
    boxes_px: Float64[np.ndarray, "B G 4"]
    target_boxes_px: Float64[np.ndarray, "B 4"]
    template: prompts.Template


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """The scores of B groups of G completions, and what they were read from.

    Attributes:
        scores: name -> [B, G], every entry of `names`.
        valid: [B, G] the completion has a box to score.
        clipped: [B, G] that box reached out of the image.
        boxes_px: [B, G, 4] the clipped boxes, in the stored image; NaN where not valid.
        reasons: [B][G] why there is no box (`grounding.answer`); "" where valid.
    """

    scores: dict[str, Float32[np.ndarray, "B G"]]
    valid: Bool[np.ndarray, "B G"]
    clipped: Bool[np.ndarray, "B G"]
    boxes_px: Float64[np.ndarray, "B G 4"]
    reasons: list[list[str]]


def iou(completions: Completions) -> Float32[np.ndarray, "B G"]:
    """IoU with the true box; 0 without an answer."""
    targets_px = completions.target_boxes_px[:, None]
    return np.asarray(boxes.iou(completions.boxes_px, targets_px), dtype=np.float32)


def format_score(completions: Completions) -> Float32[np.ndarray, "B G"]:
    """1 where the completion has the form that its template asks for, else 0."""
    template = completions.template
    return np.array(
        [[template.format_score(text) for text in group] for group in completions.texts],
        dtype=np.float32,
    )


def semantic_score(
    completions: Completions, regions: semantic.Regions
) -> Float32[np.ndarray, "B G"]:
    """How well the answered region fits the query; less where it is off the target."""
    fit = semantic.fits(regions, completions.boxes_px)
    return semantic.spatial_semantic(fit, iou(completions))


SCORES = {"iou": iou, "format": format_score}
OF_REGIONS = {"semantic": semantic_score}


def names(*, of_regions: bool) -> tuple[str, ...]:
    """The scores that are made, in order; with those of regions where a scorer is configured."""
    return (*SCORES, *(OF_REGIONS if of_regions else ()))


def score_completions(
    texts: Sequence[Sequence[str]],
    target_boxes_px: Float64[np.ndarray, "B 4"],
    frames: Sequence[boxes.Frame],
    template: prompts.Template,
    regions: semantic.Regions | None = None,
) -> Scored:
    """Scores B groups of G completions.

    Args:
        texts: [B][G] decoded completions.
        target_boxes_px: [B, 4] true boxes, in the stored image.
        frames: [B] sizes of the images that the prompts ask about.
        template: that the prompts were written with.
        regions: what the scores in OF_REGIONS look at; None: they are not made.

    Raises:
        ValueError: the arguments disagree about B, or the groups about G, or a scorer gives what it
            must not.
    """
    if not len(texts) == len(frames) == len(target_boxes_px) > 0:
        raise ValueError(
            f"{len(texts)} groups of completions, {len(frames)} frames and "
            f"{len(target_boxes_px)} target boxes: there must be one of each a prompt"
        )
    sizes = {len(group) for group in texts}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"groups have {sorted(sizes)} completions: all need the same number, > 0")

    boxes_px = np.full((len(texts), *sizes, 4), np.nan)
    clipped = np.zeros(boxes_px.shape[:2], dtype=bool)
    answers = [[answer.parse(text) for text in group] for group in texts]
    for row, frame in enumerate(frames):
        for column, said in enumerate(answers[row]):
            if said.box is not None:
                box_px, outside = boxes.to_clipped_px(said.box, frame)
                boxes_px[row, column], clipped[row, column] = box_px, outside

    completions = Completions(texts, boxes_px, target_boxes_px, template)
    made = {name: score(completions) for name, score in SCORES.items()}
    if regions is not None:
        made |= {name: score(completions, regions) for name, score in OF_REGIONS.items()}
    return Scored(
        scores=made,
        valid=np.array([[said.valid for said in group] for group in answers]),
        clipped=clipped,
        boxes_px=boxes_px,
        reasons=[[said.reason for said in group] for group in answers],
    )
