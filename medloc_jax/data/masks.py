# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a segmentation mask to tight boxes: of the whole mask, or of each connected component."""

import os
import warnings

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

THRESHOLD = 127  # grey values above it are target, of 0..255

_MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA")


def read_mask(
    path: str | os.PathLike[str], *, threshold: int = THRESHOLD
) -> Bool[np.ndarray, "h w"]:
    """Reads a mask image; true = target, where the grey value is above `threshold` (0..255).

    Palette images are converted to grey first: their raw indices say nothing, and some published
    masks have an inverted palette. Images of more than 8 bits are refused rather than clipped.

    Raises:
        ValueError: the file cannot be read as an 8-bit image, or has no pixel above the threshold.
    """
    grey = _read_grey(path)
    mask = grey > threshold
    if not mask.any():
        raise ValueError(
            f"{path}: the mask is empty: no grey value is above {threshold}, the largest is "
            f"{grey.max()}; replace the file, or lower the threshold if that is the target's value"
        )
    return mask


def _read_grey(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w"]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.mode in _MODES and getattr(image, "n_frames", 1) == 1:
                    return np.asarray(image.convert("L"))
                mode, frames = image.mode, getattr(image, "n_frames", 1)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such mask file") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{path}: not an image in a format that Pillow reads") from error
    except Exception as error:  # what Pillow's decoders raise on broken data has no common class
        raise ValueError(f"{path}: broken or truncated mask: {error}: replace the file") from error
    if frames > 1:
        raise ValueError(
            f"{path}: a mask of {frames} frames: store the one that is meant by itself"
        )
    raise ValueError(f"{path}: mask of mode {mode}: convert it to 8-bit grey")


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


def scale_box_px(
    box_px: Float[np.ndarray, "4"], mask: Bool[np.ndarray, "h w"], width: int, height: int
) -> tuple[float, float, float, float]:
    """A box of a mask in the pixels of its image of `width` x `height` px; nothing is rounded.

    Raises:
        ValueError: the mask lies across its image: as wide as that is high.
    """
    mask_height, mask_width = mask.shape
    alike = _same_shape((mask_width, mask_height), (width, height))
    if not alike and _same_shape((mask_width, mask_height), (height, width)):
        raise ValueError(
            f"the mask ({mask_width} x {mask_height} px) is turned by a quarter against its image "
            f"({width} x {height} px): turn one of them back"
        )
    x1, y1, x2, y2 = box_px.tolist()
    # Multiplied first: the edge of the mask is then exactly the edge of the image.
    return (
        x1 * width / mask_width,
        y1 * height / mask_height,
        x2 * width / mask_width,
        y2 * height / mask_height,
    )


def doubts(mask: Bool[np.ndarray, "h w"], width: int, height: int) -> list[str]:
    """What should be looked at in a mask that is taken, for an image of `width` x `height` px."""
    found = []
    if mask.all():
        found.append("the mask is all white, so the box is the whole image")
    mask_height, mask_width = mask.shape
    if not _same_shape((mask_width, mask_height), (width, height)):
        found.append(
            f"the mask has another aspect ratio ({mask_width} x {mask_height} px) than its image "
            f"({width} x {height} px): the box is scaled along each axis by itself"
        )
    return found


def _same_shape(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two sizes have one aspect ratio, up to the pixel that resizing may round."""
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


def component_boxes_px(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "n 4"]:
    """The tight box (as `tight_box_px`) of every 8-connected component, in raster order.

    Pixels that touch at a corner belong together. Runs of true pixels, one row's after another's,
    are joined to the runs of the row above that they touch.
    """
    # [run, (row, first column, last column + 1)]
    steps = np.diff(mask.astype(np.int8), axis=1, prepend=0, append=0)
    starts, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    runs = np.concatenate([starts, ends[:, 1:]], axis=1)
    parents = _join_runs(runs)
    roots = np.array([_root(parents, run) for run in range(len(runs))], np.int64)
    boxes_px = []
    for root in np.unique(roots):  # a component's root is its first run
        own = runs[roots == root]
        boxes_px.append([own[:, 1].min(), own[0, 0], own[:, 2].max(), own[-1, 0] + 1])
    return np.array(boxes_px, np.float64).reshape(-1, 4)


def _join_runs(runs: Int[np.ndarray, "n 3"]) -> list[int]:
    """Each run's parent (an earlier run of its component, or itself), as in union-find."""
    parents = list(range(len(runs)))
    above = 0  # the first run of the row above that may touch
    for run, (row, first, end) in enumerate(runs.tolist()):
        while above < run and (
            runs[above, 0] < row - 1 or (runs[above, 0] == row - 1 and runs[above, 2] < first)
        ):
            above += 1
        other = above
        while other < run and runs[other, 0] == row - 1 and runs[other, 1] <= end:
            a, b = sorted((_root(parents, run), _root(parents, other)))
            parents[b] = a
            other += 1
    return parents


def _root(parents: list[int], run: int) -> int:
    while parents[run] != run:
        parents[run] = parents[parents[run]]
        run = parents[run]
    return run
