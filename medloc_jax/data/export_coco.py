# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A manifest as COCO detection files, with the captions that phrase grounding wants.

OUT/instances_SPLIT.json   images, annotations with bbox [x, y, width, height], categories
OUT/SPLIT_odvg.jsonl       an image a line with caption and regions, for Open-GroundingDino
OUT/datasets.json          its list of data sets: train on the ODVG file, evaluate on COCO's val
OUT/images/                every image once

A category is what is asked (the query) and not the target's class: the detector is to answer the
question that the model answers. Categories are numbered from 0 without gaps, alike in all splits.
An image's caption is its questions, each with " ." after it, as GroundingDINO's prompts are
written; `tokens_positive` says where a phrase stands in it (its first character, and one past its
last), as in MDETR's COCO files.

References: cocodataset.org, "Data format"; Open-GroundingDino (longzw1997), data_format.md.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medloc_jax.data import examples
from medloc_jax.data.examples import Example


def write(folder: Path, rows: Sequence[Example], names: dict[str, str], final: Path) -> list[str]:
    """Writes the annotation files.

    Args:
        folder: to write into; images lie in its `images` already.
        rows: all examples.
        names: file name in `images` by the example's image path.
        final: where the folder will lie in the end, for the paths in datasets.json.

    Returns:
        A line about each file that was written.
    """
    categories = {query: index for index, query in enumerate(sorted({row.query for row in rows}))}
    said = []
    for split in examples.SPLITS:
        chosen = [row for row in rows if row.split == split]
        if not chosen:
            continue
        by_image: dict[str, list[Example]] = {}
        for row in chosen:
            by_image.setdefault(row.image, []).append(row)
        content = _coco(by_image, names, categories)
        (folder / f"instances_{split}.json").write_text(
            json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        lines = [_odvg(names[image], each, categories) for image, each in by_image.items()]
        (folder / f"{split}_odvg.jsonl").write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
            encoding="utf-8",
        )
        said.append(f"{split}: {len(by_image)} images, {len(chosen)} boxes")
    (folder / "datasets.json").write_text(
        json.dumps(_datasets(folder, final), indent=1) + "\n", encoding="utf-8"
    )
    return said


def caption_of(rows: Sequence[Example]) -> tuple[str, dict[str, tuple[int, int]]]:
    """An image's caption, and where each phrase stands in it: first character, one past the last.

    Args:
        rows: the examples of one image.
    """
    caption, places = "", {}
    for row in rows:
        if row.query not in places:
            start = len(caption) + (1 if caption else 0)
            caption = f"{caption} {row.query} .".strip()
            places[row.query] = (start, start + len(row.query))
    return caption, places


def _coco(
    by_image: dict[str, list[Example]], names: dict[str, str], categories: dict[str, int]
) -> dict[str, Any]:
    images, annotations = [], []
    for number, (image, rows) in enumerate(by_image.items(), start=1):
        first = rows[0]
        caption, places = caption_of(rows)
        entry = {"id": number, "file_name": names[image]}
        entry |= {"width": first.width, "height": first.height, "caption": caption}
        images.append(entry if first.group is None else entry | {"group": first.group})
        for row in rows:
            x1, y1, x2, y2 = row.box_px
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": categories[row.query],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "tokens_positive": [list(places[row.query])],
                    "example_id": row.id,
                    "label": row.label,
                }
            )
    listed = [{"id": index, "name": query} for query, index in categories.items()]
    return {"images": images, "annotations": annotations, "categories": listed}


def _odvg(name: str, rows: Sequence[Example], categories: dict[str, int]) -> dict[str, Any]:
    caption, _ = caption_of(rows)
    instances = [
        {"bbox": list(row.box_px), "label": categories[row.query], "category": row.query}
        for row in rows
    ]
    regions = [{"bbox": list(row.box_px), "phrase": row.query} for row in rows]
    return {
        "filename": name,
        "height": rows[0].height,
        "width": rows[0].width,
        "detection": {"instances": instances},
        "grounding": {"caption": caption, "regions": regions},
    }


def _datasets(folder: Path, final: Path) -> dict[str, Any]:
    """Without a label_map the regions are read, so that no phrase becomes a false negative."""
    root = str(final / "images")
    watched = "val" if (folder / "instances_val.json").is_file() else "test"
    return {
        "train": [{"root": root, "anno": str(final / "train_odvg.jsonl"), "dataset_mode": "odvg"}],
        "val": [
            {
                "root": root,
                "anno": str(final / f"instances_{watched}.json"),
                "label_map": None,
                "dataset_mode": "coco",
            }
        ],
    }
