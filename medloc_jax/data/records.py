# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the files of a box format say, before an image is looked at, and the one way on from there.

The rules that hold for every format:

* A box may reach over the edge of its image by half a pixel at most, which is rounding; it then
  ends at the edge, and a note tells how many such boxes there are. Beyond that it is refused.
* An image of which one box is refused is left out whole: an image with half its boxes is wrong. An
  exact copy of another box is refused alone, because nothing is lost with it.
* Two descriptions of one image are both refused: which is right cannot be told.
* An image without a box is refused: there is nothing to ask of it.
* The stated size of an image must be its real one; 0 x 0 counts as not stated.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from medloc_jax.data import annotated, picture

# A box may reach this far over the edge of its image: rounding, in pixels.
EDGE_TOLERANCE_PX = 0.5

NO_BOX = "no box, so there is nothing to ask of it: annotate it, or leave it out"


class RawBox(NamedTuple):
    """One box as a file has it.

    Attributes:
        xyxy: half-open; pixels, or fractions of the image where its record says so.
        label: class, where the file names one.
        line: of the file, from 1, where it has lines that say something.
        name: what a message calls it, such as "annotation 17".
    """

    xyxy: annotated.Box
    label: str | None = None
    line: int | None = None
    name: str = "box"


@dataclasses.dataclass
class Record:
    """What a file says about one image.

    Attributes:
        path: the annotation file.
        image_path: the image file.
        boxes: in the order of the file; an empty one is refused later.
        line: of the file, where the image has one.
        in_unit: boxes are fractions of the image's width and height.
        stated_size: (width, height) in px, where the file says it.
        group: patient or lesion.
        split: "train", "val", "test" or None.
        query: the file's own question.
        broken: a box was refused already, so the image is left out.
    """

    path: Path
    image_path: Path
    boxes: list[RawBox] = dataclasses.field(default_factory=list)
    line: int | None = None
    in_unit: bool = False
    stated_size: tuple[int, int] | None = None
    group: str | None = None
    split: str | None = None
    query: str | None = None
    broken: bool = False


def box_of(values: object) -> annotated.Box:
    """Four JSON numbers as a box.

    Raises:
        ValueError: they are not four numbers.
    """
    if not isinstance(values, list | tuple) or len(values) != 4:
        raise ValueError(f"{values!r} is not a list of four numbers: correct it")
    if any(type(value) not in (int, float) for value in values):
        raise ValueError(f"{values!r} is not four numbers: correct it")
    try:
        x1, y1, x2, y2 = (float(value) for value in values)
    except OverflowError as error:
        raise ValueError("a number is too large for a coordinate: correct it") from error
    return x1, y1, x2, y2


def to_images(
    records: Sequence[Record],
    root: Path,
    refused: annotated.Refusals,
    *,
    what: str,
    repeats: bool = False,
) -> list[annotated.AnnotatedImage]:
    """Reads the images' headers, checks the boxes against them, and makes pixels of fractions.

    Pixels are not decoded here: `importing.check_images` does that for every reader.

    Args:
        records: of one data set.
        root: the folder that all images are below.
        refused: gets images whose header cannot be read, and boxes that cannot be used.
        what: the progress bar's name.
        repeats: whether several records may ask of the same image.

    Raises:
        ValueError: the first refusal, when strict.
    """
    records = _refuse_early(records, refused, repeats=repeats)
    paths = list(dict.fromkeys(record.image_path for record in records))
    sizes = dict(
        annotated.for_each(
            lambda path: (path, picture.image_size(path)),
            paths,
            refused,
            path_of=lambda path: path,
            what=what,
        )
    )
    ids = _ids([record.image_path for record in records], root)
    images, clipped = [], 0
    for record, name in zip(records, ids, strict=True):
        if record.image_path not in sizes:
            continue
        size = sizes[record.image_path]
        targets, moved = _targets(record, size, refused)
        if targets:
            clipped += moved
            images.append(_image(record, name, size, targets))
    if clipped:
        refused.note(
            f"{clipped} boxes reached over the edge of their image by at most {EDGE_TOLERANCE_PX} "
            "px, which is rounding: they end at the edge."
        )
    return images


def _image(
    record: Record, name: str, size: tuple[int, int], targets: tuple[annotated.Target, ...]
) -> annotated.AnnotatedImage:
    return annotated.AnnotatedImage(
        id=name,
        image_path=record.image_path,
        width=size[0],
        height=size[1],
        targets=targets,
        group=record.group,
        split=record.split,
        query=record.query,
    )


def _refuse_early(
    records: Sequence[Record], refused: annotated.Refusals, *, repeats: bool
) -> list[Record]:
    """What can be judged without the image: no box, a box refused before, an image twice."""
    described = collections.Counter(record.image_path for record in records)
    kept = []
    for record in records:
        if record.broken:
            continue
        if not record.boxes:
            refused.add(record.image_path, f"{NO_BOX} ({_place(record)})")
        elif described[record.image_path] > 1 and not repeats:
            # Which of them is right cannot be told, so none is taken.
            refused.add(
                record.path,
                f"image {record.image_path} is described {described[record.image_path]} times: "
                "keep one description",
                record.line,
            )
        else:
            kept.append(record)
    return kept


def _place(record: Record) -> str:
    return str(record.path) if record.line is None else f"{record.path}:{record.line}"


def _targets(
    record: Record, size: tuple[int, int], refused: annotated.Refusals
) -> tuple[tuple[annotated.Target, ...], int]:
    """The boxes of a record in pixels, and how many were cut at the edge; none if one is wrong."""
    if record.stated_size not in (None, (0, 0), size):
        width, height = record.stated_size or size
        turned = ", turned by a quarter" if (height, width) == size else ""
        refused.add(
            record.path,
            f"image {record.image_path} is said to be {width} x {height} px and is "
            f"{size[0]} x {size[1]}{turned}: boxes must be in pixels of the stored image",
            record.line,
        )
        return (), 0
    targets: dict[annotated.Target, None] = {}
    clipped, good = 0, True
    for raw in record.boxes:
        try:
            box, moved = _checked(_pixels(raw.xyxy, size) if record.in_unit else raw.xyxy, size)
        except ValueError as error:
            good = False
            reason = f"{raw.name}: {error}; image {record.image_path} is left out"
            refused.add(record.path, reason, raw.line)
            continue
        target = annotated.Target(box, raw.label)
        if target in targets:
            refused.add(
                record.path,
                f"{raw.name} of image {record.image_path} is a copy of another: delete it",
                raw.line,
            )
            continue
        targets[target] = None
        clipped += moved
    return (tuple(targets), clipped) if good else ((), 0)


def _pixels(xyxy: annotated.Box, size: tuple[int, int]) -> annotated.Box:
    width, height = size
    x1, y1, x2, y2 = xyxy
    return x1 * width, y1 * height, x2 * width, y2 * height


def _checked(box: annotated.Box, size: tuple[int, int]) -> tuple[annotated.Box, bool]:
    """The box within its image, and whether rounding was cut off; raises ValueError(reason)."""
    shown = "[" + ", ".join(f"{value:g}" for value in box) + "]"
    width, height = size
    x1, y1, x2, y2 = box
    if not all(math.isfinite(value) for value in box):
        raise ValueError(f"{shown} is not finite: correct it")
    if x2 < x1 or y2 < y1:
        raise ValueError(f"{shown} is reversed: the first corner must be the upper left one")
    if x2 == x1 or y2 == y1:
        raise ValueError(f"{shown} is empty: correct it, or delete it")
    if max(-x1, -y1, x2 - width, y2 - height) > EDGE_TOLERANCE_PX:
        raise ValueError(
            f"{shown} is outside its image of {width} x {height} px: correct it, or see whether "
            "its numbers are of another kind (pixels, fractions, width and height)"
        )
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise ValueError(f"{shown} is outside its image of {width} x {height} px: correct it")
    return inside, inside != tuple(box)


def _ids(paths: Sequence[Path], root: Path) -> list[str]:
    """A name for each: the stem where that is unique, else with folders, else with the suffix.

    Several questions on one image are numbered, as in name#1.
    """
    names: dict[Path, str] = {}
    waiting = list(dict.fromkeys(paths))
    for name_of in (
        lambda path: path.stem,
        lambda path: path.relative_to(root).with_suffix("").as_posix(),
        lambda path: path.relative_to(root).as_posix(),
    ):
        found = {path: name_of(path) for path in waiting}
        counts = collections.Counter(found.values())
        names |= {path: name for path, name in found.items() if counts[name] == 1}
        waiting = [path for path in waiting if path not in names]
    questions = collections.Counter(paths)
    seen: collections.Counter[Path] = collections.Counter()
    ids = []
    for path in paths:
        seen[path] += 1
        ids.append(names[path] if questions[path] == 1 else f"{names[path]}#{seen[path]}")
    return ids
