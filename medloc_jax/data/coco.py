# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""COCO JSON: `images`, `annotations` with bbox [x, y, width, height] in pixels, `categories`.

Files are found by content, so official names (annotations/instances_train2017.json), Roboflow's
(train/_annotations.coco.json) and others do. The split is told by the file's name and folders.
"""

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medloc_jax.data import annotated, records, source_folder

# Extra keys of an image under which data sets store what must not cross splits.
GROUP_KEYS = ("group", "patient_id", "lesion_id", "case_id", "subject_id")


def read(
    source: Path, refused: annotated.Refusals, *, annotations: str = ""
) -> list[annotated.AnnotatedImage]:
    """Reads a data set in COCO's format.

    Args:
        source: its folder, or the annotation file.
        refused: gets every image and annotation that cannot be used.
        annotations: the file in the folder, several separated by commas; "": found by content,
            one alone or one for each split.

    Raises:
        ValueError: no annotation file, or several without a choice; the first refusal, when
            strict.
    """
    root = source_folder.folder_of(source)
    files = source_folder.annotation_files(
        *(source, root, annotations, find_files),
        looked_for="JSON files with `images` and `annotations`",
    )
    return collect(files, root, refused, complete=not annotations and source.is_dir())


def collect(
    files: Mapping[Path, str | None],
    root: Path,
    refused: annotated.Refusals,
    *,
    complete: bool = True,
) -> list[annotated.AnnotatedImage]:
    """Reads the given files, each with its split, as one data set.

    Args:
        files: the annotation files, with their splits.
        root: the folder that the images are below.
        refused: gets every image and annotation that cannot be used.
        complete: whether the files should name every image below `root`.
    """
    finder = source_folder.ImageFinder(root)
    found: list[records.Record] = []
    for path, split in files.items():
        found += _records(path, split, finder, refused)
    if complete:
        finder.refuse_unnamed(refused)
    return records.to_images(found, root, refused, what="COCO images")


def find_files(root: Path) -> dict[Path, str | None]:
    """Every file below `root` that is COCO's object detection format, with its split."""
    return {
        path: source_folder.split_of_file(path, root)
        for path in sorted(root.rglob("*.json"))
        if not path.name.startswith((".", "captions_", "person_keypoints_")) and _is_coco(path)
    }


def _is_coco(path: Path) -> bool:
    try:
        content = source_folder.load_json(path)
    except ValueError:
        return False
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The three lists of a file; raises ValueError(reason)."""
    content = source_folder.load_json(path)
    lists = {}
    for key in ("images", "annotations", "categories"):
        value = content.get(key) if isinstance(content, dict) else None
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ValueError(f"{key} is missing or not a list of objects: export it as COCO again")
        lists[key] = value
    return lists


def _records(
    path: Path, split: str | None, finder: source_folder.ImageFinder, refused: annotated.Refusals
) -> list[records.Record]:
    """One record an image of one file."""
    try:
        content = _load(path)
    except ValueError as error:
        refused.add(path, str(error))
        return []
    categories = {str(each.get("id")): each.get("name") for each in content["categories"]}
    by_id = _by_id(content["images"], path, split, finder, refused)
    seen: set[str] = set()
    for number, annotation in enumerate(content["annotations"]):
        name = f"annotation {annotation.get('id', f'number {number + 1}')}"
        record = by_id.get(str(annotation.get("image_id")))
        try:
            if str(annotation.get("image_id")) not in by_id:
                raise ValueError(f"image_id {annotation.get('image_id')!r} is no image of the file")
            if "id" in annotation and str(annotation["id"]) in seen:
                raise ValueError("its id stands twice: give every annotation its own")
            seen.add(str(annotation.get("id")))
            box = _box(annotation, categories, name)
        except ValueError as error:
            where = "" if record is None else f"; image {record.image_path} is left out"
            refused.add(path, f"{name}: {error}{where}")
            if record is not None:
                record.broken = True
            continue
        if record is not None:  # else the image was refused, with all of its boxes
            record.boxes.append(box)
    return [record for record in by_id.values() if record is not None]


def _by_id(
    images: list[dict[str, Any]],
    path: Path,
    split: str | None,
    finder: source_folder.ImageFinder,
    refused: annotated.Refusals,
) -> dict[str, records.Record | None]:
    """The images of a file by their id, None for one that is refused.

    Ids are compared as text, because some exports write numbers as strings in one list only.
    """
    counts = collections.Counter(str(image.get("id")) for image in images)
    by_id: dict[str, records.Record | None] = {}
    for image in images:
        key = str(image.get("id"))
        by_id[key] = None
        try:
            record = _record(image, path, split, finder)
            if "id" not in image:
                raise ValueError(f"image {image['file_name']!r} has no id: give it one")
            if counts[key] > 1:
                raise ValueError(
                    f"image {image['file_name']!r}: its id {key} stands {counts[key]} times: give "
                    "every image its own"
                )
            by_id[key] = record
        except ValueError as error:
            refused.add(path, str(error))
    return by_id


def _record(
    image: dict[str, Any], path: Path, split: str | None, finder: source_folder.ImageFinder
) -> records.Record:
    """An image without its boxes; raises ValueError(reason)."""
    name = image.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"image of id {image.get('id')}: file_name is {name!r}: name the file")
    image_path = finder.find(name, near=path, split=split)
    size = (image.get("width"), image.get("height"))
    if size != (None, None) and not all(type(side) is int for side in size):
        raise ValueError(f"image {name!r}: width and height are {size}: write whole pixels")
    group = next((str(image[key]) for key in GROUP_KEYS if image.get(key) is not None), None)
    return records.Record(
        path=path,
        image_path=image_path,
        stated_size=None if size == (None, None) else size,  # pyright: ignore[reportArgumentType]
        group=group,
        split=split or source_folder.split_of_image(image_path, finder.root),
    )


def _box(annotation: dict[str, Any], categories: Mapping[str, object], name: str) -> records.RawBox:
    """The box of one annotation; raises ValueError(reason)."""
    if annotation.get("iscrowd"):
        raise ValueError("a crowd (iscrowd) covers several targets: annotate them one by one")
    label = categories.get(str(annotation.get("category_id")))
    if not isinstance(label, str):
        raise ValueError(
            f"category_id {annotation.get('category_id')!r} is not in categories: add it there"
        )
    try:
        x, y, width, height = records.box_of(annotation.get("bbox"))
    except ValueError as error:
        raise ValueError(f"bbox: {error}") from error
    return records.RawBox((x, y, x + width, y + height), label, name=name)
