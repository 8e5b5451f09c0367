# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""HAM10000: dermoscopy with lesion masks, as published, as mirrored, and by ISIC 2018's names.

Files are known by their names, wherever they lie below the folder: images `ISIC_0024306.jpg`,
masks `ISIC_0024306_segmentation.png`, and one table `HAM10000_metadata`. A lesion has up to six
images, so `lesion_id` is the group. Masks are larger than the images in reduced copies, 402 of them
have an inverted palette, and two are all white (kept, with a warning: the published boxes made of
these masks keep them too).
"""

import csv
import filecmp
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from medloc_jax.data import annotated, mask_folder

DIAGNOSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
METADATA_NAMES = tuple(f"HAM10000_metadata{suffix}" for suffix in (".csv", ".tab", ".tsv", ""))
_COLUMNS = ("lesion_id", "image_id", "dx")

_IMAGE = re.compile(r"(ISIC_\d{7})\.(?:jpe?g|png)", re.IGNORECASE)
_MASK = re.compile(r"(ISIC_\d{7})_segmentation\.png", re.IGNORECASE)


class Row(NamedTuple):
    """One line of the metadata."""

    lesion: str
    diagnosis: str
    line: int


def read(
    source: Path, refused: annotated.Refusals, *, metadata: str = ""
) -> list[annotated.AnnotatedImage]:
    """Reads images, masks and metadata; the box is that of the whole mask.

    Args:
        source: the folder.
        refused: gets whatever lacks one of the three, or has it twice.
        metadata: the table, below `source`; "": one named in METADATA_NAMES.

    Raises:
        ValueError: there is no metadata, or it has not its columns.
    """
    image_paths = _find_files(source, _IMAGE, refused)
    mask_paths = _find_files(source, _MASK, refused)
    table = _find_metadata(source, metadata)
    rows = _read_metadata(table, refused)
    pairs = []
    for image_id in sorted({*image_paths, *mask_paths, *rows}):
        if any(found.get(image_id, 0) is None for found in (image_paths, mask_paths, rows)):
            continue  # ambiguous, and refused as that
        image, mask, row = image_paths.get(image_id), mask_paths.get(image_id), rows.get(image_id)
        if image and mask and row:
            pairs.append(
                mask_folder.Pair(image_id, image, (mask,), row.diagnosis, group=row.lesion)
            )
        elif image and not row:
            refused.add(image, f"no row in {table.name}: add it, or drop the image")
        elif image:
            refused.add(image, "no mask belongs to this image: add it, or drop the image")
        elif mask:
            refused.add(mask, "no image belongs to this mask: add it, or drop the mask")
        elif row:
            refused.add(table, f"{image_id} has no image: add it, or drop the row", row.line)
    return mask_folder.read_pairs(pairs, refused)


def _find_files(
    source: Path, name_pattern: re.Pattern[str], refused: annotated.Refusals
) -> dict[str, Path | None]:
    """Files by image id, wherever they lie; None where two of one name differ (both refused)."""
    found: dict[str, Path | None] = {}
    copies = 0
    for path in sorted(_walk(source)):
        match = name_pattern.fullmatch(path.name)
        if match is None:
            continue
        image_id = match[1].upper()
        first = found.setdefault(image_id, path)
        if first is path:
            continue
        # One mirror holds every image twice, in folders of upper and of lower case.
        if first is not None and filecmp.cmp(first, path, shallow=False):
            copies += 1
            continue
        refused.add(path, f"{path.name} is there twice, with other content: keep the right one")
        if first is not None:
            refused.add(first, f"{first.name} is there twice, with other content")
        found[image_id] = None
    if copies:
        refused.note(f"{copies} files are there twice, byte for byte; one of each is used.")
    return found


def _walk(source: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        yield from (Path(parent, name) for name in names)


def _find_metadata(source: Path, metadata: str) -> Path:
    if metadata:
        table = source / metadata
        if not table.is_file():
            raise ValueError(f"{table}: no such file: name the table of lesions with --metadata")
        return table
    tables = sorted(path for path in _walk(source) if path.name in METADATA_NAMES)
    if not tables:
        raise ValueError(
            f"{source}: holds no {METADATA_NAMES[0]}, which tells the lesion and the diagnosis of "
            "every image: add it, or name it with --metadata"
        )
    if any(not filecmp.cmp(tables[0], table, shallow=False) for table in tables[1:]):
        raise ValueError(f"{source}: {tables[0]} and {tables[1]} differ: name one by --metadata")
    return tables[0]


def _read_metadata(table: Path, refused: annotated.Refusals) -> dict[str, Row | None]:
    """Rows by image id; None where two rows of one image differ (both refused)."""
    with open(table, encoding="utf-8-sig", newline="") as file:
        try:
            lines = file.read().splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{table}: is not text in UTF-8 ({error}): replace it") from error
    header, *body = csv.reader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",")
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise ValueError(
            f"{table}:1: column {missing[0]} is missing: the first line must name "
            f"{', '.join(_COLUMNS)}, and it is {','.join(header)!r}"
        )
    lesion_at, image_at, diagnosis_at = map(header.index, _COLUMNS)
    rows: dict[str, Row | None] = {}
    for line, cells in enumerate(body, start=2):
        if not any(cells):
            continue
        if len(cells) < len(header):
            refused.add(table, f"{len(cells)} of {len(header)} columns: mend the line", line)
            continue
        image_id = cells[image_at].upper()
        row = Row(cells[lesion_at], cells[diagnosis_at], line)
        if row.diagnosis not in DIAGNOSES or not row.lesion:
            refused.add(
                table,
                f"{image_id} has lesion {row.lesion!r} and dx {row.diagnosis!r}: a lesion and one "
                f"of {', '.join(DIAGNOSES)} is needed",
                line,
            )
            rows.setdefault(image_id, None)
            continue
        first = rows.setdefault(image_id, row)
        if first is row:
            continue
        if first is not None and first[:2] == row[:2]:
            refused.add(table, f"{image_id} stands in line {first.line} already: drop one", line)
            continue
        refused.add(table, f"{image_id} has two rows that differ: keep the right one", line)
        rows[image_id] = None
    return rows
