# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sampled groups, and how they are read from lines such as those of a run's rollouts.jsonl."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from medloc_jax.curriculum import window


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Sampled groups.

    Attributes:
        ious: [B, G] in [0, 1]; 0 without an answer.
        valid: [B, G] whether there was a box; None where it is not known.
        areas: [B] of the target boxes; None where they are not known.
        area_unit: "of the image" (a share) or "px^2".
    """

    ious: Float64[np.ndarray, "B G"]
    valid: Bool[np.ndarray, "B G"] | None = None
    areas: Float64[np.ndarray, " B"] | None = None
    area_unit: str = "of the image"


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Reads a file of `{"ious": [[...G], ...B]}` lines, such as a run's rollouts.jsonl.

    Raises:
        ValueError: it cannot be read, is empty, or a line is none; names the file and the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read --ious={path}: {error}") from error
    if lines == [""]:
        raise ValueError(f'{path} is empty: need one {{"ious": [[...], ...]}} a line')
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not JSON ({error}): mend the line") from error
        if not isinstance(record, dict) or "ious" not in record:
            raise ValueError(f'{path}:{number}: need an object with "ious": [[...G], ...B]')
        records.append(record)
    return records


def from_records(
    records: Sequence[Mapping[str, Any]],
    where: str,
    image_sizes: Mapping[str, tuple[int, int]] | None = None,
) -> Groups:
    """Joins the groups of several lines.

    Args:
        records: lines with "ious" [B][G], and perhaps "boxes_px" [B][G][4] (null or none of an
            answer without a box), "target_boxes_px" [B][4] and "ids" [B].
        where: the file, for messages.
        image_sizes: (width, height) of the images by example id; areas are in px^2 where one is
            not there.

    Raises:
        ValueError: no records, IoUs that are none, groups of one or of different sizes, or boxes
            that are not those of the IoUs; names the line.
    """
    if not records:
        raise ValueError(f"{where} has no groups: log some with log.rollouts_every")
    parts = []
    for number, record in enumerate(records, start=1):
        try:
            parts.append(window.checked_ious(record["ious"]))
        except (ValueError, KeyError) as error:
            reason = 'no "ious"' if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{where}: line {number} of those read: {reason}") from error
        if parts[-1].shape[1] != parts[0].shape[1]:
            raise ValueError(
                f"{where}: line {number} of those read has groups of {parts[-1].shape[1]}, those "
                f"before have {parts[0].shape[1]}: diagnose them one by one"
            )
        if parts[-1].shape[1] < 2:
            raise ValueError(
                f"{where}: line {number} of those read has groups of 1, which have nothing to "
                "compare: G must be 2 or more"
            )
        try:
            _check_boxes(record, parts[-1].shape)
        except ValueError as error:
            raise ValueError(f"{where}: line {number} of those read: {error}") from error
    ious = np.concatenate(parts)
    valid = areas = None
    if all("boxes_px" in record for record in records):
        said = [[_is_box(box) for box in group] for one in records for group in one["boxes_px"]]
        valid = np.array(said, np.bool_)
    unit = "of the image"
    if all("target_boxes_px" in record for record in records):
        boxes = np.array([box for one in records for box in one["target_boxes_px"]], np.float64)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        ids = [name for one in records for name in one.get("ids", ())]
        sizes = [(image_sizes or {}).get(name) for name in ids]
        if len(sizes) == len(areas) and all(sizes):
            areas = areas / np.prod(np.array(sizes, np.float64), axis=1)
        else:
            unit = "px^2"
    return Groups(ious, valid, areas, unit)


def _check_boxes(record: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Refuses boxes that are not those of [B, G] completions, and targets that are not B boxes."""
    rows, size = shape
    if "boxes_px" in record:
        said = record["boxes_px"]
        if not _is_list(said, rows) or not all(_is_list(group, size) for group in said):
            raise ValueError(f"boxes_px must be {rows} lists of {size}, as ious are")
        for box in (box for group in said for box in group):
            if box not in (None, []) and not (_is_list(box, 4) and all(map(_is_side, box))):
                raise ValueError(f"boxes_px holds {box!r}: need [x1, y1, x2, y2], or null")
    if "target_boxes_px" in record:
        targets = record["target_boxes_px"]
        if not _is_list(targets, rows):
            raise ValueError(f"target_boxes_px must be a list of {rows} boxes, one a group of ious")
        for box in targets:
            if not (_is_list(box, 4) and all(map(_is_number, box))):
                raise ValueError(f"target_boxes_px holds {box!r}: need [x1, y1, x2, y2]")
    if "ids" in record and not (
        _is_list(record["ids"], rows) and all(isinstance(name, str) for name in record["ids"])
    ):
        raise ValueError(f"ids must be a list of {rows} strings, one a group of ious")


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _is_side(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_number(value: Any) -> bool:
    # Not math.isfinite, which fails with integers of some hundred digits.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_box(box: Any) -> bool:
    """Whether a completion's box is one; rollouts.jsonl has nulls where there was none."""
    return bool(box) and all(side is not None for side in box)
