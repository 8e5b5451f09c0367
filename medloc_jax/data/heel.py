# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""HEEL: lateral X-rays of the foot, classes Normal, Heel Spur and Sever, one box each.

The layout in which the data set is handed out is not published, so it is detected: boxes in YOLO's,
VOC's, COCO's or CSV's format; the class from the part of an image's path that names one, the
nearest to the file first; the split from folder names, where they tell one. Words for its classes
are all that tells HEEL from any other data set with boxes: without a single one it is refused.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from medloc_jax.data import annotated, coco, csv_boxes, voc, yolo

CLASSES = ("Normal", "Heel Spur", "Sever")
# What a class is called in paths and labels; `abnormal` is no class.
_PATTERNS = {
    "Normal": re.compile(r"(?<![a-z])normal", re.IGNORECASE),
    "Heel Spur": re.compile(r"spur", re.IGNORECASE),
    "Sever": re.compile(r"sever", re.IGNORECASE),
}


def _has_coco(source: Path) -> bool:
    return bool(coco.find_files(source))


def _has_csv(source: Path) -> bool:
    try:
        return bool(csv_boxes.find_files(source))
    except ValueError:  # a table without boxes, such as a list of diagnoses
        return False


# How each format is noticed.
FORMATS: dict[str, Callable[[Path], bool]] = {
    "yolo": yolo.has_labels,
    "voc": voc.has_annotations,
    "coco": _has_coco,
    "csv": _has_csv,
}


def detect(source: Path) -> str:
    """The format of the boxes below a folder, an entry of FORMATS.

    Raises:
        ValueError: none, or several.
    """
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder: give --source")
    found = [name for name, is_there in FORMATS.items() if is_there(source)]
    if not found:
        raise ValueError(
            f"{source}: no boxes: looked for YOLO label files, VOC XML, COCO JSON and CSV with "
            "columns of a box: put one of them below the folder"
        )
    if len(found) > 1:
        raise ValueError(
            f"{source}: boxes in several formats ({', '.join(found)}): choose one with --boxes="
            f"{found[0]}"
        )
    return found[0]


def read(
    source: Path, refused: annotated.Refusals, *, boxes: str = "", columns: str = ""
) -> list[annotated.AnnotatedImage]:
    """Reads HEEL in whichever layout it is.

    Args:
        source: its folder.
        refused: gets every file and line that cannot be used.
        boxes: the format of the boxes, an entry of FORMATS; "": detected.
        columns: as in `csv_boxes.read`, for boxes in CSV.

    Raises:
        ValueError: no boxes, several formats without a choice, or no path and no label that has a
            word for a class; the first refusal, when strict.
    """
    if boxes and boxes not in FORMATS:
        raise ValueError(f"--boxes={boxes}: it must be one of {', '.join(FORMATS)}")
    name = boxes or detect(source)
    if not boxes:
        refused.note(f"The boxes were found to be in the format {name}.")
    images = _read_boxes(name, source, refused, columns)
    if images and not any(_names_a_class(image, source) for image in images):
        targets = [target for image in images for target in image.targets]
        labels = sorted({target.label for target in targets if target.label})
        raise ValueError(
            f"{source}: this is not known as HEEL: no image's path below it and no label has "
            f"normal, spur or sever in it (labels: {', '.join(labels[:5]) or 'none'}); "
            f"for other data use `medloc prepare {name}` with a --query"
        )
    return [_with_class(image, source) for image in images]


def _read_boxes(
    name: str, source: Path, refused: annotated.Refusals, columns: str
) -> list[annotated.AnnotatedImage]:
    """Boxes of any format; each class may have annotation files of its own."""
    if name == "yolo":
        return yolo.collect(source, refused, needs_names=False)
    if name == "voc":
        return voc.read(source, refused)
    if name == "coco":
        return coco.collect(coco.find_files(source), source, refused)
    return csv_boxes.collect(
        csv_boxes.find_files(source, columns=columns), source, refused, columns=columns
    )


def _names_a_class(image: annotated.AnnotatedImage, source: Path) -> bool:
    """Whether any word for a class stands in the path or a label, even of several classes."""
    parts = image.image_path.relative_to(source).parts
    names = (*parts, *(target.label or "" for target in image.targets))
    return any(pattern.search(name) for pattern in _PATTERNS.values() for name in names)


def class_of(*names: str) -> str | None:
    """The class that path parts or labels name; the last that names exactly one counts."""
    for name in reversed(names):
        found = [each for each, pattern in _PATTERNS.items() if pattern.search(name)]
        if len(found) == 1:
            return found[0]
    return None


def _with_class(image: annotated.AnnotatedImage, source: Path) -> annotated.AnnotatedImage:
    """The image with its class, from its path, else from the labels of its boxes."""
    label = class_of(*image.image_path.relative_to(source).parts)
    if label is None:
        named = {class_of(target.label or "") for target in image.targets}
        label = named.pop() if len(named) == 1 else None
    targets = tuple(
        target._replace(label=class_of(target.label or "") or target.label or label)
        for target in image.targets
    )
    return dataclasses.replace(image, label=label, targets=targets)
