# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The spatial-semantic reward as MedGround-R1 describes it: does the region fit the words?

A scorer looks at the part of the image inside the box that was answered, and at the query, and says
how well they fit, 0..1. With the hit at IoU 0.5 as the spatial part (weight `localization`), the
term `semantic` grades the completions on both sides of it:

    IoU >= 0.5 (spatially positive)    scorer(crop of the answered box, query)
    IoU < 0.5  (spatially negative)    half of that
    no box                             0

so that 1 + s is earned by a positive, s / 2 by a negative: no negative overtakes a positive, and
among either kind the one whose region fits the query better earns more.

Reference: MedGround-R1 (arXiv 2507.02994). What is known of it is its abstract: "spatial accuracy
reward and semantic consistency reward to provide nuanced feedback for both spatially positive and
negative completions". The released code has no such reward: its `medclip_reward` compares the whole
image with the question and never looks at the completion, so it is the same for a whole group and
teaches nothing.
Ours, therefore, and not to be reported as theirs: the formula above with its half, the bound of 0.5
(that of the released spatial reward), that the query is the text compared with, and every scorer.

The method as described: curriculum.schedule = "fixed", curriculum.threshold_fixed = 0.5,
data.template = "chain_of_box", rewards.weights.localization = 1.0, rewards.weights.format = 1.0,
rewards.weights.semantic = 1.0, and rewards.semantic_scorer = "module:function". Its ablations:
spatial only, rewards.weights.semantic = 0.0 (and rewards.semantic_scorer = ""); semantic only,
rewards.weights.localization = 0.0; without Chain-of-Box, data.template = "vlm_r1".
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

SPATIAL_THRESHOLD = 0.5  # IoU from which a completion is spatially positive
NEGATIVE_SHARE = 0.5  # of the fit, that a spatially negative completion earns

Picture = UInt8[np.ndarray, "_ _ 3"]

# Crops of images (RGB, 0..255, at least one pixel each) and the query of each -> [n] fits, 0..1.
Scorer = Callable[[Sequence[Picture], Sequence[str]], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Regions:
    """What a scorer is given to look at.

    Attributes:
        scorer: of `load_scorer`.
        pictures: [B] the images that the prompts ask about, as the model was shown them (stored
            size, augmented).
        queries: [B] what was asked for.
    """

    scorer: Scorer
    pictures: Sequence[Picture]
    queries: Sequence[str]


def load_scorer(name: str) -> Scorer | None:
    """Finds a scorer by its name; None for "".

    Args:
        name: of SCORERS, or "module:function" of a module that Python can import.

    Raises:
        ValueError: there is none of this name.
    """
    if not name:
        return None
    if name in SCORERS:
        return SCORERS[name]
    module, colon, function = name.partition(":")
    hint = f'give "module:function", or one of {", ".join(SCORERS)}'
    if not (module and colon and function):
        raise ValueError(f"rewards.semantic_scorer={name!r} names no function: {hint}")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"rewards.semantic_scorer={name!r}: {error}; {hint}; a module of your own is looked "
            "for in the folders of PYTHONPATH (`PYTHONPATH=. medloc train ...`: the one you are in)"
        ) from error
    if not callable(found):
        raise ValueError(f"rewards.semantic_scorer={name!r} is no function: {hint}")
    return found


def spatial_semantic(
    fit: Float64[np.ndarray, "B G"], iou: Float32[np.ndarray, "B G"]
) -> Float32[np.ndarray, "B G"]:
    """The term `semantic` of completions whose regions fit as well as `fit` says, 0..1."""
    positive = iou >= np.float32(SPATIAL_THRESHOLD)
    return np.where(positive, fit, NEGATIVE_SHARE * fit).astype(np.float32)


def fits(regions: Regions, boxes_px: Float64[np.ndarray, "B G 4"]) -> Float64[np.ndarray, "B G"]:
    """How well the region of each answered box fits its query; 0 without a box.

    Args:
        regions: images and queries of the B prompts.
        boxes_px: in the stored image, clipped to it; NaN where there is none.

    Raises:
        ValueError: the scorer's answer is not one number within 0..1 a region.
    """
    out = np.zeros(boxes_px.shape[:2])
    places = np.all(np.isfinite(boxes_px), axis=2)  # [B, G]
    rows: list[int] = np.nonzero(places)[0].tolist()
    if not rows:
        return out
    crops = [
        crop(regions.pictures[row], box) for row, box in zip(rows, boxes_px[places], strict=True)
    ]
    given = regions.scorer(crops, [regions.queries[row] for row in rows])
    values = np.asarray(given, np.float64)
    if values.shape != (len(crops),) or not np.all((values >= 0) & (values <= 1)):
        raise ValueError(
            f"rewards.semantic_scorer gave {values.shape} numbers within "
            f"{np.min(values, initial=math.inf):g}..{np.max(values, initial=-math.inf):g} for "
            f"{len(crops)} regions: let it give one within 0..1 for each"
        )
    out[places] = values
    return out


def crop(picture: Picture, box_px: Float64[np.ndarray, "4"]) -> Picture:
    """Every pixel that a box touches: at least one, for a box that the image's edge has cut flat.

    Args:
        picture: the image.
        box_px: in its pixels, clipped to it.
    """
    height, width = picture.shape[:2]
    left = min(math.floor(box_px[0]), width - 1)
    top = min(math.floor(box_px[1]), height - 1)
    right, bottom = max(math.ceil(box_px[2]), left + 1), max(math.ceil(box_px[3]), top + 1)
    return picture[top:bottom, left:right]


def dark_centre(crops: Sequence[Picture], queries: Sequence[str]) -> Float64[np.ndarray, " n"]:
    """A scorer without a model, for tests and tiny runs: a dark spot that fills the region.

    How much darker the ellipse that touches the sides is than the four corners, as a share of a
    fifth of the full range, cut to 0..1. A box that is much too large has a light rim inside the
    ellipse, one beside the spot has no contrast. It does not read the query, and is of use only
    where the target is a dark spot, as in dermoscopy.
    """
    out = []
    for region in crops:
        height, width = region.shape[:2]
        grey = region.mean(axis=2)
        x = (np.arange(width) + 0.5) / width * 2 - 1
        y = (np.arange(height) + 0.5) / height * 2 - 1
        inside = x**2 + y[:, None] ** 2 <= 1
        if inside.all() or not inside.any():
            out.append(0.0)  # a region of a few pixels has no corners
            continue
        contrast = (grey[~inside].mean() - grey[inside].mean()) / 255
        out.append(float(np.clip(5 * contrast, 0.0, 1.0)))
    return np.array(out)


SCORERS: dict[str, Scorer] = {"dark_centre": dark_centre}
