# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the last evaluation gave by one setting of the curriculum: every seed, and their mean."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from medloc_jax.evaluation import figures_arms, plot_style
from medloc_jax.evaluation.document import Picture
from medloc_jax.evaluation.figures_arms import Arm, NotThere
from medloc_jax.evaluation.plot_style import BLUE, GREEN, VERMILLION

MEASURES: dict[str, tuple[str, str, str, Any]] = {  # title, colour, marker, dashes
    "a50": ("A@0.5", BLUE, "o", "-"),
    "map": ("mAP", GREEN, "^", "--"),
    "a80": ("A@0.8", VERMILLION, "s", ":"),
}


def step_sizes(arms: Sequence[Arm], out: Path) -> list[Picture]:
    """The paper's Figure 6: the result by the size of a constant step.

    Raises:
        NotThere: no two arms differ in it alone.
    """
    return _draw(arms, out, "figure_6_step_size.png", {"curriculum.step_size_start": "step size"})


def windows(arms: Sequence[Arm], out: Path) -> list[Picture]:
    """The paper's Figure 7: the result by window size, and by the share of it that is refreshed.

    Raises:
        NotThere: no two arms differ in either alone.
    """
    return _draw(
        arms,
        out,
        "figure_7_window.png",
        {
            "curriculum.window": "window (entries)",
            "curriculum.refresh_fraction": "share of the window dropped after an update",
        },
    )


def _draw(arms: Sequence[Arm], out: Path, name: str, keys: Mapping[str, str]) -> list[Picture]:
    """A panel a setting that varies; a setting that does not is named in the caption."""
    families, absent = {}, []
    for key, label in keys.items():
        family = figures_arms.by_setting(arms, key)
        split, evaluated = figures_arms.last_evaluations(list(family.values()))
        runs = {arm.title: arm for arm in evaluated}
        family = {value: runs[arm.title] for value, arm in family.items() if arm.title in runs}
        if len(family) > 1:
            families[key] = (label, split, family)
        else:
            absent.append(key)
    if not families:
        raise NotThere(
            f"evaluated runs of medloc that differ in {' or '.join(keys)} alone: a sweep over it"
        )
    height = 0.6 + 3.0 * len(families)
    with plot_style.figure_file(
        out / name, height=height, width=plot_style.NARROW_INCHES
    ) as figure:
        grid = figure.subplots(len(families), 1, squeeze=False)[:, 0]
        for axes, (label, split, family) in zip(grid, families.values(), strict=True):
            _panel(axes, family, split)
            axes.set_xlabel(label)
            axes.set_title(f"last evaluation, {split} split")
        handles = [
            Line2D([], [], color=color, marker=marker, linestyle=dashes, label=title)
            for title, color, marker, dashes in MEASURES.values()
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
    caption = (
        "Mean over seeds (line), one sample standard deviation (whiskers), every seed (small dots)."
    )
    if absent:
        caption += f" No runs differ in {', '.join(absent)} alone."
    return [Picture(name, caption)]


def _panel(axes: Axes, family: Mapping[Any, Arm], split: str) -> None:
    # Even spaces: settings go up by factors, and 5 and 10 would be on top of each other.
    places = np.arange(len(family))
    for index, (measure, (_, color, marker, dashes)) in enumerate(MEASURES.items()):
        values = [
            [
                v
                for run in arm.runs
                for v in [run.of_split(split)[-1].metrics.get(measure)]
                if v is not None
            ]
            for arm in family.values()
        ]
        there = [place for place, each in zip(places, values, strict=True) if each]
        means = [float(np.mean(each)) for each in values if each]
        spreads = [float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for each in values if each]
        shifted = np.asarray(there) + 0.05 * (index - 1)
        axes.errorbar(
            shifted,
            means,
            yerr=spreads,
            color=color,
            marker=marker,
            linestyle=dashes,
            capsize=3,
            linewidth=1.6,
        )
        for place, each in zip(shifted, [each for each in values if each], strict=True):
            if len(each) > 1:
                axes.plot([place] * len(each), each, ".", color=color, alpha=0.45, markersize=4)
    axes.set_xticks(places, [f"{v:g}" if isinstance(v, int | float) else str(v) for v in family])
    axes.yaxis.set_major_formatter(plot_style.percent_formatter())
