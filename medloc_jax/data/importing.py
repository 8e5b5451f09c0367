# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From annotated images to what a data set folder holds.

OUT/manifest.jsonl   one question on one image a line
OUT/images/          copies or links; none where images are referred to where they are
OUT/refused.jsonl    every file that is not in the manifest, and warnings
OUT/statistics.json  (by evaluation.data_sheet, beside statistics.md and overlay.png)
"""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medloc_jax.data import (
    annotated,
    dicom,
    examples,
    output_folder,
    picture,
    questions,
    splits,
)

REFUSED_NAME = "refused.jsonl"
# How images get into the folder. Copies are the default: the folder can then be moved, packed and
# sent to another machine, and outlives the download it was made of.
PLACEMENTS = ("copy", "link", "reference")


class Checked(NamedTuple):
    """An image that opens, and the SHA-256 of its file."""

    image: annotated.AnnotatedImage
    digest: str


def check_images(
    images: Sequence[annotated.AnnotatedImage], refused: annotated.Refusals, *, placement: str
) -> list[Checked]:
    """Decodes every image whole, in threads, and checks its size, boxes and id.

    Args:
        images: as a reader gives them.
        refused: gets those that cannot be used.
        placement: an entry of PLACEMENTS; DICOM files are only ever rendered to a copy.

    Returns:
        Those that can be used, in order.
    """
    first: dict[str, annotated.AnnotatedImage] = {}
    unique = []
    for image in images:
        other = first.setdefault(image.id, image)
        if other is image:
            unique.append(image)
        else:
            refused.add(
                image.image_path, f"id {image.id!r} is that of {other.image_path}: keep one"
            )

    def check(image: annotated.AnnotatedImage) -> Checked:
        path = image.image_path
        if placement != "copy" and dicom.is_dicom(path):
            raise ValueError(
                "a DICOM file holds the patient's name, so it is not linked: --images=copy writes "
                "its pixels as PNG"
            )
        _check_boxes(image)
        width, height = picture.open_picture(path).size
        if (width, height) != (image.width, image.height):
            raise ValueError(
                f"the image is {width} x {height} px, and its annotation says {image.width} x "
                f"{image.height}: boxes must be in pixels of the stored image"
            )
        with open(path, "rb") as file:
            return Checked(image, hashlib.file_digest(file, "sha256").hexdigest())

    return annotated.for_each(
        check, unique, refused, path_of=lambda image: image.image_path, what="images"
    )


def _check_boxes(image: annotated.AnnotatedImage) -> None:
    if not image.targets:
        raise ValueError("the image has no box: an example needs one")
    for target in image.targets:
        x1, y1, x2, y2 = target.box_px
        if not (0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height):
            raise ValueError(
                f"box {list(target.box_px)} is empty or outside the image of {image.width} x "
                f"{image.height} px: correct the annotation"
            )


def ask_all(
    checked: Sequence[Checked],
    refused: annotated.Refusals,
    *,
    query: str | None,
    default_query: str,
    one_box: str,
) -> dict[str, list[questions.Question]]:
    """The questions of every image, by its id; images without any are left out.

    Args:
        checked: the images.
        refused: gets what cannot be asked.
        query: the user's query, which goes before the data set's own; None: there is none.
        default_query: where the image has no query of its own either.
        one_box: an entry of questions.ONE_BOX.

    Raises:
        ValueError: the query has an unknown placeholder, or the rule is unknown.
    """
    if one_box not in questions.ONE_BOX:
        raise ValueError(f"--one_box={one_box}: choose one of {', '.join(questions.ONE_BOX)}")
    questions.check_query(query or default_query)
    asked = {}
    for image, _ in checked:
        text = query or image.query or default_query
        found, problems = questions.ask(image, text, one_box)
        for problem in problems:
            refused.add_question(image.image_path, problem)
        if found:
            asked[image.id] = found
    without = len(checked) - len(asked)
    if without:
        refused.note(f"Images without a question left, and so not in the manifest: {without:,}.")
    _note_several(checked, asked, refused, one_box)
    return asked


def _note_several(
    checked: Sequence[Checked],
    asked: Mapping[str, Sequence[questions.Question]],
    refused: annotated.Refusals,
    one_box: str,
) -> None:
    """Says what the one-box rule has done."""
    if one_box == "split":
        found = [Counter(question.text for question in each) for each in asked.values()]
        repeated = sum(count for each in found for count in each.values() if count > 1)
        if repeated:
            refused.note(
                f"{repeated:,} examples ask the same of one image and want different boxes "
                "(--one_box=split): whichever is answered, the others count as missed."
            )
    elif one_box in ("largest", "union"):
        several = sum(
            len(image.targets) > len(asked[image.id]) for image, _ in checked if image.id in asked
        )
        if several:
            refused.note(
                f"{several:,} images have several boxes for a question; --one_box={one_box} has "
                "made one of them."
            )


def write_manifest(
    folder: Path,
    checked: Sequence[Checked],
    split_of: Sequence[str],
    asked: dict[str, list[questions.Question]],
    *,
    source: str,
    placement: str,
) -> list[examples.Example]:
    """Puts the images into place and writes the manifest, which is then read back.

    Args:
        folder: of `output_folder.new_folder`.
        checked: the images that have questions, with the data set's own groups; those that are in
            several splits become one a split, as a manifest promises that its groups do not cross.
        split_of: "train", "val" or "test" of each image.
        asked: the questions by image id.
        source: name of the data set.
        placement: an entry of PLACEMENTS.

    Returns:
        The examples, their image paths in `folder`.
    """
    images = splits.part_crossing_groups([item.image for item in checked], split_of)
    names = _place_images(folder, images, placement)
    lines = [
        examples.Example(
            id=question.id,
            image=name,
            width=image.width,
            height=image.height,
            query=question.text,
            boxes_px=(question.box_px,),
            label=question.label,
            split=split,
            group=image.group,
            source=source,
        )
        for image, name, split in zip(images, names, split_of, strict=True)
        for question in asked[image.id]
    ]
    examples.write_manifest(folder / examples.MANIFEST_NAME, lines)
    return examples.load_manifest(folder)


def _place_images(
    folder: Path, images: Sequence[annotated.AnnotatedImage], placement: str
) -> list[str]:
    """Copies, links or only refers to the images; their paths relative to the manifest."""
    if placement == "reference":
        # The folder is renamed within its parent, so that the way out of it stays the same.
        return [os.path.relpath(image.image_path.resolve(), folder) for image in images]
    (folder / "images").mkdir()
    names = _file_names(images)

    def place(path: Path) -> None:
        target = folder / names[path]
        if dicom.is_dicom(path):
            dicom.write_png(path, target)
        elif placement == "link":
            os.symlink(path.resolve(), target)
        else:
            shutil.copyfile(path, target)

    # What fails here, such as a full disk, is no fault of a file: it is raised.
    annotated.for_each(
        place,
        list(names),
        annotated.Refusals(strict=True),
        path_of=lambda path: path,
        what=placement,
    )
    return [names[image.image_path] for image in images]


def _file_names(images: Sequence[annotated.AnnotatedImage]) -> dict[Path, str]:
    """One plain file name an image file, made of its id; no two differ by case alone."""
    taken: set[str] = set()
    names: dict[Path, str] = {}
    for image in images:
        path = image.image_path
        if path in names:
            continue
        suffix = ".png" if dicom.is_dicom(path) else path.suffix
        stem = re.sub(r"[^\w.()+ -]", "_", image.id).strip(". ") or "image"
        name, number = f"{stem}{suffix}", 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}{suffix}"
        taken.add(name.lower())
        names[path] = f"images/{name}"
    return names


def write_record(folder: Path, statistics: Mapping[str, Any], refused: annotated.Refusals) -> None:
    """Writes the statistics, and every refusal, warning and file left out by a rule, one a line.

    A line is {"kind": "refused", "left_out" or "warning", "what": "file", "line" or "question",
    "path", "reason", "line"}.
    """
    content = dict(statistics) | {"written_by": output_folder.WRITTEN_BY}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (folder / output_folder.STATISTICS_NAME).write_text(text + "\n", encoding="utf-8")
    kinds = {"refused": refused.all, "left_out": refused.left_out, "warning": refused.warnings}
    with open(folder / REFUSED_NAME, "w", encoding="utf-8") as file:
        for kind, entries in kinds.items():
            for entry in entries:
                file.write(json.dumps({"kind": kind, **entry._asdict()}) + "\n")
