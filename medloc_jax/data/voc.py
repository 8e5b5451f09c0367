# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC: one XML file an image, and lists of names in ImageSets/Main for the splits.

VOC counts pixels from 1 and includes the last: [xmin, xmax] is our half-open [xmin - 1, xmax]. Many
tools that write VOC count corners from 0 instead. A file set that holds a coordinate 0 must be of
that kind; its boxes are taken as half-open as they are, and a note says so.
"""

import xml.etree.ElementTree as ElementTree
import xml.parsers.expat
from pathlib import Path

from medloc_jax.data import annotated, records, source_folder

ORIGINS = ("auto", "0", "1")
_SPLIT_LISTS = ("train", "val", "valid", "test")


def read(
    source: Path, refused: annotated.Refusals, *, origin: str = "auto"
) -> list[annotated.AnnotatedImage]:
    """Reads a data set in Pascal VOC's format.

    Args:
        source: its folder.
        refused: gets every file and object that cannot be used.
        origin: "1": corners as VOC defines them; "0": half-open corners from 0; "auto": "0" if
            any coordinate of the set is 0, else "1".

    Raises:
        ValueError: no annotation file, or an unknown origin; the first refusal, when strict.
    """
    if origin not in ORIGINS:
        raise ValueError(f"--origin={origin}: it must be one of {', '.join(ORIGINS)}")
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder: give --source")
    paths = find_files(source)
    if not paths:
        raise ValueError(
            f"{source}: no annotation file: looked for *.xml with an <annotation>: give the folder "
            "that holds Annotations/ as --source"
        )
    finder = source_folder.ImageFinder(source)
    found: list[records.Record] = []
    for path in paths:
        try:
            found.append(_record(path, finder, refused))
        except ValueError as error:
            refused.add(path, str(error))
    finder.refuse_unnamed(refused)
    _apply_lists(source, found, paths, refused)
    _apply_origin(found, origin, refused)
    return records.to_images(found, source, refused, what="VOC images")


def has_annotations(root: Path) -> bool:
    """Whether there is a whole VOC file below a folder."""
    for path in find_files(root):
        try:
            _parse(path)
        except ValueError:
            continue
        return True
    return False


def find_files(root: Path) -> list[Path]:
    """Every XML file below `root` that mentions an <annotation>, or that is broken."""
    return [
        path
        for path in sorted(root.rglob("*.xml"))
        if not path.name.startswith(".") and _may_be_voc(path)
    ]


def _may_be_voc(path: Path) -> bool:
    try:
        return _parse(path)[0].tag == "annotation"
    except ValueError:
        return True  # refused, with its reason, when it is read


def _parse(path: Path) -> tuple[ElementTree.Element, list[int]]:
    """The tree of a file, and the line of each <object>; raises ValueError(reason)."""
    lines: list[int] = []

    def start(name: str, _attributes: object) -> None:
        if name == "object":
            lines.append(parser.CurrentLineNumber)

    def refuse(*_arguments: object) -> None:
        # Entities can name other files, or swell to gigabytes; an annotation needs none.
        raise ValueError("holds a document type or entities, which are not read: delete them")

    parser = xml.parsers.expat.ParserCreate()
    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        content = path.read_bytes()
        parser.Parse(content, True)
        return ElementTree.fromstring(content), lines
    except (OSError, xml.parsers.expat.ExpatError, ElementTree.ParseError) as error:
        raise ValueError(f"cannot be read as XML ({error}): replace the file") from error
    except LookupError as error:
        raise ValueError(f"is of an unknown encoding ({error}): store it as UTF-8") from error


def _record(
    path: Path, finder: source_folder.ImageFinder, refused: annotated.Refusals
) -> records.Record:
    """What one file says, corners as written; raises ValueError(reason)."""
    root, lines = _parse(path)
    image_path = _image_path(path, root, finder)
    record = records.Record(
        path=path,
        image_path=image_path,
        stated_size=_size(root),
        split=source_folder.split_of_image(path, finder.root)
        or source_folder.split_of_image(image_path, finder.root),
    )
    for number, item in enumerate(root.findall("object")):
        line = lines[number] if number < len(lines) else None
        name = f"object {number + 1}"
        try:
            record.boxes.append(_box(item, line, name))
        except ValueError as error:
            refused.add(path, f"{name}: {error}; image {image_path} is left out", line)
            record.broken = True
    return record


def _image_path(path: Path, root: ElementTree.Element, finder: source_folder.ImageFinder) -> Path:
    """The image that <filename> and the XML file's own name agree on; raises ValueError."""
    written = (root.findtext("filename") or "").strip()
    found: dict[str, Path] = {}
    problem = None
    for name in filter(None, (path.stem, written)):
        try:
            found[name] = finder.find(name, near=path)
        except ValueError as error:
            problem = error
    if not found:
        raise ValueError(str(problem))
    if len(set(found.values())) > 1:
        raise ValueError(
            f"<filename> is {written}, but there is {found[path.stem]}, too, which has the name of "
            "this file: correct the one that is wrong"
        )
    return next(iter(found.values()))


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    texts = [root.findtext(f"size/{side}") for side in ("width", "height")]
    if None in texts:
        return None
    try:
        width, height = (int(float(text or "")) for text in texts)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"<size> is {texts}: write whole pixels") from error
    return width, height


def _box(item: ElementTree.Element, line: int | None, name: str) -> records.RawBox:
    """One object; raises ValueError(reason)."""
    label = (item.findtext("name") or "").strip()
    if not label:
        raise ValueError("<name> is missing or empty: write the class")
    corners = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        # Only the object's own box: parts, such as a head, have boxes of their own.
        text = item.findtext(f"bndbox/{key}")
        if text is None:
            raise ValueError(f"<{key}> is missing: correct the file")
        try:
            corners.append(float(text))
        except ValueError as error:
            raise ValueError(f"<{key}> is {text!r}, not a number: correct it") from error
    x1, y1, x2, y2 = corners
    return records.RawBox((x1, y1, x2, y2), label, line, name)


def _apply_origin(found: list[records.Record], origin: str, refused: annotated.Refusals) -> None:
    """Makes half-open corners from 0 of what the files have."""
    if origin == "auto":
        zeros = [record.path for record in found if any(0 in raw.xyxy[:2] for raw in record.boxes)]
        origin = "0" if zeros else "1"
        if zeros:
            refused.note(
                f"{zeros[0]} holds a coordinate 0, so boxes are taken as half-open corners from 0; "
                "--origin=1 takes them as VOC defines them."
            )
    if origin == "1":
        for record in found:
            record.boxes = [
                raw._replace(xyxy=(raw.xyxy[0] - 1, raw.xyxy[1] - 1, *raw.xyxy[2:]))
                for raw in record.boxes
            ]


def _apply_lists(
    source: Path, found: list[records.Record], paths: list[Path], refused: annotated.Refusals
) -> None:
    """Splits as the lists of ImageSets/Main say; they win over folder names."""
    by_path = {record.path: record for record in found}
    places: dict[Path, Path] = {}
    for list_path in sorted(source.rglob("Main/*.txt")):
        if list_path.stem not in _SPLIT_LISTS:
            continue
        # A list speaks of the files below the folder that holds its ImageSets.
        named = {path.stem: path for path in paths if list_path.parents[2] in path.parents}
        missing: list[tuple[int, str]] = []
        for number, name in _names(list_path, refused):
            if name not in named:
                missing.append((number, name))
                continue
            record = by_path.get(named[name])
            other = places.setdefault(named[name], list_path)
            if other != list_path:
                refused.add(list_path, f"{name} stands in {other}, too: keep it in one", number)
            if record is not None:
                record.broken |= other != list_path
                record.split = source_folder.split_of(list_path.stem)
        if missing:
            number, name = missing[0]
            refused.add(
                list_path,
                f"{len(missing)} names have no annotation file, such as {name}.xml: add them, or "
                "shorten the list",
                number,
            )


def _names(path: Path, refused: annotated.Refusals) -> list[tuple[int, str]]:
    """The lines of a list that are not empty, with their numbers."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        refused.add(path, f"cannot be read ({error}): replace the file")
        return []
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
