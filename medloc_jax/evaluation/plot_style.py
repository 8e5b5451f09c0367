# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the pictures of a report have in common: colours, smoothing, axes, legends, the saved file.

Figures are made without pyplot: no window system is asked for and no global backend is changed.
The colours are Okabe and Ito's, which colour-blind readers tell apart; where two lines matter most,
they differ in dash or marker too.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medloc_jax.evaluation.run_folder import Series

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#222222", "#888888"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
DASHES = ("-", "--", ":", "-.")
FLOOR_DASHES = (0, (5, 3))
# Seven colours, four dashes and eleven markers: the first repetition of all three is far off.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")

_WIDTH_INCHES = 9.0
NARROW_INCHES = 6.4  # of a figure whose letters are to be read on a phone
_DPI = 150
_STYLE: dict[Any, Any] = {
    "font.size": 11.0,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 10.0,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
}


def smoothing_window(n: int) -> int:
    """Points a smoothed line averages over: a thirtieth of them, at least 5 once there are 20."""
    return max(1, round(n / 30), 5 if n >= 20 else 1)


def trailing_mean(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """Mean of the last `window` values; of all there are, at the start. It never looks ahead."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - window)
    return (sums[end] - sums[start]) / (end - start)


def line_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, dashes and marker of each name: no two alike among the first 77, dashes by sevens."""
    return {
        name: {
            "color": CYCLE[index % len(CYCLE)],
            "linestyle": DASHES[(index // len(CYCLE)) % len(DASHES)],
            "marker": MARKERS[index % len(MARKERS)],
        }
        for index, name in enumerate(dict.fromkeys(names))
    }


@contextlib.contextmanager
def figure_file(path: Path, *, height: float, width: float = _WIDTH_INCHES) -> Iterator[Figure]:
    """A figure in the common style (inches, the common width by default), saved at the end."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
        yield figure
        figure.savefig(path, format="png")


def draw_smoothed(
    axes: Axes, series: Series, color: str, label: str, *, raw: bool = True, dashes: str = "-"
) -> None:
    """A trailing mean, over a light line of every step if `raw`; the step axis explains both."""
    if not len(series.steps):
        return
    window = smoothing_window(len(series.steps))
    if raw and window > 1:
        axes.plot(series.steps, series.values, color=color, alpha=0.25, linewidth=0.9)
    axes.plot(
        series.steps,
        trailing_mean(series.values, window),
        color=color,
        linestyle=dashes,
        label=label,
    )
    axes.set_xlabel(
        f"step (light: each; strong: mean of the last {window})" if window > 1 else "step"
    )


def set_steps_axis(axes: Axes, all_series: Sequence[Series]) -> None:
    """Whole steps along x, from the first to the last of any series."""
    steps = np.concatenate([series.steps for series in all_series])
    if not len(steps):
        return
    first, last = steps.min(), steps.max()
    if first == last:
        axes.set_xticks([first])
        axes.set_xlim(first - 1, first + 1)
    else:
        axes.xaxis.set_major_locator(step_ticks())
        margin = 0.02 * (last - first)
        axes.set_xlim(first - margin, last + margin)


def set_share_axis(axes: Axes) -> None:
    """Per cent along y, from none to all."""
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(percent_formatter())


def percent_formatter() -> ticker.FuncFormatter:
    """Writes 0.5 as 50%, and 0.025 as 2.5%: PercentFormatter would round one or pad the other."""
    return ticker.FuncFormatter(lambda value, _: f"{100 * value:.3g}%")


def step_ticks() -> ticker.MaxNLocator:
    """At most nine round, whole numbers."""
    return ticker.MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10])


def legend_above(figure: Figure, columns: int | None = None) -> None:
    """One legend for the whole figure, outside the axes, so that it never hides a curve."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="outside upper left",
            ncols=columns or fitting_columns(list(entries), figure.get_figwidth()),
        )


def fitting_columns(labels: Sequence[str], width: float = _WIDTH_INCHES) -> int:
    """Legend columns that fit `width` inches: 11.7 characters an inch, and 8 for each handle."""
    characters = int(width * 105 / _WIDTH_INCHES)
    return max(1, min(len(labels) + 1, characters // (8 + max(map(len, labels)))))
