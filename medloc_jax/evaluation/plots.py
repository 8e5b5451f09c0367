# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The curves and histograms of a report: arrays in, PNG files out."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import patheffects, ticker, transforms
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medloc_jax.evaluation import plot_style
from medloc_jax.evaluation.plot_style import (
    BLACK,
    BLUE,
    CYCLE,
    DASHES,
    FLOOR_DASHES,
    GREEN,
    GREY,
    SKY,
    VERMILLION,
)
from medloc_jax.evaluation.run_folder import Series

MEASURES = {
    "a50": ("A@0.5", BLUE, "o"),
    "map": ("mAP", GREEN, "^"),
    "a80": ("A@0.8", VERMILLION, "s"),
}


class Spread(NamedTuple):
    """The IoUs of one split: last evaluation, and first one where that is another."""

    title: str
    ious: Float[np.ndarray, " n"]
    start_ious: Float[np.ndarray, " m"] | None


class Curves(NamedTuple):
    """One run in a comparison: runs of one `label` share a colour."""

    label: str
    series: Mapping[str, Series]


def reward_and_threshold(path: Path, reward: Series, mean_iou: Series, threshold: Series) -> None:
    """Reward and threshold in force on one axis (the paper's Figure 1), marked where it rose."""
    with plot_style.figure_file(path, height=4.6) as figure:
        axes = figure.subplots()
        plot_style.draw_smoothed(axes, reward, BLUE, "reward/total")
        plot_style.draw_smoothed(
            axes, mean_iou, GREEN, "mean IoU of completions", raw=False, dashes="--"
        )
        if len(threshold.steps):
            axes.step(
                threshold.steps,
                threshold.values,
                where="post",
                color=VERMILLION,
                linewidth=2.4,
                label="threshold (IoU that earns a reward)",
            )
            _mark_rises(axes, threshold)
        tops = [series.values.max() for series in (reward, threshold) if len(series.values)]
        bottoms = [series.values.min() for series in (reward,) if len(series.values)]
        axes.set_ylim(min([-0.02, *bottoms]), max([1.02, *tops]) * 1.04)
        axes.set_ylabel("reward, IoU")
        plot_style.set_steps_axis(axes, [reward, mean_iou, threshold])
        plot_style.legend_above(figure)


def accuracy(
    path: Path,
    by_split: Mapping[str, Mapping[str, Series]],
    floors: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]],
) -> None:
    """A@0.5, A@0.8 and mAP over the steps, a panel a split; the constant-box floor dashed.

    Args:
        path: of the PNG.
        by_split: split -> measure -> its series.
        floors: split -> measure -> the floor, where it is known.
        intervals: split -> measure -> step -> (low, high), drawn as whiskers.
    """
    # Curves first; a split that was only looked at once is a narrow panel with its numbers.
    lengths = {
        split: max(len(one.steps) for one in measures.values())
        for split, measures in by_split.items()
    }
    splits = sorted(by_split, key=lambda split: lengths[split] == 1)
    widths = [1.2 if lengths[split] == 1 else 3 for split in splits]
    with plot_style.figure_file(path, height=4.4) as figure:
        panels = figure.subplots(
            1, len(splits), sharey=True, squeeze=False, gridspec_kw={"width_ratios": widths}
        )[0]
        for axes, split in zip(panels, splits, strict=True):
            for index, (measure, series) in enumerate(by_split[split].items()):
                # A few points of paper apart, so that the whiskers do not hide each other.
                shift = (index - 1) * (22.0 if lengths[split] == 1 else 3.5)
                _one_accuracy(
                    figure, axes, measure, series, intervals.get(split, {}).get(measure, {}), shift
                )
                floor = floors.get(split, {}).get(measure)
                if floor is not None:
                    label, color, _ = MEASURES[measure]
                    axes.axhline(
                        floor,
                        color=color,
                        linestyle=FLOOR_DASHES,
                        linewidth=1.3,
                        label=f"{label}, floor",
                    )
            axes.set_title(f"{split} split")
            axes.set_xlabel("step")
            plot_style.set_steps_axis(axes, list(by_split[split].values()))
        panels[0].set_ylabel("share of examples")
        plot_style.set_share_axis(panels[0])
        plot_style.legend_above(figure, columns=6)


def _one_accuracy(
    figure: Figure,
    axes: Axes,
    measure: str,
    series: Series,
    intervals: Mapping[int, Sequence[float]],
    shift_points: float,
) -> None:
    label, color, marker = MEASURES[measure]
    shift = transforms.ScaledTranslation(shift_points / 72, 0, figure.dpi_scale_trans)
    place = axes.transData + shift
    axes.plot(
        series.steps,
        series.values,
        marker=marker,
        color=color,
        label=label,
        transform=place,
        markersize=7 if len(series.steps) < 30 else 4,
    )
    for step, (low, high) in intervals.items():
        axes.plot([step, step], [low, high], color=color, linewidth=1.2, alpha=0.6, transform=place)
    if len(series.steps) == 1:
        axes.annotate(
            f"{100 * series.values[0]:.0f}",
            (series.steps[0], series.values[0]),
            color=color,
            xytext=(shift_points + 6, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
        )


def iou_histograms(path: Path, panels: Sequence[Spread]) -> None:
    """How the IoUs of the last evaluations are spread, over the first ones where there are any."""
    edges = [k / 20 for k in range(21)]
    with plot_style.figure_file(path, height=4.0) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, panel in zip(grid, panels, strict=True):
            axes.hist(
                panel.ious,
                edges,
                weights=np.full(len(panel.ious), 1 / len(panel.ious)),
                color=SKY,
                edgecolor="white",
                label="last evaluation",
            )
            if panel.start_ious is not None:
                axes.hist(
                    panel.start_ious,
                    edges,
                    weights=np.full(len(panel.start_ious), 1 / len(panel.start_ious)),
                    histtype="step",
                    color=BLACK,
                    linewidth=1.6,
                    linestyle="--",
                    label="first evaluation",
                )
            axes.set(xlabel="IoU of the answer with the true box", title=panel.title)
            axes.yaxis.set_major_formatter(plot_style.percent_formatter())
            axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_locator(ticker.MultipleLocator(0.1 if len(panels) == 1 else 0.2))
            axes.set_xlim(0, 1)
            axes.margins(y=0.12)  # room for the names of the two lines
            for threshold in (0.5, 0.8):
                axes.axvline(threshold, color=VERMILLION, linewidth=1.3, linestyle=(0, (1, 2)))
                axes.annotate(
                    f"A@{threshold}",
                    (threshold, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(3, -2),
                    textcoords="offset points",
                    va="top",
                    color=VERMILLION,
                    fontsize=10,
                )
        grid[0].set_ylabel("share of examples")
        plot_style.legend_above(figure)


def rates(path: Path, series: Mapping[str, Series]) -> None:
    """Shares between 0 and 1 over the steps, each smoothed over its light raw line."""
    with plot_style.figure_file(path, height=3.9) as figure:
        axes = figure.subplots()
        for index, (label, one) in enumerate(series.items()):
            plot_style.draw_smoothed(
                axes,
                one,
                CYCLE[index],
                label,
                dashes=DASHES[index % len(DASHES)],
            )
        axes.set_ylabel("share")
        plot_style.set_share_axis(axes)
        plot_style.set_steps_axis(axes, list(series.values()))
        plot_style.legend_above(figure)


def blocked(path: Path, criteria: Mapping[str, Series], tightened: Series) -> None:
    """A strip a criterion, filled at the steps where it held the threshold back."""
    with plot_style.figure_file(path, height=0.9 + 0.62 * len(criteria)) as figure:
        axes = figure.subplots()
        for index, series in enumerate(criteria.values()):
            row = len(criteria) - 1 - index
            steps = series.steps[series.values > 0]
            axes.broken_barh(
                [(step - 0.5, 1) for step in steps],
                (row - 0.36, 0.72),
                color=CYCLE[index],
                linewidth=0,
            )
            share = len(steps) / max(1, len(series.steps))
            axes.annotate(
                f"{share:.0%} of steps",
                (1, row),
                xycoords=("axes fraction", "data"),
                va="center",
                xytext=(8, 0),
                textcoords="offset points",
            )
        rises = tightened.steps[tightened.values > 0]
        for number, step in enumerate(rises):
            axes.axvline(
                step,
                color=BLACK,
                linewidth=1.6,
                label="" if number else "threshold tightened",
            )
        axes.set_yticks(range(len(criteria)), list(criteria)[::-1])
        axes.set_ylim(-0.6, len(criteria) - 0.4)
        axes.grid(False)
        axes.set_xlabel("step")
        axes.set_title("blocked by …", fontsize=11)
        plot_style.set_steps_axis(axes, [*criteria.values()])
        if len(rises):
            plot_style.legend_above(figure)


def losses(path: Path, loss: Series, token_accuracy: Series) -> None:
    """The supervised loss, and token accuracy beside it where it was logged."""
    with plot_style.figure_file(path, height=3.9) as figure:
        both = len(token_accuracy.steps) > 0
        panels = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
        plot_style.draw_smoothed(panels[0], loss, BLUE, "")
        panels[0].set(ylabel="nats per completion token", title="sft/loss")
        panels[0].set_ylim(bottom=0)
        plot_style.set_steps_axis(panels[0], [loss])
        if both:
            plot_style.draw_smoothed(panels[1], token_accuracy, GREEN, "")
            panels[1].set(ylabel="share of completion tokens", title="sft/token_accuracy")
            plot_style.set_share_axis(panels[1])
            plot_style.set_steps_axis(panels[1], [token_accuracy])


def comparison(
    path: Path,
    panels: Mapping[str, str],
    runs: Sequence[Curves],
    floors: Mapping[str, float],
) -> None:
    """The same metrics of several runs, a panel a metric; runs of one label share a colour.

    Args:
        path: of the PNG.
        panels: key in `Curves.series` -> title of its panel.
        runs: the curves; a series of one point is drawn as a marker.
        floors: key of a panel -> a height for a dashed grey line.
    """
    labels = list(dict.fromkeys(run.label for run in runs))
    # More methods than colours: the next round of the same colours comes dashed.
    styles: dict[str, dict[str, Any]] = {
        label: {
            "color": CYCLE[index % len(CYCLE)],
            "linestyle": DASHES[(index // len(CYCLE)) % len(DASHES)],
        }
        for index, label in enumerate(labels)
    }
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with plot_style.figure_file(path, height=0.5 + 3.1 * rows) as figure:
        # One step axis for all: a short run is seen to be short.
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (key, title) in zip(grid, panels.items(), strict=False):
            for run in runs:
                series = run.series.get(key)
                if series is not None and len(series.steps):
                    _one_curve(axes, series, styles[run.label], stepped=key == "threshold")
            if key in floors:
                axes.axhline(
                    floors[key],
                    color=GREY,
                    linestyle=FLOOR_DASHES,
                    linewidth=1.3,
                )
            axes.set_title(title)
            axes.tick_params(labelbottom=True)
            axes.xaxis.set_major_locator(plot_style.step_ticks())
            if "/" in key:
                plot_style.set_share_axis(axes)
            else:
                axes.set_ylim(-0.02, 1.02)
        for axes in grid[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel("step")
        handles = [Line2D([], [], label=label, **style) for label, style in styles.items()]
        if floors:
            handles.append(Line2D([], [], color=GREY, linestyle=FLOOR_DASHES, label="floor"))
        figure.legend(
            handles=handles, loc="outside upper left", ncols=plot_style.fitting_columns(labels)
        )


def _one_curve(axes: Axes, series: Series, style: dict[str, Any], *, stepped: bool) -> None:
    style = style | {"alpha": 0.85, "linewidth": 1.5}
    if stepped:
        axes.step(*series, where="post", **style)
    elif len(series.steps) == 1:
        axes.plot(*series, marker="D", **style)
    elif len(series.steps) > 40:
        smoothed = plot_style.trailing_mean(
            series.values, plot_style.smoothing_window(len(series.values))
        )
        axes.plot(series.steps, smoothed, **style)
    else:
        axes.plot(*series, marker="o", markersize=4, **style)


def _mark_rises(axes: Axes, threshold: Series) -> None:
    rises = 1 + np.flatnonzero(np.diff(threshold.values) > 0)
    axes.plot(
        threshold.steps[rises],
        threshold.values[rises],
        marker="^",
        linestyle="",
        markersize=8,
        color=VERMILLION,
        markeredgecolor="white",
        label="threshold raised" if len(rises) else "",
    )
    if len(rises) > 12:  # the numbers would run into each other
        return
    for index in [0, *rises]:
        axes.annotate(
            f"{threshold.values[index]:.2f}",
            (threshold.steps[index], threshold.values[index]),
            xytext=(4, 5),
            textcoords="offset points",
            color=VERMILLION,
            fontsize=10,
            path_effects=[patheffects.withStroke(linewidth=3, foreground="white")],
        )
