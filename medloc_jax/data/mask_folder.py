# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images and their segmentation masks, paired by name: any mask folder, and PH2."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from medloc_jax.data import annotated, masks, picture

# What a mask's name may have and its image's has not; BUSI numbers the masks of one image.
_MASK_SUFFIX = re.compile(r"(?:[_-](?:segmentation|mask|lesion|seg|gt)(?:_\d+)?)?", re.IGNORECASE)
PH2_SUFFIX = "_lesion"
PH2_DIAGNOSES = {"0": "common nevus", "1": "atypical nevus", "2": "melanoma"}


@dataclasses.dataclass(frozen=True)
class Pair:
    """One image and its masks, before they are opened.

    Attributes:
        id: as AnnotatedImage.id.
        image_path: the image.
        mask_paths: one or more; each is one target.
        label: class of the image.
        group: patient or lesion.
        split: the data set's own.
    """

    id: str
    image_path: Path
    mask_paths: tuple[Path, ...]
    label: str | None = None
    group: str | None = None
    split: str | None = None


def read_pairs(
    pairs: Sequence[Pair],
    refused: annotated.Refusals,
    *,
    threshold: int = masks.THRESHOLD,
    each_component: bool = False,
) -> list[annotated.AnnotatedImage]:
    """Opens the masks, in threads, and scales their boxes to the images.

    Args:
        pairs: images and their masks.
        refused: gets the images whose mask, or header, cannot be used, and warnings of all-white
            masks and of other aspect ratios.
        threshold: grey values above it are target.
        each_component: one target a connected component instead of one a mask.

    Returns:
        One image a pair that could be read, in order.
    """

    def read(pair: Pair) -> tuple[annotated.AnnotatedImage, list[annotated.Refusal]]:
        width, height = picture.image_size(pair.image_path)
        targets, doubts = [], []
        for path in pair.mask_paths:
            mask = masks.read_mask(path, threshold=threshold)
            doubts += [annotated.Refusal(str(path), d) for d in masks.doubts(mask, width, height)]
            whole = masks.tight_box_px(mask)[None]
            targets += [
                annotated.Target(masks.scale_box_px(box, mask, width, height), pair.label)
                for box in (masks.component_boxes_px(mask) if each_component else whole)
            ]
        image = annotated.AnnotatedImage(
            id=pair.id,
            image_path=pair.image_path,
            width=width,
            height=height,
            targets=tuple(targets),
            label=pair.label,
            group=pair.group,
            split=pair.split,
        )
        return image, doubts

    results = annotated.for_each(
        read, pairs, refused, path_of=lambda pair: pair.image_path, what="masks"
    )
    for _, doubts in results:
        for doubt in doubts:
            refused.warn(doubt.path, doubt.reason)
    return [image for image, _ in results]


def read(
    source: Path,
    refused: annotated.Refusals,
    *,
    image_files: str = "images",
    mask_files: str = "masks",
    mask_suffix: str = "",
    threshold: int = masks.THRESHOLD,
) -> list[annotated.AnnotatedImage]:
    """Reads images and masks that are paired by their names.

    A mask belongs to the image of the same name, or of the same name less a suffix such as
    `_segmentation`, `_mask` or `_lesion`. Where a name occurs in several folders, the folders below
    `image_files` and `mask_files` must be the same too. Several masks of one image (`a_mask.png`,
    `a_mask_1.png`) are several targets.

    Args:
        source: the folder.
        refused: gets images without a mask, masks without an image, and files that do not open.
        image_files: a folder below `source`, searched with all below it, or a pattern with `*`.
        mask_files: the same; it may be the images' folder.
        mask_suffix: the only suffix that masks have; "": any of those above, or none.
        threshold: grey values above it (0..255) are target.

    Raises:
        ValueError: no image or no mask is found at all.
    """
    image_paths = _find(source, image_files, "image_files")
    mask_paths = _find(source, mask_files, "mask_files")
    suffix = re.compile(re.escape(mask_suffix)) if mask_suffix else _MASK_SUFFIX
    return read_pairs(_pair(image_paths, mask_paths, suffix, refused), refused, threshold=threshold)


def read_ph2(source: Path, refused: annotated.Refusals) -> list[annotated.AnnotatedImage]:
    """Reads PH2: each image in a folder of its own, lesion masks, diagnoses in PH2_dataset.txt.

    Args:
        source: `PH2Dataset`, or a folder that holds it.
        refused: gets incomplete images.

    Raises:
        ValueError: there is no `*_Dermoscopic_Image` folder below `source`.
    """
    image_paths = _find(source, "**/*_Dermoscopic_Image/*.bmp", "source")
    mask_paths = _find(source, f"**/*{PH2_SUFFIX}/*{PH2_SUFFIX}.bmp", "source")
    diagnoses = _ph2_diagnoses(source, refused)
    pairs = []
    for pair in _pair(image_paths, mask_paths, re.compile(PH2_SUFFIX), refused):
        if diagnoses is None:
            pairs.append(pair)
        elif pair.id in diagnoses:
            pairs.append(dataclasses.replace(pair, label=diagnoses[pair.id]))
        else:
            refused.add(pair.image_path, "has no row in PH2_dataset: add its diagnosis")
    return read_pairs(pairs, refused)


def _ph2_diagnoses(source: Path, refused: annotated.Refusals) -> dict[str, str] | None:
    """Diagnosis by image, from the table in any form, less the legend; None without a table."""
    tables = sorted(source.rglob("PH2_dataset.txt")) or sorted(source.rglob("PH2_dataset.csv"))
    if not tables:
        refused.note("There is no PH2_dataset.txt, so no image has a diagnosis.")
        return None
    table = tables[0]
    lines = table.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    rows = [[cell.strip() for cell in re.split(r"\|\||\t|,", line)] for line in lines]
    header = next((row for row in rows if "Name" in row and "Clinical Diagnosis" in row), None)
    if header is None:
        raise ValueError(f"{table}: no line names the columns Name and Clinical Diagnosis")
    name_at, diagnosis_at = header.index("Name"), header.index("Clinical Diagnosis")
    diagnoses: dict[str, str] = {}
    for line, row in enumerate(rows, start=1):
        if len(row) <= name_at or not re.fullmatch(r"IMD\d+", row[name_at]):
            continue
        value = row[diagnosis_at] if len(row) > diagnosis_at else ""
        if value in PH2_DIAGNOSES:
            diagnoses[row[name_at]] = PH2_DIAGNOSES[value]
        else:
            refused.add(table, f"clinical diagnosis {value!r}: it must be 0, 1 or 2", line)
    return diagnoses


class _Found(NamedTuple):
    """A file, and its name below the folder that was searched."""

    path: Path
    name: Path


_ByStem = Mapping[str, Sequence[_Found]]


def _find(source: Path, where: str, flag: str) -> list[_Found]:
    """Image files of a folder with all below it, or of a pattern, sorted."""
    if "*" in where:
        paths = [path for path in sorted(source.glob(where)) if picture.is_picture(path)]
        found = [_Found(path, path.relative_to(source)) for path in paths]
    else:
        folder = source / where
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder: name the right one with --{flag}")
        found = [_Found(path, path.relative_to(folder)) for path in picture.list_images(folder)]
    if not found:
        raise ValueError(f"{source / where}: holds no image: name the right files with --{flag}")
    return found


def _pair(
    images: Sequence[_Found],
    masks_found: Sequence[_Found],
    suffix: re.Pattern[str],
    refused: annotated.Refusals,
) -> list[Pair]:
    """Images with their masks, sorted by path; what has no partner is refused."""
    if {found.path for found in images} & {found.path for found in masks_found}:
        # One folder holds both: a mask is what has another file's name and a suffix.
        stems = _by_stem(images)
        are_masks = {
            found.path for found in masks_found if _image_stem(found, suffix, stems, itself=False)
        }
        images = [found for found in images if found.path not in are_masks]
        masks_found = [found for found in masks_found if found.path in are_masks]
    images = _one_per_name(images, refused)

    stems = _by_stem(images)
    masks_of: dict[Path, list[Path]] = {}
    for found in masks_found:
        candidates = stems.get(_image_stem(found, suffix, stems) or "", [])
        if len(candidates) > 1:
            candidates = [image for image in candidates if image.name.parent == found.name.parent]
        if len(candidates) == 1:
            masks_of.setdefault(candidates[0].path, []).append(found.path)
        else:
            refused.add(found.path, "no image has the name of this mask: add it, or drop the mask")
    pairs = []
    for found in images:
        if found.path not in masks_of:
            refused.add(found.path, "no mask has the name of this image: add it, or drop the image")
            continue
        unique = len(stems[found.path.stem]) == 1
        identity = found.path.stem if unique else found.name.with_suffix("").as_posix()
        pairs.append(Pair(identity, found.path, tuple(masks_of[found.path])))
    return pairs


def _by_stem(images: Sequence[_Found]) -> _ByStem:
    stems: dict[str, list[_Found]] = {}
    for found in images:
        stems.setdefault(found.path.stem, []).append(found)
    return stems


def _one_per_name(images: Sequence[_Found], refused: annotated.Refusals) -> list[_Found]:
    """Refuses `a.png` beside `a.jpg`: a mask could be either's."""
    first: dict[Path, _Found] = {}
    for found in images:
        other = first.setdefault(found.name.with_suffix(""), found)
        if other is not found:
            refused.add(found.path, f"{other.path} has the same name: keep one of the two")
    return list(first.values())


def _image_stem(
    mask: _Found, suffix: re.Pattern[str], stems: _ByStem, *, itself: bool = True
) -> str | None:
    """The longest image name that a mask's name consists of, a suffix apart."""
    stem = mask.path.stem
    for end in range(len(stem) if itself else len(stem) - 1, 0, -1):
        if stem[:end] in stems and suffix.fullmatch(stem[end:]):
            return stem[:end]
    return None
