# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The columns of a CSV file of boxes: found by their usual names, or as `--columns` names them."""

import csv
import dataclasses
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# What columns are called, by what they mean; the first that is there counts.
ALIASES = {
    "image": ("image", "filename", "file_name", "file", "path", "image_path", "filepath")
    + ("image_name", "img", "image_id", "imageid", "id"),
    "x1": ("x1", "xmin", "x_min", "left", "bbox_x1", "box_x1"),
    "y1": ("y1", "ymin", "y_min", "top", "upper", "bbox_y1", "box_y1"),
    "x2": ("x2", "xmax", "x_max", "right", "bbox_x2", "box_x2"),
    "y2": ("y2", "ymax", "y_max", "bottom", "lower", "bbox_y2", "box_y2"),
    "cx": ("cx", "x_center", "xc", "center_x"),
    "cy": ("cy", "y_center", "yc", "center_y"),
    "x": ("x", "bbox_x", "x0"),
    "y": ("y", "bbox_y", "y0"),
    "w": ("w", "width", "bbox_w", "bbox_width", "box_width"),
    "h": ("h", "height", "bbox_h", "bbox_height", "box_height"),
    "width": ("image_width", "img_width", "width"),
    "height": ("image_height", "img_height", "height"),
    "label": ("label", "class", "category", "class_name", "name", "diagnosis", "dx"),
    "group": ("group", "patient_id", "lesion_id", "patientid", "patient", "case_id", "subject_id"),
    "split": ("split", "set", "subset", "partition"),
    "query": ("query", "phrase", "sentence", "caption"),
}
DELIMITERS = (",", ";", "\t")
UNITS = ("px", "unit")
EXAMPLE = "--columns=image=file,x1=left,y1=top,x2=right,y2=bottom"

Numbers = tuple[float, float, float, float]
# The ways to write a box, and how each becomes corners; the first whose columns are there counts.
BOXES: dict[tuple[str, str, str, str], Callable[[Numbers], Numbers]] = {
    ("x1", "y1", "x2", "y2"): lambda v: v,
    ("cx", "cy", "w", "h"): lambda v: (
        *(v[0] - v[2] / 2, v[1] - v[3] / 2),
        *(v[0] + v[2] / 2, v[1] + v[3] / 2),
    ),
    ("x", "y", "w", "h"): lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3]),
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file, understood.

    Attributes:
        path: the file.
        rows: (line, cells) of each row, the header left out.
        places: meaning -> index of its column.
        box: a key of BOXES.
        in_unit: boxes are fractions of the image; None: not told.
        num_columns: cells that every row must have.
    """

    path: Path
    rows: list[tuple[int, list[str]]]
    places: Mapping[str, int]
    box: tuple[str, str, str, str]
    in_unit: bool | None
    num_columns: int

    def cell(self, cells: Sequence[str], meaning: str) -> str:
        """What a row says, "" where there is no such column or the row ends before it."""
        place = self.places.get(meaning, len(cells))
        return cells[place].strip() if place < len(cells) else ""


def parse_columns(columns: str) -> dict[str, str]:
    """What `--columns` says: meaning -> header or position, and `units`.

    Raises:
        ValueError: it is not understood.
    """
    wanted: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in columns.split(","))):
        meaning, equals, name = (part.strip() for part in pair.partition("="))
        if not equals or not name or meaning not in (*ALIASES, "units") or meaning in wanted:
            raise ValueError(
                f"--columns: {pair!r} is not understood: write {EXAMPLE}; the meanings are "
                f"{', '.join((*ALIASES, 'units'))}, each once"
            )
        wanted[meaning] = name
    if wanted.get("units", "px") not in UNITS:
        raise ValueError(
            f"--columns: units={wanted['units']}: it must be one of {', '.join(UNITS)}"
        )
    return wanted


def read_table(path: Path, wanted: Mapping[str, str]) -> Table:
    """Reads a file and finds its columns.

    Raises:
        ValueError: it is no text, is empty, or its columns are not understood.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as UTF-8 text ({error}): convert it") from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise ValueError(f"{path}: is empty: replace it")
    try:
        delimiter = max(DELIMITERS, key=lambda each: _likelihood(first, each))
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{path}: cannot be read as CSV ({error}): correct it") from error
    header = [cell.strip().lower() for cell in rows[0][1]]
    by_position = _by_position(wanted)
    places = _positions(wanted, header, path) if by_position else _places(wanted, header, path)
    box = next((names for names in BOXES if set(names) <= places.keys()), None)
    if box is None or "image" not in places:
        raise ValueError(_not_understood(path, header, places))
    if box != ("x1", "y1", "x2", "y2") and not {"width", "height"} & wanted.keys():
        # `width` and `height` are the box's here, unless they have names that only images have.
        places = {
            meaning: place
            for meaning, place in places.items()
            if meaning not in ("width", "height") or place not in (places["w"], places["h"])
        }
    units = wanted.get("units")
    return Table(
        path=path,
        rows=rows if by_position else rows[1:],
        places=places,
        box=box,
        in_unit=None if units is None else units == "unit",
        num_columns=len(header),
    )


def _likelihood(line: str, delimiter: str) -> tuple[int, int]:
    """How many usual names, then how many columns, a delimiter makes of the first line."""
    cells = [cell.strip().lower() for cell in next(csv.reader([line], delimiter=delimiter))]
    return sum(any(cell in names for names in ALIASES.values()) for cell in cells), len(cells)


def _by_position(wanted: Mapping[str, str]) -> bool:
    """Whether `--columns` names columns by number: then the file has no header."""
    names = [name for meaning, name in wanted.items() if meaning != "units"]
    return bool(names) and all(name.isdecimal() for name in names)


def _positions(wanted: Mapping[str, str], header: Sequence[str], path: Path) -> dict[str, int]:
    places = {meaning: int(name) - 1 for meaning, name in wanted.items() if meaning != "units"}
    for meaning, place in places.items():
        if not 0 <= place < len(header):
            raise ValueError(
                f"{path}: --columns: {meaning}={place + 1}: the first line has {len(header)} "
                "columns, counted from 1"
            )
    return places


def _places(wanted: Mapping[str, str], header: Sequence[str], path: Path) -> dict[str, int]:
    """Meaning -> column by header; a name that stands twice is refused."""
    places = {}
    for meaning, aliases in ALIASES.items():
        name = wanted.get(meaning)
        names = aliases if name is None else (name.lower(),)
        present = [alias for alias in names if alias in header]
        if name is not None and not present:
            raise ValueError(
                f"{path}: --columns: there is no column {name!r}: there are {', '.join(header)}"
            )
        if present:
            if header.count(present[0]) > 1:
                raise ValueError(f"{path}: column {present[0]!r} stands twice: rename one")
            places[meaning] = header.index(present[0])
    return places


def _not_understood(path: Path, header: Sequence[str], places: Mapping[str, int]) -> str:
    shown = ", ".join(header)[:120]
    if not places or any(_is_number(cell) for cell in header):
        return (
            f"{path}: no header is recognised in the first line ({shown}): name the columns by "
            "position, from 1, as in --columns=image=1,x1=2,y1=3,x2=4,y2=5"
        )
    missing = "an image" if "image" not in places else "a box (x1, y1, x2, y2 or x, y, w, h)"
    return f"{path}: no column of {missing} among {shown}: name it, as in {EXAMPLE}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def number(text: str) -> float:
    """A cell as a finite number.

    Raises:
        ValueError: it is none.
    """
    if re.fullmatch(r"[-+]?\d+,\d+", text):
        raise ValueError(f"{text!r} has a decimal comma: write a point")
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number: correct it") from None
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not finite: correct it")
    return value
