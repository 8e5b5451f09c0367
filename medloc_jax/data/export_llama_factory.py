# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The examples of our SFT in LLaMA-Factory's format, so that the baseline can be checked outside.

OUT/SPLIT.json          [{"messages": [user, assistant], "images": [path]}, ...]
OUT/dataset_info.json   one entry a split, `medloc_SPLIT`, for `dataset_dir: OUT`
OUT/images/             the pictures as the model sees them, PNG

Prompt and answer are those that `RowLoader` makes tokens of: the template's words, the box in
pixels of the resized picture. The pictures are stored resized, since LLaMA-Factory rounds sizes in
its own way (it scales to `image_max_pixels` first) and the boxes would be off; a picture whose
sides are multiples of 28 passes through it unchanged, unless it has more than `image_max_pixels`
(589,824 by default: set at least our `data.max_pixels`). One difference is left: with the template
`qwen2_vl` LLaMA-Factory learns the line break after the end token, too.

Reference: LLaMA-Factory (hiyouga), data/README.md, "Sharegpt format" and "OpenAI format".
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from medloc_jax.data import batching, examples
from medloc_jax.data.examples import Example
from medloc_jax.grounding import boxes, prompts
from medloc_jax.model import processor

_IMAGE = "<image>"  # LLaMA-Factory's placeholder
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
}


def write(
    folder: Path,
    rows: Sequence[Example],
    pixels: processor.ImageProcessor,
    *,
    template: str,
    box_scale: float,
) -> list[str]:
    """Writes pictures, conversations and their description.

    Args:
        folder: to write into.
        rows: all examples, val cut as the run cuts it.
        pixels: how pictures are resized.
        template: as `data.template`.
        box_scale: as `sft.box_scale`.

    Returns:
        A line about each split that was written.

    Raises:
        ValueError: an image cannot be read or resized; names it.
    """
    (folder / "images").mkdir()
    names: dict[str, str] = {}
    info: dict[str, Any] = {}
    said = []
    for split in examples.SPLITS:
        chosen = [row for row in rows if row.split == split]
        if not chosen:
            continue
        records = []
        for row in chosen:
            if row.image not in names:
                names[row.image] = f"images/{len(names):06d}.png"
                _resized(row, pixels).save(folder / names[row.image])
            texts = conversation(row, pixels, template=template, box_scale=box_scale)
            records.append(_record(texts, names[row.image]))
        text = json.dumps(records, indent=1, ensure_ascii=False)
        (folder / f"{split}.json").write_text(text + "\n", encoding="utf-8")
        info[f"medloc_{split}"] = {
            "file_name": f"{split}.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": _TAGS,
        }
        said.append(f"{split}: {len(chosen)} conversations")
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    return said


def conversation(
    row: Example, pixels: processor.ImageProcessor, *, template: str, box_scale: float
) -> tuple[str, str]:
    """What the user says, without the picture, and what is to be answered.

    Raises:
        ValueError: the texts hold LLaMA-Factory's own placeholder.
    """
    words = prompts.TEMPLATES[template]
    height, width = pixels.resized_size(row.height, row.width)
    frame = boxes.Frame(row.width, row.height, width, height)
    box_resized_px = batching.target_resized_px(row.box_px, frame, box_scale)
    asked = words.user_text(row.query, row.source)
    answered = words.completion_text(box_resized_px, row.label)
    if _IMAGE in asked + answered:
        raise ValueError(f"example {row.id!r}: its text has {_IMAGE} in it: take it out")
    return asked, answered


def _resized(row: Example, pixels: processor.ImageProcessor) -> Image.Image:
    picture = processor.open_image(row.image_path)
    height, width = pixels.resized_size(picture.height, picture.width)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return picture


def _record(texts: tuple[str, str], image: str) -> dict[str, Any]:
    asked, answered = texts
    return {
        "messages": [
            {"role": "user", "content": _IMAGE + asked},
            {"role": "assistant", "content": answered},
        ],
        "images": [image],
    }
