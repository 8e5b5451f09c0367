# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of the answers of many methods: how good, on what, how sure, and how they fail."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import ticker

from medloc_jax.evaluation import plot_style
from medloc_jax.evaluation.plot_style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    NARROW_INCHES,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
)

_BINS = 20
_CHARACTERS = 44  # of a title over half of a figure's width


class Grid(NamedTuple):
    """A share for each method (row) and kind of example (column)."""

    rows: Sequence[str]
    columns: Sequence[str]
    counts: Sequence[int]  # examples in each column
    shares: Float[np.ndarray, "rows columns"]  # NaN where there are none


class Agreement(NamedTuple):
    """One method's groups, binned by how far their answers agree."""

    agreement: Float[np.ndarray, " n"]  # mean of the bin
    iou: Float[np.ndarray, " n"]  # mean IoU of the answers in it
    count: Sequence[int]  # groups in it


def iou_histograms(path: Path, ious: Mapping[str, Float[np.ndarray, " n"]]) -> None:
    """A small histogram a method, all to one scale; the dotted lines are IoU 0.5 and 0.8."""
    columns = 1 if len(ious) == 1 else 2
    rows = math.ceil(len(ious) / columns)
    with plot_style.figure_file(path, height=0.4 + 1.45 * rows, width=NARROW_INCHES) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in grid[len(ious) :]:
            axes.set_axis_off()
        for axes, (title, values) in zip(grid, ious.items(), strict=False):
            axes.hist(
                values,
                np.linspace(0, 1, _BINS + 1).tolist(),
                weights=np.full(len(values), 1 / len(values)),
                color=SKY,
                edgecolor="white",
                linewidth=0.4,
            )
            for threshold in (0.5, 0.8):
                axes.axvline(threshold, color=VERMILLION, linewidth=1.2, linestyle=(0, (1, 2)))
            axes.axvline(float(np.median(values)), color=BLACK, linewidth=1.4, linestyle="--")
            axes.set_title(textwrap.fill(title, _CHARACTERS), fontsize=10)
            axes.yaxis.set_major_formatter(plot_style.percent_formatter())
            axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_locator(ticker.MultipleLocator(0.2))
            axes.set_xlim(0, 1)
        for axes in grid[max(0, len(ious) - columns) : len(ious)]:
            axes.tick_params(labelbottom=True)
        figure.supxlabel("IoU with the true box", fontsize=11)
        figure.supylabel("share of answers", fontsize=11)


def share_grid(path: Path, grid: Grid, *, title: str, label: str) -> None:
    """Methods against kinds of example, a number in each field over its shade.

    Args:
        path: of the PNG.
        grid: what is shown.
        title: above it.
        label: of the columns.
    """
    rows, columns = len(grid.rows), len(grid.columns)
    height = 1.5 + 0.3 * rows + 0.14 * max(map(len, grid.columns))
    with plot_style.figure_file(path, height=height, width=NARROW_INCHES) as figure:
        axes = figure.subplots()
        image = axes.imshow(grid.shares, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for row in range(rows):
            best = grid.shares[row] == np.nanmax(grid.shares, axis=0, initial=-1.0)
            for column in range(columns):
                share = grid.shares[row, column]
                axes.text(
                    column,
                    row,
                    "-" if np.isnan(share) else f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=9 if columns <= 8 else 7,
                    color="white" if np.isnan(share) or share < 0.55 else "black",
                    fontweight="bold" if best[column] else "normal",
                )
        names = [
            f"{name}\n(n = {count})" for name, count in zip(grid.columns, grid.counts, strict=True)
        ]
        slanted = max(map(len, grid.columns)) * columns > 48
        axes.set_xticks(
            range(columns),
            names,
            fontsize=9,
            rotation=40 if slanted else 0,
            ha="right" if slanted else "center",
            rotation_mode="anchor" if slanted else "default",
        )
        axes.set_yticks(range(rows), grid.rows, fontsize=9)
        axes.set_xlabel(label)
        axes.set_title(title)
        axes.grid(False)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
        bar.ax.yaxis.set_major_formatter(plot_style.percent_formatter())
        bar.ax.tick_params(labelsize=9)


def calibration(path: Path, methods: Mapping[str, Agreement]) -> None:
    """Mean IoU of a group against how far its answers agree; the dashed line is where they equal.

    Below, how many groups there are in each bin: a point of a few groups says little.
    """
    styles = plot_style.line_styles(list(methods))
    columns = plot_style.fitting_columns(list(methods), NARROW_INCHES)
    height = 5.2 + 0.24 * math.ceil((1 + len(methods)) / columns)
    with plot_style.figure_file(path, height=height, width=NARROW_INCHES) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
        top.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (5, 3)), linewidth=1.2, label="equal")
        for title, one in methods.items():
            top.plot(one.agreement, one.iou, label=title, markersize=6, **styles[title])
            bottom.plot(one.agreement, one.count, markersize=4, linewidth=1.2, **styles[title])
        top.set(xlim=(0, 1), ylim=(0, 1), ylabel="mean IoU with the true box")
        bottom.set(xlabel="agreement (mean IoU of all pairs of answers)", ylabel="groups")
        bottom.set_yscale("log")
        bottom.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        plot_style.legend_above(figure, columns)


# Kinds differ in hatch as well as in colour, in the order of most harm first.
_FILLS = ((BLACK, ""), (VERMILLION, "//"), (ORANGE, ""), (SKY, "\\\\"), (PURPLE, ".."), (BLUE, ""))
_GOOD = (GREEN, "")


def failures(path: Path, methods: Mapping[str, Mapping[str, float]]) -> None:
    """A bar a method: the share of each kind of failure among all answers.

    Args:
        path: of the PNG.
        methods: title -> kind -> share of all answers; the same kinds in the same order.
    """
    kinds = list(next(iter(methods.values())))
    columns = plot_style.fitting_columns(kinds, NARROW_INCHES)
    height = 1.0 + 0.34 * len(methods) + 0.26 * math.ceil(len(kinds) / columns)
    with plot_style.figure_file(path, height=height, width=NARROW_INCHES) as figure:
        axes = figure.subplots()
        rows = np.arange(len(methods))
        start = np.zeros(len(methods))
        for index, kind in enumerate(kinds):
            color, hatch = _FILLS[index % len(_FILLS)]
            widths = np.array([shares[kind] for shares in methods.values()])
            axes.barh(
                rows,
                widths,
                left=start,
                height=0.74,
                color=color,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.6,
                label=kind,
            )
            start += widths
        for row, total in zip(rows, start, strict=True):
            axes.annotate(
                f"{100 * total:.0f}%",
                (total, row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(rows, list(methods), fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(0, min(1.0, 1.12 * max(float(start.max()), 0.05)))
        axes.xaxis.set_major_formatter(plot_style.percent_formatter())
        axes.set_xlabel("share of all answers")
        axes.grid(False, axis="y")
        plot_style.legend_above(figure, columns)
