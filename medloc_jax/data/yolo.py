# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""YOLO: one text file an image, a line `class cx cy width height` a box, fractions of the image.

Layouts: images/ and labels/ side by side, at any depth (images/train, train/images), or labels
beside the images. A line of a polygon (segmentation, or the four corners of a turned box) gives the
tight box around it. Class names come from data.yaml, classes.txt, obj.names or `--names`.
"""

import dataclasses
import math
import os
from pathlib import Path

import yaml

from medloc_jax.data import annotated, picture, records, source_folder

_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "names.txt", "labels.txt")
# Text files that lie about and are no labels.
_OTHER_TEXTS = ("readme", "license", "classes", "labels", "names", "notes", "requirements")


@dataclasses.dataclass(frozen=True)
class Description:
    """What data.yaml and its relatives say of a data set.

    Attributes:
        names: class names by number; empty where there are none.
        splits: folder or image -> split, as data.yaml lists them.
        has_keypoints: lines hold keypoints after the box, so that they are no polygons.
    """

    names: dict[int, str]
    splits: dict[Path, str]
    has_keypoints: bool = False


def read(
    source: Path, refused: annotated.Refusals, *, names: str = ""
) -> list[annotated.AnnotatedImage]:
    """Reads a data set in YOLO's format.

    Args:
        source: its folder.
        refused: gets every image, label file and line that cannot be used.
        names: class names in order, separated by commas, or a file with one a line; "": from
            data.yaml, classes.txt or obj.names.

    Raises:
        ValueError: no label file, or no class names; the first refusal, when strict.
    """
    return collect(source, refused, names=names, needs_names=True)


def collect(
    source: Path, refused: annotated.Refusals, *, names: str = "", needs_names: bool
) -> list[annotated.AnnotatedImage]:
    """As `read`; without `needs_names`, classes of a set without names are None."""
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder: give --source")
    source = Path(os.path.normpath(source))
    pairs = find_files(source)
    if not any(label.is_file() for label in pairs.values()):
        raise ValueError(
            f"{source}: no label file: looked for labels/*.txt beside images/, and *.txt beside "
            "the images: give the folder that holds both as --source"
        )
    description = _describe(source, names)
    if not description.names and needs_names:
        raise ValueError(
            f"{source}: no class names: looked for data.yaml, {', '.join(_NAME_FILES)}: give them "
            "in order with --names=nodule,cyst"
        )
    _refuse_orphans(source, set(pairs.values()), refused)
    found = []
    for image_path, label_path in pairs.items():
        if not label_path.is_file():
            refused.add(image_path, f"no label file {label_path}: add it, or leave the image out")
            continue
        record = records.Record(
            path=label_path,
            image_path=image_path,
            in_unit=True,
            split=_split(image_path, description, source),
        )
        _read_labels(record, description, refused)
        found.append(record)
    return records.to_images(found, source, refused, what="YOLO images")


def find_files(root: Path) -> dict[Path, Path]:
    """Every image below `root`, and where its label file belongs."""
    return {path: _label_path(path, root) for path in picture.list_images(root)}


def has_labels(root: Path) -> bool:
    """Whether any image below `root` has a label file whose first line is a YOLO line."""
    for path in find_files(root).values():
        if path.is_file():
            words = path.read_bytes()[:4096].decode("utf-8", "replace").split("\n")[0].split()
            try:
                if len(words) >= 5 and all(math.isfinite(float(word)) for word in words):
                    return True
            except ValueError:
                continue
    return False


def _label_path(image: Path, root: Path) -> Path:
    """labels/ for the last folder images/, where there is such a folder; else beside the image."""
    parts = list(image.relative_to(root).parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() != "images":
            continue
        for name in ("labels", "Labels", "LABELS"):
            path = root.joinpath(*parts[:index], name, *parts[index + 1 :]).with_suffix(".txt")
            if root.joinpath(*parts[:index], name).is_dir():
                return path
    return image.with_suffix(".txt")


def _refuse_orphans(root: Path, expected: set[Path], refused: annotated.Refusals) -> None:
    """Refuses label files without an image."""
    folders = {path.parent for path in expected}
    for path in sorted(root.rglob("*.txt")):
        is_other = path.stem.lower().startswith(_OTHER_TEXTS) or source_folder.split_of(path.stem)
        if path in expected or path.name.startswith(".") or path.parent not in folders or is_other:
            continue
        refused.add(path, "a label file without an image of its name: add the image")


def _read_labels(
    record: records.Record, description: Description, refused: annotated.Refusals
) -> None:
    """Fills a record with the boxes of its label file."""
    try:
        lines = record.path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        refused.add(record.path, f"cannot be read as text ({error}): replace the file")
        record.broken = True
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            xyxy, label = _parse_line(line, description)
        except ValueError as error:
            refused.add(record.path, f"{error}; image {record.image_path} is left out", number)
            record.broken = True
            continue
        record.boxes.append(records.RawBox(xyxy, label, number))


def _parse_line(line: str, description: Description) -> tuple[annotated.Box, str | None]:
    """The box of a line, in fractions, and its class; raises ValueError(reason)."""
    words = line.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(
            f"{line.strip()[:60]!r} is not numbers between spaces: write class cx cy width height"
        ) from None
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("a number is not finite: correct it")
    label = _class_name(numbers[0], words[0], description)
    values = numbers[1:]
    if any(abs(value) > 2 for value in values[:4]):
        raise ValueError(
            f"{' '.join(words[1:5])} are no fractions of the image: divide pixels by its width "
            "and height"
        )
    if len(values) == 4 or (description.has_keypoints and len(values) > 4):
        cx, cy, width, height = values[:4]
        box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    elif len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[0::2], values[1::2]
        box = (min(xs), min(ys), max(xs), max(ys))
    else:
        hint = " (a prediction with its confidence?)" if len(values) == 5 else ""
        raise ValueError(
            f"{len(words)} numbers{hint}: a box has 5, a polygon an odd number from 7 on"
        )
    return box, label


def _class_name(number: float, word: str, description: Description) -> str | None:
    if number != int(number) or number < 0:
        raise ValueError(f"class {word} is not a whole number from 0: correct it")
    if description.names and int(number) not in description.names:
        raise ValueError(
            f"class {word} is not among the {len(description.names)} names "
            f"({', '.join(description.names.values())[:80]}): correct it, or add its name"
        )
    return description.names.get(int(number))


def _split(image: Path, description: Description, root: Path) -> str | None:
    """As data.yaml lists the image or the nearest folder of it, else as its folders are named."""
    for path in (image, *image.parents):
        if path in description.splits:
            return description.splits[path]
    return source_folder.split_of_image(image, root)


def _describe(root: Path, names: str) -> Description:
    """What is known beside the labels.

    Raises:
        ValueError: data.yaml or the names cannot be read, or there are several that differ.
    """
    files = sorted(path for path in root.rglob("*") if path.suffix in (".yaml", ".yml"))
    described = {path: content for path in files if "names" in (content := _load_yaml(path))}
    lists: dict[Path, dict[int, str]] = {}
    if not names:
        lists = {path: _yaml_names(content["names"], path) for path, content in described.items()}
        lists = lists or {
            path: _name_list(path)
            for path in sorted(root.rglob("*"))
            if path.name in _NAME_FILES and path.is_file()
        }
    if len({tuple(found.items()) for found in lists.values()}) > 1:
        raise ValueError(
            f"{root}: several lists of class names that differ ({', '.join(map(str, lists))}): "
            "give --names=FILE"
        )
    splits: dict[Path, str] = {}
    for path, content in described.items():
        splits |= _yaml_splits(content, path, root)
    return Description(
        names=_given_names(names, root) if names else next(iter(lists.values()), {}),
        splits=splits,
        has_keypoints=any("kpt_shape" in content for content in described.values()),
    )


def _load_yaml(path: Path) -> dict[str, object]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as YAML ({reason}): correct it") from error
    return content if isinstance(content, dict) else {}


def _yaml_names(names: object, path: Path) -> dict[int, str]:
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(type(key) is int for key in names):
        raise ValueError(f"{path}: names is {names!r}: write a list, or number: name")
    return {key: str(name) for key, name in names.items()}


def _yaml_splits(content: dict[str, object], path: Path, root: Path) -> dict[Path, str]:
    """Folders, images and lists of images that train, val and test name, where they are there."""
    splits: dict[Path, str] = {}
    base = path.parent
    if isinstance(content.get("path"), str) and (base / str(content["path"])).is_dir():
        base = base / str(content["path"])
    for key, split in (("train", "train"), ("val", "val"), ("valid", "val"), ("test", "test")):
        value = content.get(key)
        for entry in value if isinstance(value, list) else [value]:
            if not isinstance(entry, str):
                continue
            # Roboflow writes ../train/images where train/images is meant.
            for place in (base / entry, base / entry.removeprefix("../")):
                if place.exists():
                    splits |= dict.fromkeys(_members(place, base), split)
                    break
    return {path: split for path, split in splits.items() if root in path.parents}


def _members(place: Path, base: Path) -> list[Path]:
    """The folder itself, or the images that a list names."""
    if place.suffix == ".txt" and place.is_file():
        return [Path(os.path.normpath(base / line)) for line in _lines(place) if line]
    return [Path(os.path.normpath(place))]


def _given_names(names: str, root: Path) -> dict[int, str]:
    """Class names of `--names`: a file, or a list."""
    for path in (root / names, Path(names)):
        if path.is_file():
            if path.suffix in (".yaml", ".yml"):
                return _yaml_names(_load_yaml(path).get("names"), path)
            return _name_list(path)
    if names.endswith((".txt", ".names", ".yaml", ".yml")):
        raise ValueError(f"{root / names}: no such file: correct --names")
    return {number: name.strip() for number, name in enumerate(names.split(","))}


def _name_list(path: Path) -> dict[int, str]:
    names = _lines(path)
    if "" in names:
        raise ValueError(f"{path}:{names.index('') + 1}: empty line: write one class name a line")
    return dict(enumerate(names))


def _lines(path: Path) -> list[str]:
    """The lines of a text file, empty ones at its end left out."""
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error}): replace it") from error
    return [line.strip() for line in text.splitlines()]
