# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny data sets in the layouts of published ones, drawn by the tests that read them."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from medloc_jax.data import annotated

DIAGNOSES = ("nv", "nv", "mel", "bkl")  # of the drawn HAM10000, in turn


def write_image(path: Path, size=(40, 30), *, seed=0, mode="RGB") -> Path:
    """A textured image of `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(levels).convert(mode).save(path)
    return path


def write_mask(path: Path, boxes, size=(40, 30)) -> Path:
    """A grey mask, 255 inside the half-open boxes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", size)
    for x1, y1, x2, y2 in boxes:
        ImageDraw.Draw(mask).rectangle((x1, y1, x2 - 1, y2 - 1), fill=255)
    mask.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


def ham_id(index: int) -> str:
    return f"ISIC_{24306 + index:07d}"


def ham_box(index: int) -> tuple[int, int, int, int]:
    return (3 + index % 5, 6, 18 + index % 7, 24)


def write_ham10000(folder: Path, count=12, *, images=None, scale=1) -> Path:
    """HAM10000's layout; two images a lesion. Masks are `scale` times as large as images."""
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for index in range(count):
        name, part = ham_id(index), "part_1" if index < count // 2 else "part_2"
        write_image(folder / (images or f"HAM10000_images_{part}") / f"{name}.jpg", seed=index)
        write_mask(
            folder / "HAM10000_segmentations_lesion_tschandl" / f"{name}_segmentation.png",
            [[scale * side for side in ham_box(index)]],
            (40 * scale, 30 * scale),
        )
        dx = DIAGNOSES[index // 2 % len(DIAGNOSES)]
        rows.append(f"HAM_{index // 2:07d},{name},{dx},histo,50.0,male,back")
    (folder / "HAM10000_metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_tn3k(folder: Path, *, trainval=5, test=3) -> Path:
    """TN3K's layout; the last image of each part has two nodules."""
    for part, count in (("trainval", trainval), ("test", test)):
        labels = []
        for index in range(count):
            name = f"{index:04d}.jpg"
            boxes = [(4, 4, 14 + index, 16)] + [(28, 20, 36, 28)] * (index == count - 1)
            write_image(folder / f"{part}-image" / name, seed=index, mode="L")
            write_mask(folder / f"{part}-mask" / name, boxes)
            labels.append(f"{name},{('0', '1', '')[index % 3]}")
        (folder / f"label4{part}.csv").write_text("\n".join(labels) + "\n")
    return folder


def annotated_images(classes, *, groups=None, split=None) -> list[annotated.AnnotatedImage]:
    """Images that exist only by name, one a class."""
    return [
        annotated.AnnotatedImage(
            id=f"i{index:04d}",
            image_path=Path(f"/nowhere/i{index:04d}.png"),
            width=40,
            height=30,
            targets=(annotated.Target((1.0, 2.0, 11.0, 12.0), name),),
            label=name,
            group=groups[index] if groups else None,
            split=split,
        )
        for index, name in enumerate(classes)
    ]
