# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's Figure 4: two methods and the truth on the same images, with what each has said."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import patches, patheffects
from matplotlib.axes import Axes

from medloc_jax.evaluation import contact_sheet, figures_arms, plot_style
from medloc_jax.evaluation.document import Picture
from medloc_jax.evaluation.figures_arms import Arm, NotThere
from medloc_jax.evaluation.plot_style import GREEN, NARROW_INCHES, ORANGE
from medloc_jax.model import processor

# Who is shown against whom where both are there; else the two best by mIoU.
PAIR = ("medloc", "fixed")
_IMAGES = 4
_SEED = 0
_LONGEST_TEXT = 260  # characters of a completion
_CHARACTERS = 46  # in a line below a picture


class _Example(NamedTuple):
    image_path: Path
    why: str  # it was chosen
    first: Mapping[str, Any]  # prediction
    second: Mapping[str, Any]


def side_by_side(arms: Sequence[Arm], out: Path) -> list[Picture]:
    """Draws the images where either method gains most over the other, and some at random.

    Raises:
        NotThere: no two methods have predictions on one split whose images are found.
    """
    split, having = figures_arms.last_evaluations(arms, predictions=True)
    if len(having) < 2:
        raise NotThere("predictions of two methods on one split: `medloc evaluate` writes them")
    first, second = _pair(having, split)
    examples = _choose(first, second, split)
    if not examples:
        raise NotThere(
            f"the images of {split} that two methods both answered: looked for beside the manifest "
            "that config.json names"
        )
    name = "figure_4_examples.png"
    _draw(out / name, examples, (first.title, second.title))
    return [
        Picture(
            name,
            f"{split} split, first seed of each. Green: true box; orange, dashed: the answer. "
            f"Images: where {first.title} gains most over {second.title}, where it loses most, and "
            f"a random draw. Texts longer than {_LONGEST_TEXT} characters are cut, marked by "
            "an ellipsis.",
            photo=True,
        )
    ]


def _pair(arms: Sequence[Arm], split: str) -> tuple[Arm, Arm]:
    by_name = {arm.name: arm for arm in arms}
    if all(name in by_name for name in PAIR):
        return by_name[PAIR[0]], by_name[PAIR[1]]
    quality = [
        np.mean([run.of_split(split)[-1].metrics.get("miou", 0.0) for run in arm.runs])
        for arm in arms
    ]
    best = np.argsort(quality, kind="stable")[::-1]
    return arms[best[0]], arms[best[1]]


def _choose(first: Arm, second: Arm, split: str) -> list[_Example]:
    """Most gained, most lost, and two at random, of what both answered; no image twice."""
    run = first.runs[0]
    evaluation = [entry for entry in run.of_split(split) if entry.has_predictions][-1]
    ours = {p["id"]: p for p in evaluation.predictions()}
    theirs = {p["id"]: p for p in figures_arms.last_predictions(second.runs[0], split)}
    ids = [name for name in ours if name in theirs]
    gains = np.array([_iou(ours[name]) - _iou(theirs[name]) for name in ids])
    order = [int(index) for index in np.argsort(-gains, kind="stable")]
    shuffled = np.random.default_rng(_SEED).permutation(len(ids)).tolist()
    wanted = [("most gained", order), ("most lost", order[::-1]), *[("random", shuffled)] * 2]
    chosen, seen = [], set()
    for why, candidates in wanted[:_IMAGES]:
        for index in candidates:
            name = ids[index]
            path = run.image_path(ours[name], evaluation)
            if path is not None and path not in seen:
                seen.add(path)
                if not contact_sheet.can_be_drawn(path):
                    continue
                chosen.append(_Example(path, why, ours[name], theirs[name]))
                break
    return chosen


def _draw(path: Path, examples: Sequence[_Example], titles: tuple[str, str]) -> None:
    said = [[_said(each) for each in (e.first, e.second)] for e in examples]
    lines = [max(text.count("\n") + 1 for text in pair) for pair in said]
    heights = [2.1 + 0.15 * number for number in lines]
    with plot_style.figure_file(path, height=0.55 + sum(heights), width=NARROW_INCHES) as figure:
        grid = figure.subplots(
            2 * len(examples),
            2,
            squeeze=False,
            gridspec_kw={"height_ratios": [h for n in lines for h in (2.1, 0.15 * n)]},
        )
        for row, (example, texts) in enumerate(zip(examples, said, strict=True)):
            for column, prediction in enumerate((example.first, example.second)):
                axes = grid[2 * row, column]
                _picture(axes, example.image_path, prediction)
                title = f"{titles[column]}: IoU {_iou(prediction):.2f}"
                axes.set_title(title, fontsize=9.5, loc="center", pad=3)
                below = grid[2 * row + 1, column]
                below.set_axis_off()
                below.text(0.02, 1, texts[column], va="top", fontsize=8, family="DejaVu Sans")
            # In the first picture's corner: a label of its own would shift the columns.
            note = grid[2 * row, 0].text(
                0.03, 0.95, example.why, transform=grid[2 * row, 0].transAxes,
                va="top", fontsize=8.5, color="white",
            )  # fmt: skip
            note.set_path_effects([patheffects.withStroke(linewidth=2.2, foreground="#000000")])
        handles = [
            patches.Patch(fill=False, edgecolor=GREEN, linewidth=2, label="true box"),
            patches.Patch(
                fill=False, edgecolor=ORANGE, linewidth=2, linestyle="--", label="answer"
            ),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)


def _picture(axes: Axes, image_path: Path, prediction: Mapping[str, Any]) -> None:
    axes.set_axis_off()
    image = processor.open_image(image_path)
    width, height = image.size
    image.thumbnail((480, 480))
    axes.imshow(np.asarray(image), extent=(0, width, height, 0))
    answer = prediction["boxes_px"][0] if prediction["valid"] and prediction["boxes_px"] else None
    for box, color, dashes in (
        (prediction["target_boxes_px"][0], GREEN, "-"),
        (answer, ORANGE, (0, (4, 2))),
    ):
        if box is None:
            continue
        x1, y1, x2, y2 = box
        outline = patches.Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=1.8,
            linestyle=dashes, clip_on=False,
        )  # fmt: skip
        outline.set_path_effects([patheffects.withStroke(linewidth=3.2, foreground="#00000099")])
        axes.add_patch(outline)


def _said(prediction: Mapping[str, Any]) -> str:
    text = " ".join(str(prediction["completion"]).split())
    if len(text) > _LONGEST_TEXT:
        text = text[: _LONGEST_TEXT - 1] + "…"
    # A dollar sign would begin a formula.
    return "\n".join(textwrap.wrap(text or "(nothing)", _CHARACTERS)).replace("$", r"\$")


def _iou(prediction: Mapping[str, Any]) -> float:
    return figures_arms.counted_iou(prediction)
