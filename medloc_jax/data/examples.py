# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The manifest: one question on one image a line, read strictly, selected by split."""

import collections
import dataclasses
import json
import math
import os
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set

import numpy as np
from PIL import Image

from medloc_jax import storage

SPLITS = ("train", "val", "test")
MANIFEST_NAME = "manifest.jsonl"


@dataclasses.dataclass(frozen=True)
class Example:
    """One line of a manifest, and the folder its image path starts from."""

    id: str
    image: str  # as the manifest has it, relative to `folder`
    width: int  # px of the stored image
    height: int
    query: str  # what to find
    boxes_px: tuple[tuple[float, float, float, float], ...]  # xyxy, half-open; exactly one for now
    label: str | None  # class of the target, where known
    split: str  # an entry of SPLITS
    group: str | None  # patient or lesion that must not cross splits
    source: str  # data set
    folder: str = ""
    # "MANIFEST:LINE", for messages.
    line: str = dataclasses.field(default="", compare=False, repr=False)

    @property
    def image_path(self) -> str:
        """Where the image lies on disk."""
        return os.path.join(self.folder, self.image)

    @property
    def box_px(self) -> tuple[float, float, float, float]:
        """The one target box, xyxy in pixels of the stored image."""
        return self.boxes_px[0]

    def to_json(self) -> dict[str, object]:
        """The object that stands in the manifest for this example."""
        line = {name: getattr(self, name) for name in _KEYS}
        line["boxes_px"] = [list(box) for box in self.boxes_px]
        return line


_KEYS = tuple(
    field.name for field in dataclasses.fields(Example) if field.name not in ("folder", "line")
)
_STRINGS = ("id", "image", "query", "source")
_OPTIONAL_STRINGS = ("label", "group")


def write_manifest(path: str | os.PathLike[str], examples: Iterable[Example]) -> None:
    """Writes one JSON object a line; image paths are taken to be relative to the manifest."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(example.to_json()) + "\n" for example in examples)


def load_manifest(
    path: str | os.PathLike[str], *, check_images: bool = True, unreadable_train: bool = False
) -> list[Example]:
    """Reads a manifest, all splits, in file order.

    Args:
        path: a `manifest.jsonl`, or the folder that holds one. Image paths are relative to it.
        check_images: also open every image's header and compare its size with the line's (about
            0.1 ms each; nothing is decoded). That the file exists is always checked. In an object
            store only that: the size is compared when an image is loaded.
        unreadable_train: accept lines of split train whose image is gone or damaged.

    Raises:
        ValueError: for the first bad line, as "PATH:LINE: what: cure", with the number of further
            bad lines; or for a manifest that is missing or empty.
    """
    manifest = storage.path(path)
    if manifest.is_dir():
        manifest = manifest / MANIFEST_NAME
    try:
        lines = manifest.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(
            f"{manifest}: cannot be read ({error.strerror or error}): give the path of a "
            f"{MANIFEST_NAME}, or write one with `medloc prepare`"
        ) from error
    if not lines:
        raise ValueError(f"{manifest}: has no lines: write it again with `medloc prepare`")

    examples: list[Example] = []
    problems: list[str] = []
    line_of_id: dict[str, int] = {}
    split_of_group: dict[str, tuple[str, int]] = {}
    stored = storage.files_below(manifest.parent) if storage.is_remote(manifest) else None
    for number, line in enumerate(lines, start=1):
        try:
            example = _parse_line(line, str(manifest.parent), f"{manifest}:{number}")
            first = line_of_id.setdefault(example.id, number)
            if first != number:
                raise ValueError(
                    f"id {example.id!r} stands in line {first} already: give every line its own"
                )
            _check_group(example, number, split_of_group)
            must_open = example.split != "train" or not unreadable_train
            _check_image(example, stored, check_header=check_images, must_open=must_open)
        except ValueError as error:
            problems.append(f"{manifest}:{number}: {error}")
        else:
            examples.append(example)
    if problems:
        more = len(problems) - 1
        suffix = f" (and {more} more bad line{'s' if more > 1 else ''} of {len(lines)})"
        raise ValueError(problems[0] + (suffix if more else ""))
    return examples


def _parse_line(line: bytes, folder: str, place: str) -> Example:
    """One line of a manifest as an Example; raises ValueError("what: cure")."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except ValueError as error:
        reason = "empty line" if not line.strip() else f"not JSON ({error})"
        raise ValueError(f"{reason}: every line must be one JSON object in UTF-8") from None
    if not isinstance(fields, dict):
        raise ValueError(f"not a JSON object but {type(fields).__name__}: write {{...}}")
    missing = [key for key in _KEYS if key not in fields]
    if missing:
        raise ValueError(
            f"missing {', '.join(missing)}: every line has the keys {', '.join(_KEYS)}"
        )
    unknown = [key for key in fields if key not in _KEYS]
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}: the keys are {', '.join(_KEYS)}")
    for key in _STRINGS:
        if not isinstance(fields[key], str) or not fields[key].strip():
            raise ValueError(f"{key} is {fields[key]!r}: it must be a string with content")
    for key in _OPTIONAL_STRINGS:
        if fields[key] is not None and not isinstance(fields[key], str):
            raise ValueError(f"{key} is {fields[key]!r}: it must be a string or null")
    for key in ("width", "height"):
        # bool is an int to Python.
        if type(fields[key]) is not int or fields[key] < 1:
            raise ValueError(f"{key} is {fields[key]!r}: it must be a whole number of pixels > 0")
    if fields["split"] not in SPLITS:
        raise ValueError(f"split is {fields['split']!r}: it must be one of {', '.join(SPLITS)}")
    boxes = _parse_boxes(fields["boxes_px"], fields["width"], fields["height"])
    return Example(**{**fields, "boxes_px": boxes}, folder=folder, line=place)


def _parse_boxes(
    boxes: object, width: int, height: int
) -> tuple[tuple[float, float, float, float], ...]:
    """Checks `boxes_px` of one line against the image; raises ValueError("what: cure")."""
    if not isinstance(boxes, list) or not boxes:
        raise ValueError(f"boxes_px is {boxes!r}: it must be a list of one [x1, y1, x2, y2]")
    if len(boxes) > 1:
        raise ValueError(
            f"boxes_px holds {len(boxes)} boxes, and this version takes one target an example: "
            "run `medloc prepare` with --one_box=largest, --one_box=union or --one_box=split"
        )
    box = boxes[0]
    if (
        not isinstance(box, list)
        or len(box) != 4
        or any(type(value) not in (int, float) for value in box)
    ):
        raise ValueError(f"box {box!r}: it must be four numbers [x1, y1, x2, y2] in pixels")
    x1, y1, x2, y2 = box
    if not all(math.isfinite(value) for value in box):
        raise ValueError(f"box {box} is not finite: correct it in the source of the manifest")
    if x2 < x1 or y2 < y1:
        raise ValueError(f"box {box} is reversed: write it as [x1, y1, x2, y2], x1 < x2, y1 < y2")
    if x2 == x1 or y2 == y1:
        raise ValueError(f"box {box} is empty: x2 and y2 are exclusive, so x1 < x2 and y1 < y2")
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        raise ValueError(
            f"box {box} is outside its image of {width} x {height} px: "
            "boxes are in pixels of the stored image; clip or rescale it"
        )
    return ((float(x1), float(y1), float(x2), float(y2)),)


def _check_group(example: Example, number: int, split_of_group: dict[str, tuple[str, int]]) -> None:
    if example.group is None:
        return
    split, first = split_of_group.setdefault(example.group, (example.split, number))
    if split != example.split:
        raise ValueError(
            f"group {example.group!r} is in {example.split} here and in {split} in line {first}: "
            f"move it to one split, or accept the leak as {example.group}@{split} and "
            f"{example.group}@{example.split}"
        )


def _check_image(
    example: Example, stored: Set[str] | None, *, check_header: bool, must_open: bool
) -> None:
    """Raises ValueError when the image is missing or is not of the stated size.

    `stored`: what an object store has; None for a folder of this machine.
    """
    path = example.image_path
    if not (os.path.exists(path) if stored is None else path in stored):
        if not must_open:
            return
        raise ValueError(f"image {path} does not exist: paths start at the manifest")
    if not check_header or stored is not None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(example.image_path) as image:
                size = image.size
    except (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        if not must_open:
            return
        reason = "decompression bomb" if "bomb" in type(error).__name__.lower() else "not an image"
        raise ValueError(
            f"image {example.image_path} cannot be opened ({reason}): replace the file"
        ) from error
    if size != (example.width, example.height):
        raise ValueError(
            f"image {example.image_path} is {size[0]} x {size[1]} px, and the line says "
            f"{example.width} x {example.height}: boxes and size must be those of the stored file"
        )


def check_evaluated(examples: Iterable[Example]) -> None:
    """Refuses missing images outside split train, where a measure would lose examples.

    `load_manifest` with `unreadable_train` has let those pass that `cut_val` moved to val.

    Raises:
        ValueError: names the manifest's line and the image.
    """
    for example in examples:
        local = "://" not in example.image_path  # a store was asked for all of them at once
        if example.split != "train" and local and not os.path.exists(example.image_path):
            raise ValueError(
                f"{example.line}: image {example.image_path} of split {example.split} does not "
                "exist: data.missing_files=skip is for training alone; bring it back"
            )


def select(examples: Sequence[Example], split: str) -> list[Example]:
    """The examples of one split, in order.

    Raises:
        ValueError: `split` is unknown, or there is no example of it.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}")
    chosen = [example for example in examples if example.split == split]
    if not chosen:
        counts = collections.Counter(example.split for example in examples)
        there = ", ".join(f"{counts[name]} {name}" for name in SPLITS if counts[name]) or "none"
        where = f" of {examples[0].folder}/{MANIFEST_NAME}" if examples else ""
        cure = "raise data.val_fraction, or " if split == "val" else ""
        raise ValueError(
            f"no example{where} is in split {split!r} (there are: {there}): "
            f"{cure}choose a split that has examples"
        )
    return chosen


def cut_val(examples: Sequence[Example], fraction: float, seed: int) -> list[Example]:
    """Moves whole groups from train to val, where the manifest has no val.

    Which groups are moved depends on the set of groups, `fraction` and `seed`, not on the order
    of the lines. Lines without a group are grouped by their image, so that no image is in both.

    Args:
        examples: all splits.
        fraction: share of the train examples to move, in [0, 1); at least one group is moved, and
            at least one stays. 0 moves nothing.
        seed: of the choice.

    Returns:
        The examples in the same order, some of them with split "val".

    Raises:
        ValueError: `fraction` is out of range, or train has a single group.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"data.val_fraction is {fraction}: it must be at least 0 and below 1")
    train = [example for example in examples if example.split == "train"]
    if fraction == 0 or not train or any(example.split == "val" for example in examples):
        return list(examples)
    sizes = collections.Counter(_group_key(example) for example in train)
    if len(sizes) < 2:
        raise ValueError(
            f"train has one group ({len(train)} examples), so no val can be cut from it: "
            "set data.val_fraction=0 or add examples"
        )
    moved = _choose_groups(sizes, max(1, round(fraction * len(train))), seed)
    return [
        dataclasses.replace(example, split="val")
        if example.split == "train" and _group_key(example) in moved
        else example
        for example in examples
    ]


def _group_key(example: Example) -> tuple[str, str]:
    if example.group is not None:
        return ("group", example.group)
    return ("image", example.image)


def _choose_groups(sizes: Mapping[tuple[str, str], int], goal: int, seed: int) -> set[Hashable]:
    """Groups in seeded random order until they hold `goal` examples; one group is always left."""
    keys = sorted(sizes)
    order = np.random.default_rng(seed).permutation(len(keys))
    chosen: set[Hashable] = set()
    count = 0
    for index in order[:-1]:
        if count >= goal:
            break
        chosen.add(keys[index])
        count += sizes[keys[index]]
    return chosen
