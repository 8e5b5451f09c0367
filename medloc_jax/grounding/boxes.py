# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Boxes: xyxy, half-open, float64, in a named frame; the one IoU of this repository.

`boxes_px` are pixels of the stored image, `boxes_resized_px` pixels of what the model sees. The two
differ by a few per cent (600 x 450 is fed as 588 x 448), enough to turn a perfect small box into an
IoU of 0.67: IoU is only ever taken between boxes of one frame, and that frame is `boxes_px`.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64

# Numpy's ArrayLike leaves tuples out when it is checked at run time.
BoxesLike = npt.ArrayLike | tuple


def iou(a: BoxesLike, b: BoxesLike) -> Float64[np.ndarray, "..."] | np.float64:
    """Intersection over union of boxes in the same frame.

    Args:
        a: [..., 4] boxes, xyxy.
        b: [..., 4] boxes, xyxy; the leading axes broadcast against those of `a`.

    Returns:
        [...] in [0, 1]; 0 where either box is empty, reversed or not finite.
    """
    a, b = _as_boxes(a), _as_boxes(b)
    with np.errstate(all="ignore"):  # not-finite boxes are answered below, not warned about
        overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
        intersection = np.prod(np.maximum(overlap, 0.0), axis=-1)
        size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
        union = np.prod(size_a, axis=-1) + np.prod(size_b, axis=-1) - intersection
        ratio = intersection / union
        usable = np.all((size_a > 0) & (size_b > 0), axis=-1) & np.isfinite(union) & (union > 0)
    return np.where(usable, np.minimum(ratio, 1.0), 0.0)[()]


@dataclasses.dataclass(frozen=True)
class Frame:
    """The two sizes of one image: as stored, and as resized for the model.

    Attributes:
        width: stored width, pixels.
        height: stored height, pixels.
        resized_width: width the model sees, pixels.
        resized_height: height the model sees, pixels.
    """

    width: int
    height: int
    resized_width: int
    resized_height: int

    def __post_init__(self) -> None:
        """Refuses sizes that are not positive."""
        if min(self.width, self.height, self.resized_width, self.resized_height) <= 0:
            raise ValueError(f"{self} has a side that is not positive")


def to_original_px(
    boxes_resized_px: Float64[np.ndarray, "*batch 4"], frame: Frame
) -> Float64[np.ndarray, "*batch 4"]:
    """Maps boxes from what the model sees to the stored image; nothing is rounded or clipped."""
    return boxes_resized_px * _xyxy(
        frame.width / frame.resized_width, frame.height / frame.resized_height
    )


def to_resized_px(
    boxes_px: Float64[np.ndarray, "*batch 4"], frame: Frame
) -> Float64[np.ndarray, "*batch 4"]:
    """Maps boxes from the stored image to what the model sees; nothing is rounded or clipped."""
    return boxes_px * _xyxy(frame.resized_width / frame.width, frame.resized_height / frame.height)


def clip_px(
    boxes_px: Float64[np.ndarray, "*batch 4"], width: int, height: int
) -> tuple[Float64[np.ndarray, "*batch 4"], Bool[np.ndarray, "*batch"]]:
    """Clips boxes to the image.

    Returns:
        The clipped boxes (one wholly outside becomes empty; NaN stays NaN), and which were changed.
    """
    limit = _xyxy(float(width), float(height))
    outside = (boxes_px < 0) | (boxes_px > limit)
    return np.clip(boxes_px, 0.0, limit), np.asarray(np.any(outside, axis=-1))


def to_clipped_px(
    box_resized_px: Float64[np.ndarray, "*batch 4"], frame: Frame
) -> tuple[Float64[np.ndarray, "*batch 4"], Bool[np.ndarray, "*batch"]]:
    """What a box that the model said means in the stored image: mapped first, clipped then.

    Returns:
        As `clip_px`.
    """
    return clip_px(to_original_px(box_resized_px, frame), frame.width, frame.height)


def scale_about_centre(
    boxes_px: Float64[np.ndarray, "*batch 4"], factor: float, width: int, height: int
) -> Float64[np.ndarray, "*batch 4"]:
    """Makes boxes `factor` times as wide and as high about their centres, clipped to the image."""
    if not factor > 0:
        raise ValueError(f"a box cannot be scaled by {factor}: the factor must be positive")
    centre = (boxes_px[..., :2] + boxes_px[..., 2:]) / 2
    half = (boxes_px[..., 2:] - boxes_px[..., :2]) / 2 * factor
    return clip_px(np.concatenate([centre - half, centre + half], axis=-1), width, height)[0]


def _as_boxes(boxes: BoxesLike) -> Float64[np.ndarray, "*batch 4"]:
    array = np.asarray(boxes, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] != 4:
        raise ValueError(f"boxes have shape {array.shape}: the last axis must hold x1, y1, x2, y2")
    return array


def _xyxy(x: float, y: float) -> Float64[np.ndarray, "4"]:
    return np.array([x, y, x, y], dtype=np.float64)
