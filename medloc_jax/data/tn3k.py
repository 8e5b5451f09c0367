# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""TN3K: thyroid ultrasound with nodule masks, in its published layout.

`trainval-image/0000.jpg` and `trainval-mask/0000.jpg`, `test-image` and `test-mask`: greyscale
JPEG. Labels stand in CSV files without a header, folds in JSON as indices into the names in
numerical order.

The paper tests on 544 images where 614 are published, and on 544 of the published test masks there
is a single connected component. That is the rule `nodules="one"`: images with one 8-connected
component of their mask, in train and test. 8-connected, so that a JPEG's rough edge adds nothing.
"""

import csv
import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from medloc_jax.data import annotated, mask_folder, picture

PARTS = {"trainval": "train", "test": "test"}  # folder prefix -> split
LABELS = {"0": "benign", "1": "malignant", "": None}
PAPER_TEST_IMAGES = 544
NODULES = ("one", "all", "each")


def read(
    source: Path, refused: annotated.Refusals, *, nodules: str = "one", fold: int = -1
) -> list[annotated.AnnotatedImage]:
    """Reads both parts with their official split.

    Args:
        source: `tn3k`, or a folder that holds it.
        refused: gets images without a mask, masks without an image, and bad lines of the labels.
        nodules: "one": images with one nodule; "all": every image, the box of all its nodules;
            "each": every image, one target a nodule.
        fold: 0 to 4 splits trainval into train and val as published; -1: all of it is train.

    Raises:
        ValueError: an option is unknown, the layout is another, or the fold does not fit it.
    """
    if nodules not in NODULES:
        raise ValueError(f"--nodules={nodules}: choose one of {', '.join(NODULES)}")
    if not -1 <= fold <= 4:
        raise ValueError(f"--fold={fold}: choose one of 0 to 4, or -1 for no fold")
    folder = source / "tn3k" if (source / "tn3k").is_dir() else source
    pairs = []
    for part, split in PARTS.items():
        found = _pairs_of_part(folder, part, split, refused)
        if part == "trainval" and fold >= 0:
            found = _fold_pairs(found, folder, fold)
        pairs += found
    complete = [pair for pair in pairs if pair.mask_paths]
    for pair in pairs:
        if not pair.mask_paths:
            part = pair.image_path.parent.name.removesuffix("-image")
            refused.add(pair.image_path, f"has no mask in {part}-mask: add it, or drop the image")
    images = mask_folder.read_pairs(complete, refused, each_component=True)
    return _choose(images, nodules, refused)


def _pairs_of_part(
    folder: Path, part: str, split: str, refused: annotated.Refusals
) -> list[mask_folder.Pair]:
    """Images in numerical order, each with its mask if there is one."""
    images = _numbered(folder / f"{part}-image", refused)
    masks = _numbered(folder / f"{part}-mask", refused)
    if not images and not masks:
        raise ValueError(
            f"{folder}: {part}-image and {part}-mask are missing or empty: give the folder that "
            "holds trainval-image, trainval-mask, test-image and test-mask"
        )
    for number in sorted(masks.keys() - images.keys()):
        refused.add(masks[number], f"has no image in {part}-image: add it, or drop the mask")
    labels = _read_labels(folder / f"label4{part}.csv", images.keys(), refused)
    return [
        mask_folder.Pair(
            id=f"{part}-{images[number].stem}",
            image_path=images[number],
            mask_paths=(masks[number],) if number in masks else (),
            label=labels.get(number),
            split=split,
        )
        for number in sorted(images)
    ]


def _numbered(folder: Path, refused: annotated.Refusals) -> dict[int, Path]:
    """Image files by their number: some copies write 0.jpg for 0000.jpg."""
    if not folder.is_dir():
        return {}
    files: dict[int, Path] = {}
    for path in picture.list_images(folder):
        if not (path.stem.isascii() and path.stem.isdecimal()):
            refused.add(path, "is not named by a number, such as 0000.jpg: rename or remove it")
        elif files.setdefault(int(path.stem), path) is not path:
            refused.add(path, f"has the number of {files[int(path.stem)].name}: keep one")
    return files


def _read_labels(
    table: Path, numbers: Collection[int], refused: annotated.Refusals
) -> dict[int, str | None]:
    """Lines `0000.jpg,1` without a header; what is after the comma may be empty."""
    if not table.is_file():
        if numbers:
            refused.warn(table, "is not there, so its images have no label, benign or malignant")
        return {}
    labels: dict[int, str | None] = {}
    with open(table, encoding="utf-8-sig", newline="") as file:
        for line, cells in enumerate(csv.reader(file), start=1):
            if not any(cells):
                continue
            name, value = (cell.strip() for cell in (*cells, "", "")[:2])
            stem = Path(name).stem
            if not (stem.isascii() and stem.isdecimal()) or value not in LABELS:
                refused.add(table, f"{','.join(cells)!r} is not like 0000.jpg,1: mend it", line)
            elif int(stem) not in numbers:
                refused.add(table, f"{name} is not among the images: add it, or drop it", line)
            elif labels.setdefault(int(stem), LABELS[value]) != LABELS[value]:
                refused.add(table, f"{name} has another label in an earlier line: keep one", line)
    return labels


def _fold_pairs(
    pairs: Sequence[mask_folder.Pair], folder: Path, fold: int
) -> list[mask_folder.Pair]:
    """Puts the trainval images into train and val as a published fold says."""
    path = folder / f"tn3k-trainval-fold{fold}.json"
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
        split_of = {int(index): split for split in ("train", "val") for index in parts[split]}
        count = sum(len(parts[split]) for split in ("train", "val"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: is not readable as {{"val": [...], "train": [...]}} ({error!r}): replace it, '
            "or leave --fold away"
        ) from error
    if sorted(split_of) != list(range(len(pairs))) or count != len(pairs):
        # The indices count through the sorted names: with a name missing they mean other images.
        raise ValueError(
            f"{path}: has {count} indices, up to {max(split_of, default=-1)}, and trainval-image "
            f"{len(pairs)} images: complete the folder, or leave --fold away"
        )
    return [dataclasses.replace(pair, split=split_of[index]) for index, pair in enumerate(pairs)]


def _choose(
    images: Sequence[annotated.AnnotatedImage], nodules: str, refused: annotated.Refusals
) -> list[annotated.AnnotatedImage]:
    """Applies the rule for several nodules, and counts what it does."""
    single = [image for image in images if len(image.targets) == 1]
    tests = sum(image.split == "test" for image in images)
    single_tests = sum(image.split == "test" for image in single)
    refused.note(
        f"One nodule (one connected component of the mask): {len(single)} of {len(images)} images, "
        f"{single_tests} of {tests} test images; the paper tests on {PAPER_TEST_IMAGES}."
    )
    if nodules == "each":
        return list(images)
    if nodules == "all":
        return [dataclasses.replace(image, targets=(_union(image),)) for image in images]
    for image in images:
        if len(image.targets) != 1:
            refused.leave_out(
                image.image_path,
                f"{len(image.targets)} nodules, and --nodules=one keeps images with one: "
                "--nodules=all keeps it with the box of all, --nodules=each with a box a nodule",
            )
    return single


def _union(image: annotated.AnnotatedImage) -> annotated.Target:
    corners = list(zip(*(target.box_px for target in image.targets), strict=True))
    box = (min(corners[0]), min(corners[1]), max(corners[2]), max(corners[3]))
    return annotated.Target(box, image.label)
