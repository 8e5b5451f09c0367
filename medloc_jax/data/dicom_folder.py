# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DICOM images whose boxes stand in a COCO JSON or CSV file beside them."""

from pathlib import Path

from medloc_jax.data import annotated, coco, csv_boxes, source_folder


def read(
    source: Path, refused: annotated.Refusals, *, annotations: str = "", columns: str = ""
) -> list[annotated.AnnotatedImage]:
    """Reads the boxes by the reader of their file's format; images of other formats pass too.

    Args:
        source: the folder, or the annotation file.
        refused: gets every image and line that cannot be used.
        annotations: the file in the folder; "": COCO JSON if there is any, else CSV.
        columns: of a CSV file, as for csv_boxes.read.

    Raises:
        ValueError: as the format's reader.
    """
    root = source_folder.folder_of(source)
    named = annotations or (source.name if source.is_file() else "")
    is_coco = named.endswith(".json") if named else bool(coco.find_files(root))
    if is_coco and columns:
        raise ValueError("--columns is for boxes in CSV, and these are in COCO JSON: leave it away")
    if is_coco:
        return coco.read(source, refused, annotations=annotations)
    return csv_boxes.read(source, refused, annotations=annotations, columns=columns)
