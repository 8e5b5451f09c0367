# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Train-time transforms of a picture and its box.

Each takes (picture, box_px, generator) and returns the picture, of the same size, so that the
static shape of a row is known from the manifest, and the box (xyxy px, half-open) mapped exactly.
Flips do not rewrite the query: leave them out where queries speak of left, right, upper or lower.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

MAX_ZOOM = 1.25  # "rescale" draws a zoom from 1 / MAX_ZOOM to MAX_ZOOM, uniform in its logarithm


def hflip(
    picture: Image.Image, box_px: Float[np.ndarray, "4"], generator: np.random.Generator
) -> tuple[Image.Image, Float[np.ndarray, "4"]]:
    """Swaps left and right in one picture of two."""
    if generator.random() < 0.5:
        return picture, box_px
    x1, y1, x2, y2 = box_px
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return mirrored, np.array([picture.width - x2, y1, picture.width - x1, y2])


def vflip(
    picture: Image.Image, box_px: Float[np.ndarray, "4"], generator: np.random.Generator
) -> tuple[Image.Image, Float[np.ndarray, "4"]]:
    """Swaps top and bottom in one picture of two."""
    if generator.random() < 0.5:
        return picture, box_px
    x1, y1, x2, y2 = box_px
    mirrored = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return mirrored, np.array([x1, picture.height - y2, x2, picture.height - y1])


def rescale(
    picture: Image.Image, box_px: Float[np.ndarray, "4"], generator: np.random.Generator
) -> tuple[Image.Image, Float[np.ndarray, "4"]]:
    """Zooms by up to MAX_ZOOM and shifts; the target stays whole, borders repeat the edge pixel."""
    size = np.array([picture.width, picture.height], np.float64)
    low, high = box_px[:2], box_px[2:]
    zoom = math.exp(generator.uniform(-1, 1) * math.log(MAX_ZOOM))
    zoom = min(zoom, float(np.min(size / (high - low))))
    # The view is the part of the picture (or more than it) that fills the new one. Along each side
    # it either lies in the picture or holds it, and it holds the box.
    view = size / zoom
    first = np.maximum(np.minimum(0.0, size - view), high - view)
    last = np.minimum(np.maximum(0.0, size - view), low)
    corner = first + generator.random(2) * np.maximum(last - first, 0.0)

    pad = math.ceil(max(0.0, -corner.min(), (corner + view - size).max()))
    pixels = np.pad(np.asarray(picture), ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    padded_size = size + 2 * pad
    x1, y1 = np.clip(corner + pad, 0.0, padded_size).tolist()
    x2, y2 = np.clip(corner + view + pad, 0.0, padded_size).tolist()
    zoomed = Image.fromarray(pixels).resize(
        picture.size, Image.Resampling.BICUBIC, box=(x1, y1, x2, y2)
    )
    box = np.concatenate([low - corner, high - corner]) * zoom
    return zoomed, np.clip(box, 0.0, np.tile(size, 2))


AUGMENTATIONS = {"hflip": hflip, "vflip": vflip, "rescale": rescale}


def check_names(names: Sequence[str]) -> None:
    """Refuses a name that is not in AUGMENTATIONS.

    Raises:
        ValueError: naming it.
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise ValueError(
                f"data.augment names {name!r}, which is unknown: choose of "
                f"{', '.join(AUGMENTATIONS)}"
            )


def augment(
    picture: Image.Image,
    box_px: Float[np.ndarray, "4"],
    names: Sequence[str],
    *,
    seed: int,
    position: int,
) -> tuple[Image.Image, Float[np.ndarray, "4"]]:
    """Applies transforms in the order of `names`: a function of (seed, position) alone.

    Args:
        picture: RGB.
        box_px: the target, inside the picture.
        names: entries of AUGMENTATIONS.
        seed: of the run, >= 0.
        position: of the row in the endless stream of training rows, so that an example is
            changed differently in every epoch.

    Returns:
        A picture of the same size, and the box in it.
    """
    generator = np.random.default_rng([seed, position])
    for name in names:
        picture, box_px = AUGMENTATIONS[name](picture, box_px, generator)
    return picture, box_px
