# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""CSV: one box a line, columns found by their usual names or named by `--columns`.

Boxes are half-open corners x1, y1, x2, y2 (or x, y, w, h, or cx, cy, w, h). They are pixels of the
stored image unless `--columns` says `units=unit`, fractions; numbers that may be either are refused
until it says which.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medloc_jax.data import annotated, csv_columns, records, source_folder


def read(
    source: Path, refused: annotated.Refusals, *, annotations: str = "", columns: str = ""
) -> list[annotated.AnnotatedImage]:
    """Reads a data set whose boxes are in CSV files.

    Args:
        source: its folder, or the CSV file.
        refused: gets every image and line that cannot be used.
        annotations: the file in the folder, several separated by commas; "": found by its
            columns, one alone or one for each split.
        columns: meaning=column pairs, separated by commas, that replace the usual names; a column
            is a header or, for a file without one, its position from 1. Also units=px or
            units=unit.

    Raises:
        ValueError: no CSV file with boxes, several without a choice, or columns that are not
            understood; the first refusal, when strict.
    """
    root = source_folder.folder_of(source)
    files = source_folder.annotation_files(
        source,
        root,
        annotations,
        lambda folder: find_files(folder, columns=columns),
        looked_for="CSV files with columns of an image and a box (image, x1, y1, x2, y2 and their "
        f"like; name them with {csv_columns.EXAMPLE}, by position where there is no header)",
    )
    complete = not annotations and source.is_dir()
    return collect(files, root, refused, columns=columns, complete=complete)


def collect(
    files: Mapping[Path, str | None],
    root: Path,
    refused: annotated.Refusals,
    *,
    columns: str = "",
    complete: bool = True,
) -> list[annotated.AnnotatedImage]:
    """Reads the given files, each with its split, as one data set.

    Args:
        files: the annotation files, with their splits.
        root: the folder that the images are below.
        refused: gets every image and line that cannot be used.
        columns: as in `read`.
        complete: whether the files should name every image below `root`.
    """
    finder = source_folder.ImageFinder(root)
    wanted = csv_columns.parse_columns(columns)
    found: list[records.Record] = []
    for path, split in files.items():
        found += _records(csv_columns.read_table(path, wanted), split, finder, refused)
    if complete:
        finder.refuse_unnamed(refused)
    return records.to_images(found, root, refused, what="CSV images")


def find_files(root: Path, *, columns: str = "") -> dict[Path, str | None]:
    """Every CSV or TSV file below `root` with columns of an image and a box, with its split.

    Raises:
        ValueError: the only such file has no columns that are understood.
    """
    wanted = csv_columns.parse_columns(columns)
    paths = [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in (".csv", ".tsv") and not path.name.startswith(".")
    ]
    found = {}
    for path in paths:
        try:
            csv_columns.read_table(path, wanted)
        except ValueError:
            if len(paths) == 1:
                raise  # it must be the one that is meant, and its own reason says more
            continue
        found[path] = source_folder.split_of_file(path, root)
    return found


def _records(
    table: csv_columns.Table,
    split: str | None,
    finder: source_folder.ImageFinder,
    refused: annotated.Refusals,
) -> list[records.Record]:
    """One record an image of one file."""
    found: dict[Path, records.Record] = {}
    in_unit = _in_unit(table)
    for line, cells in table.rows:
        record = None
        try:
            own_split = source_folder.split_of(table.cell(cells, "split")) or split
            image_path = finder.find(table.cell(cells, "image"), near=table.path, split=own_split)
            own_split = own_split or source_folder.split_of_image(image_path, finder.root)
            record = found.setdefault(
                image_path, records.Record(table.path, image_path, line=line, in_unit=in_unit)
            )
            if len(cells) != table.num_columns:
                raise ValueError(f"{len(cells)} columns instead of {table.num_columns}: correct it")
            _fill(record, table, cells, own_split, is_first=record.line == line)
            box = _box(table, cells)
            if box is not None:
                label = table.cell(cells, "label") or None
                record.boxes.append(records.RawBox(box, label, line))
        except ValueError as error:
            where = "" if record is None else f"; image {record.image_path} is left out"
            refused.add(table.path, f"{error}{where}", line)
            if record is not None:
                record.broken = True
    return list(found.values())


def _in_unit(table: csv_columns.Table) -> bool:
    """Whether boxes are fractions, as told.

    Raises:
        ValueError: it is not told, and no number says that they are pixels.
    """
    if table.in_unit is not None:
        return table.in_unit
    boxes = []
    for _, cells in table.rows:
        try:
            boxes.append(_box(table, cells))
        except ValueError:
            continue
    values = [abs(value) for box in boxes if box is not None for value in box]
    if values and max(values) <= 1.5:
        raise ValueError(
            f"{table.path}: no coordinate is above 1.5, so boxes may be fractions of the image: "
            "say which with --columns=units=unit or --columns=units=px"
        )
    return False


def _fill(
    record: records.Record,
    table: csv_columns.Table,
    cells: Sequence[str],
    split: str | None,
    *,
    is_first: bool,
) -> None:
    """What a line says of the whole image; raises ValueError where two lines disagree."""
    word = table.cell(cells, "split")
    if word and source_folder.split_of(word) is None:
        raise ValueError(f"split {word!r} is unknown: write train, val or test")
    size = None
    if table.cell(cells, "width") and table.cell(cells, "height"):
        width, height = (
            csv_columns.number(table.cell(cells, side)) for side in ("width", "height")
        )
        size = (int(width), int(height))
    said = {
        "split": split,
        "group": table.cell(cells, "group") or None,
        "query": table.cell(cells, "query") or None,
        "stated_size": size,
    }
    for name, value in said.items():
        if is_first:
            setattr(record, name, value)
        elif getattr(record, name) != value:
            raise ValueError(
                f"{name} is {value}, and {getattr(record, name)} in line {record.line}, of the "
                "same image: make them agree"
            )


def _box(table: csv_columns.Table, cells: Sequence[str]) -> annotated.Box | None:
    """The corners of a line; None where all its cells are empty."""
    texts = [table.cell(cells, name) for name in table.box]
    if not any(texts):
        return None
    x, y, z, w = (csv_columns.number(text) for text in texts)
    return csv_columns.BOXES[table.box]((x, y, z, w))
