# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every figure of a comparison: those that its runs hold are drawn, the others named.

A name such as `figure_3` is the paper's number; the others are ours.
"""

import collections
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medloc_jax.evaluation import (
    calibration,
    failures,
    figures_answers,
    figures_arms,
    figures_examples,
    figures_settings,
    figures_steps,
    results,
    run_folder,
    strata,
)
from medloc_jax.evaluation.document import Block, Heading, Picture
from medloc_jax.evaluation.figures_arms import Arm, NotThere


def blocks(runs: Sequence[run_folder.Run], out: Path, missing: list[str]) -> list[Block]:
    """Draws the figures of a comparison into `out`, data set by data set.

    Args:
        runs: all runs of the comparison.
        out: folder of the report.
        missing: gets a line for each figure that could not be drawn, with what would give it.

    Returns:
        A heading and a picture for each figure that was drawn.
    """
    by_data_set = figures_arms.by_data_set(runs)
    result: list[Block] = []
    for number, (name, members) in enumerate(by_data_set.items()):
        several = len(by_data_set) > 1
        folder = out
        if several:
            folder = out / f"data_{number}"
            folder.mkdir(parents=True, exist_ok=True)
        arms = figures_arms.arms(members)
        for title, draw in FIGURES.items():
            heading = f"{title}: {name}" if several else title
            try:
                pictures = draw(arms, folder)
            except NotThere as reason:
                missing.append(f"figure “{heading}”: {reason}")
                continue
            result.append(Heading(heading))
            for picture in pictures:
                file = str((folder / picture.file).relative_to(out))
                result.append(Picture(file, picture.caption, photo=picture.photo))
    return result


def _answers(arms: Sequence[Arm]) -> tuple[str, dict[str, list[list[dict[str, Any]]]]]:
    """The split, and by method the predictions of each of its seeds.

    Raises:
        NotThere: no run has any.
    """
    split, having = figures_arms.last_evaluations(arms, predictions=True)
    found = {}
    for arm in having:
        runs = [figures_arms.last_predictions(run, split) for run in arm.runs]
        runs = [predictions for predictions in runs if predictions]
        if runs:
            found[arm.title] = runs
    if not found:
        raise NotThere("eval/*/predictions.jsonl, which `medloc evaluate` and a training run write")
    return split, found


def _histograms(arms: Sequence[Arm], out: Path) -> list[Picture]:
    split, answers = _answers(arms)
    name = "iou_by_method.png"
    ious = {
        title: np.concatenate([results.ious(predictions) for predictions in runs])
        for title, runs in answers.items()
    }
    figures_answers.iou_histograms(out / name, ious)
    caption = (
        f"IoU of the answers of the last evaluation, {split} split, all seeds together. Dotted: "
        "0.5 and 0.8; dashed: the median. An answer that does not parse counts as 0."
    )
    return [Picture(name, caption)]


def _by_class(arms: Sequence[Arm], out: Path) -> list[Picture]:
    split, answers = _answers(arms)
    counted = [collections.Counter(strata.labels(lines)) for r in answers.values() for lines in r]
    counts = functools.reduce(operator.or_, counted)
    if len(counts) < 2:
        raise NotThere("two classes: the manifest's `label`, which predictions.jsonl repeats")
    shown = [name for name, _ in counts.most_common(strata.MOST_CLASSES)]
    file = "accuracy_by_class.png"
    grid = _grid(answers, strata.labels, {name: counts[name] for name in shown})
    figures_answers.share_grid(out / file, grid, title=f"A@0.5 in per cent, {split}", label="class")
    number = "examples" if all(one == counts for one in counted) else "the most of any run"
    caption = f"A@0.5 by class, mean over the seeds; n: {number}. Bold: the best of a column."
    if len(shown) < len(counts):
        caption += f" The {len(shown)} most frequent of {len(counts)} classes."
    return [Picture(file, caption)]


def _by_size(arms: Sequence[Arm], out: Path) -> list[Picture]:
    split, answers = _answers(arms)
    areas, unit = strata.areas(next(iter(answers.values()))[0])
    parts, (low, high) = strata.tertiles(areas)
    file = "accuracy_by_size.png"
    counts = {size: parts.count(size) for size in strata.SIZES if size in parts}
    grid = _grid(answers, lambda lines: strata.tertiles(strata.areas(lines)[0])[0], counts)
    figures_answers.share_grid(
        out / file, grid, title=f"A@0.5 in per cent, {split}", label="size of the true box"
    )
    borders = (
        f"{100 * low:.3g}% and {100 * high:.3g}% of the image"
        if unit == "share of image"
        else f"{low:,.0f} and {high:,.0f} px²"
    )
    caption = (
        f"A@0.5 by thirds of the examples by the area of the true box (borders: {borders}), mean "
        "over the seeds; n: examples. Bold: the best of a column."
    )
    return [Picture(file, caption)]


def _grid(
    answers: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    stratify: Callable[[Sequence[Mapping[str, Any]]], Sequence[str]],
    counts: Mapping[str, int],
) -> figures_answers.Grid:
    """Mean over the seeds of A@0.5 in each stratum of `counts`."""
    rows = []
    for runs in answers.values():
        found = [strata.accuracy(predictions, stratify(predictions)) for predictions in runs]
        columns = [[one[name][0] for one in found if name in one] for name in counts]
        rows.append([float(np.mean(each)) if each else float("nan") for each in columns])
    return figures_answers.Grid(
        list(answers), list(counts), list(counts.values()), np.asarray(rows)
    )


def _calibration(arms: Sequence[Arm], out: Path) -> list[Picture]:
    methods = {}
    for arm in arms:
        runs = [calibration.groups(run.rollouts) for run in arm.runs]
        found = calibration.Groups(*(np.concatenate(side) for side in zip(*runs, strict=True)))
        parts = [part for part in calibration.bins(found) if part.count]
        if parts:
            methods[arm.title] = figures_answers.Agreement(
                np.asarray([part.agreement for part in parts]),
                np.asarray([part.iou for part in parts]),
                [part.count for part in parts],
            )
    if not methods:
        raise NotThere("sampled groups in rollouts.jsonl, which a GRPO run writes as it trains")
    name = "calibration.png"
    figures_answers.calibration(out / name, methods)
    caption = (
        "Does agreement tell quality? Groups of the later half of rollouts.jsonl, all seeds "
        "together, in bins of agreement: their mean IoU with the true box, and how many they are. "
        "On the dashed line agreement equals it."
    )
    return [Picture(name, caption)]


def _failures(arms: Sequence[Arm], out: Path) -> list[Picture]:
    split, answers = _answers(arms)
    shares = {}
    for title, runs in answers.items():
        kinds = [failures.kind(line) for predictions in runs for line in predictions]
        shares[title] = {name: kinds.count(name) / len(kinds) for name in failures.KINDS}
    name = "failures.png"
    figures_answers.failures(out / name, shares)
    caption = f"Share of all answers that fail, by kind; {split} split, all seeds. {failures.RULE}"
    return [Picture(name, caption)]


FIGURES: dict[str, Callable[[Sequence[Arm], Path], list[Picture]]] = {
    "Rewards and threshold (Figure 1)": figures_steps.rewards_and_threshold,
    "Accuracy over steps (Figure 3)": figures_steps.accuracy,
    "Two methods and the truth (Figure 4)": figures_examples.side_by_side,
    "Threshold and reward by form of the step size (Figure 5)": figures_steps.step_size_forms,
    "Result by step size (Figure 6)": figures_settings.step_sizes,
    "Result by window and refresh (Figure 7)": figures_settings.windows,
    "Groups without signal": figures_steps.zero_advantage,
    "IoU by method": _histograms,
    "A@0.5 by class": _by_class,
    "A@0.5 by box size": _by_size,
    "Agreement of a group against its IoU": _calibration,
    "Kinds of failure": _failures,
}
