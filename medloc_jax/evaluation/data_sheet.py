# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a prepared data set is like: numbers, a page of Markdown, a sheet of images with boxes."""

import collections
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from medloc_jax.data import annotated, examples
from medloc_jax.evaluation import metrics

PERCENTILES = (5, 25, 50, 75, 95)
# Upper ends of the bins of a box's share of its image, in per cent.
AREA_BINS = (1, 5, 10, 25, 50, 75, 100)
FLOOR_MEASURES = {"a50": "A@0.5", "a80": "A@0.8", "map": "mAP", "miou": "mIoU"}
NO_LABEL = "(no label)"
COLUMNS = 6
MOST_CLASSES = 10
# A box below this share of both sides of its image would be hidden by its own line: what is shown
# is then a part of the image that is so many times as large as the box, and at least so many px.
ZOOM_BELOW, ZOOM_CONTEXT, ZOOM_LEAST_PX = 1 / 8, 4, 48


def statistics(
    rows: Sequence[examples.Example],
    images: Sequence[annotated.AnnotatedImage],
    splits: Sequence[str],
    digests: Sequence[str],
) -> dict[str, Any]:
    """Counts, box sizes, the constant-box floor and what leaks between the splits.

    Args:
        rows: the manifest.
        images: the images of the manifest, with the groups as the data set names them: in the
            manifest a group that is in several splits is one a split, and leaks are counted here.
        splits: of each image.
        digests: of each image's file.

    Returns:
        JSON-able; the keys are those that `to_markdown` reads.
    """
    by_class: dict[str, collections.Counter[str]] = {}
    for row in rows:
        by_class.setdefault(row.label or NO_LABEL, collections.Counter())[row.split] += 1
    shares = box_area_percent(rows)
    of_split = np.array([row.split for row in rows])
    parts = {"all": np.ones(len(rows), np.bool_)}
    parts |= {name: of_split == name for name in examples.SPLITS if (of_split == name).any()}
    return {
        "images": _count(splits),
        "examples": _count([row.split for row in rows]),
        "classes": {name: _ordered(by_class[name]) for name in sorted(by_class)},
        "box_area_percent": {
            name: dict(
                zip(
                    map(str, PERCENTILES),
                    np.percentile(shares[part], PERCENTILES).round(3).tolist(),
                    strict=True,
                )
            )
            for name, part in parts.items()
        },
        "boxes_by_area_percent": {
            name: _histogram(shares[part]) for name, part in parts.items() if name != "all"
        },
        "floor": _floor(rows),
        "leakage": leakage(images, splits, digests),
    }


def box_area_percent(rows: Sequence[examples.Example]) -> Float[np.ndarray, " n"]:
    """Each box's share of its image, in (0, 100]."""
    boxes = np.array([row.box_px for row in rows], np.float64)
    sizes = np.array([(row.width, row.height) for row in rows], np.float64)
    return 100 * np.prod((boxes[:, 2:] - boxes[:, :2]) / sizes, axis=1)


def leakage(
    images: Sequence[annotated.AnnotatedImage], splits: Sequence[str], digests: Sequence[str]
) -> dict[str, Any]:
    """How much of val and test has been seen in train.

    Returns:
        `groups`: how many groups are known; `images_with_group`; for each of val and test that
        there is `{"images", "share_group_with_train", "same_file_as_in_train"}`, in images.
    """
    known: dict[str, set[str]] = {"group": set(), "digest": set()}
    for image, split, digest in zip(images, splits, digests, strict=True):
        if split == "train":
            known["digest"].add(digest)
            if image.group is not None:
                known["group"].add(image.group)
    result: dict[str, Any] = {
        "groups": len({image.group for image in images if image.group is not None}),
        "images_with_group": sum(image.group is not None for image in images),
    }
    for name in ("val", "test"):
        rows = [
            (image, digest)
            for image, split, digest in zip(images, splits, digests, strict=True)
            if split == name
        ]
        if rows:
            result[name] = {
                "images": len(rows),
                "share_group_with_train": sum(image.group in known["group"] for image, _ in rows),
                "same_file_as_in_train": sum(digest in known["digest"] for _, digest in rows),
            }
    return result


def _count(splits: Sequence[str]) -> dict[str, int]:
    return _ordered(collections.Counter(splits)) | {"all": len(splits)}


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: counts[name] for name in examples.SPLITS if counts.get(name)}


def _histogram(shares: Float[np.ndarray, " n"]) -> dict[str, int]:
    """Boxes by their share of the image, a bin's upper end belonging to it."""
    bins = np.searchsorted(AREA_BINS, shares.round(9), side="left")
    lows = (0, *AREA_BINS[:-1])
    return {
        f"{low}-{high}": int((bins == index).sum())
        for index, (low, high) in enumerate(zip(lows, AREA_BINS, strict=True))
    }


def _floor(rows: Sequence[examples.Example]) -> dict[str, Any] | None:
    """The constant-box floor of test, or of val where there is no test; None without either."""
    of_split = {name: [row for row in rows if row.split == name] for name in examples.SPLITS}
    scored = "test" if of_split["test"] else "val"
    if not of_split["train"] or not of_split[scored]:
        return None
    return {"split": scored} | metrics.constant_box_floor(of_split["train"], of_split[scored])


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The page for people.

    Args:
        summary: `statistics`, and with it `data_set`, `command`, `seed`, `split_rule`, `query`,
            `one_box`, `licence`, `refused` (files and lines), `refused_questions`, `left_out` and
            `warnings` (counts by reason), `notes` (sentences).
    """
    sections = [
        f"# {summary['data_set']}",
        f"    {summary['command']}",
        _counts_table(summary),
        f"Split: {summary['split_rule']}. Seed {summary['seed']}.",
        leakage_sentence(summary["leakage"]),
        f"Query: `{summary['query']}`. Several boxes for one question: `--one_box="
        f"{summary['one_box']}`.",
        *summary["notes"],
        "## Boxes",
        _percentiles_table(summary["box_area_percent"]),
        _histogram_table(summary["boxes_by_area_percent"]),
        "## Floor",
        floor_sentence(summary["floor"]),
    ]
    for title, key in (
        ("Refused files and lines", "refused"),
        ("Refused questions", "refused_questions"),
        ("Left out by a rule", "left_out"),
        ("Taken, to be looked at", "warnings"),
    ):
        sections += [f"## {title}", _reasons(summary[key])] if summary[key] else []
    if not summary["refused"]:
        sections += ["No file was refused."]
    sections += ["## Licence", summary["licence"]]
    return "\n\n".join(sections) + "\n"


def leakage_sentence(found: Mapping[str, Any]) -> str:
    """What of val and test is in train too, in words."""
    parts = []
    for name in ("val", "test"):
        if name not in found:
            continue
        counts = found[name]
        if found["groups"]:
            parts.append(
                f"{counts['share_group_with_train']:,} of {counts['images']:,} {name} images show "
                "a lesion or patient that is in train, too"
            )
        if counts["same_file_as_in_train"]:
            parts.append(
                f"{counts['same_file_as_in_train']:,} of the files of {name} stand in train, too, "
                "byte for byte"
            )
    if not found["groups"]:
        parts.append("lesions and patients are not known")
    return f"Leakage: {'; '.join(parts)}."


def floor_sentence(floor: Mapping[str, Any] | None) -> str:
    """What the median training box scores."""
    if floor is None:
        return "No floor: it needs a train split and a test or val split."
    values = ", ".join(f"{name} {100 * floor[key]:.1f}" for key, name in FLOOR_MEASURES.items())
    return (
        f"Always answering the median training box scores {values} (per cent) on "
        f"{floor['num_examples']:,} {floor['split']} examples. A model that is not above it has "
        "not looked at the image."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: names to the left, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _counts_table(summary: Mapping[str, Any]) -> str:
    splits = [name for name in examples.SPLITS if name in summary["examples"]]
    rows = [
        [name.replace("|", "\\|"), *(f"{counts.get(split, 0):,}" for split in splits),
         f"{sum(counts.values()):,}"]
        for name, counts in summary["classes"].items()
    ]  # fmt: skip
    for name in ("examples", "images"):
        counts = summary[name]
        rows.append(
            [f"**{name}**", *(f"**{counts.get(split, 0):,}**" for split in (*splits, "all"))]
        )
    return _table(["class", *splits, "all"], rows)


def _percentiles_table(percentiles: Mapping[str, Mapping[str, float]]) -> str:
    return _table(
        ["box area, % of the image", *(f"{number}th" for number in PERCENTILES)],
        [
            [name, *(f"{values[str(number)]:.3g}" for number in PERCENTILES)]
            for name, values in percentiles.items()
        ],
    )


def _histogram_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    bins = list(next(iter(counts.values())))
    rows = [[name, *(f"{values[each]:,}" for each in bins)] for name, values in counts.items()]
    return _table(["boxes by area", *(f"{each} %" for each in bins)], rows)


def _reasons(counts: Mapping[str, int]) -> str:
    return "\n".join(f"* {count:,} x {reason}" for reason, count in counts.items())


def choose_examples(rows: Sequence[examples.Example], *, seed: int) -> dict[str, list[int]]:
    """Which examples the sheet shows, by the title of their row: none twice.

    The smallest and the largest boxes, and of each class (the most frequent ones first) as many
    of test as of train, as far as there are.
    """
    order = np.argsort(box_area_percent(rows), kind="stable")
    each = min(COLUMNS, max(1, len(rows) // 4))
    sheet = {"smallest": order[:each].tolist(), "largest": order[each:][::-1][:each].tolist()}
    shown = {index for indices in sheet.values() for index in indices}
    shuffled = np.random.default_rng(seed).permutation(len(rows)).tolist()
    counts = collections.Counter(row.label or NO_LABEL for row in rows)
    for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_CLASSES]:
        queues = [
            [
                index
                for index in shuffled
                if index not in shown
                and (rows[index].label or NO_LABEL) == name
                and (rows[index].split == "train") == is_train
            ]
            for is_train in (True, False)
        ]
        half = max(COLUMNS // 2, COLUMNS - len(queues[1]))
        chosen = queues[0][:half]
        chosen += queues[1][: COLUMNS - len(chosen)]
        sheet[name] = chosen
        shown |= set(chosen)
    return {title: indices for title, indices in sheet.items() if indices}


def draw_overlay(path: Path, rows: Sequence[examples.Example], *, seed: int) -> None:
    """Draws the sheet of images with their true boxes.

    Raises:
        ModuleNotFoundError: matplotlib, of the `report` extra, is not installed.
    """
    from medloc_jax.evaluation import contact_sheet  # here: matplotlib is an extra, and slow

    shares = box_area_percent(rows)
    contact_sheet.draw(
        path,
        {
            title: [
                contact_sheet.Cell(
                    image_path=Path(rows[index].image_path),
                    caption=f"{_short(rows[index].id)}\n{rows[index].split}, "
                    f"{_percent(shares[index])}",
                    target_box_px=rows[index].box_px,
                    box_px=None,
                    view_px=zoom(rows[index]),
                )
                for index in indices
            ]
            for title, indices in choose_examples(rows, seed=seed).items()
        },
    )


def zoom(row: examples.Example) -> tuple[int, int, int, int] | None:
    """The part of its image in which a small box can be seen.

    Returns:
        xyxy in whole px, inside the image and of its proportions, the box in the middle as far as
        the edges allow; None: the whole image will do.
    """
    x1, y1, x2, y2 = row.box_px
    share = max((x2 - x1) / row.width, (y2 - y1) / row.height)
    share_shown = max(ZOOM_CONTEXT * share, ZOOM_LEAST_PX / max(row.width, row.height))
    if share >= ZOOM_BELOW or share_shown >= 1:
        return None
    width, height = math.ceil(share_shown * row.width), math.ceil(share_shown * row.height)
    left = min(max(0, round((x1 + x2 - width) / 2)), row.width - width)
    top = min(max(0, round((y1 + y2 - height) / 2)), row.height - height)
    return left, top, left + width, top + height


def _short(text: str, longest: int = 16) -> str:
    """The end of a long id, which is what differs."""
    return text if len(text) <= longest else "…" + text[1 - longest :]


def _percent(value: float) -> str:
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.2g} %"
