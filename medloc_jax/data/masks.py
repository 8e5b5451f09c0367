# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a segmentation mask to a tight box."""

import os

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image


def read_mask(path: str | os.PathLike[str], *, threshold: int = 127) -> Bool[np.ndarray, "h w"]:
    """Reads a mask image; true = target, where the grey value is above `threshold` (0..255).

    Palette images are converted to grey first: their raw indices say nothing, and some published
    masks have an inverted palette. Images of more than 8 bits are refused rather than clipped.

    Raises:
        ValueError: the file cannot be read as an 8-bit image.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P", "LA", "RGB", "RGBA"):
                raise ValueError(f"{path}: mask of mode {image.mode}: convert it to 8-bit grey")
            grey = image.convert("L")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as a mask ({error}): replace the file") from error
    return np.asarray(grey) > threshold


def tight_box_px(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "4"]:
    """The smallest box (xyxy, half-open, px of the mask) that holds every true pixel.

    Raises:
        ValueError: the mask is empty.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        raise ValueError("the mask has no true pixel, so it has no box: drop the example")
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
