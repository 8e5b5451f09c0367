# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The picture of `medloc diagnose`: hits, groups without signal, and signal by threshold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medloc_jax.evaluation import plot_style

_TITLE = 48  # characters that fit
_SIZE_STYLES = {"small": ":", "middle": "--", "large": "-."}


def draw(path: Path, title: str, measured: Mapping[str, Any], advice: Mapping[str, Any]) -> None:
    """Draws the two panels.

    Args:
        path: of the PNG.
        title: what was looked at.
        measured: of `diagnose.measure`.
        advice: of `diagnose.recommend`; its threshold is marked.
    """
    rows = measured["by_threshold"]
    thresholds = [one["threshold"] for one in rows]
    raw, start = measured["raw_iou"], advice["threshold_start"]
    with plot_style.figure_file(path, height=4.2) as figure:
        left, right = figure.subplots(1, 2)
        lines = (
            ("hit_rate", "hits", plot_style.BLUE, "o"),
            ("zero_advantage_rate", "groups without signal", plot_style.VERMILLION, "s"),
        )
        for key, label, color, marker in lines:
            left.plot(thresholds, [one[key] for one in rows], color=color, marker=marker)
            left.lines[-1].set_label(label)
        left.axhline(
            raw["zero_advantage_rate"],
            color=plot_style.GREY,
            linestyle=plot_style.FLOOR_DASHES,
            label="groups without signal, raw IoU",
        )
        plot_style.set_share_axis(left)
        left.set_title(title if len(title) <= _TITLE else f"...{title[3 - _TITLE :]}")
        values = [one["signal"] for one in rows]
        right.plot(thresholds, values, color=plot_style.GREEN, marker="D", label="signal, all")
        for part in measured["by_size"]:
            right.plot(
                thresholds,
                [one["signal"] for one in part["by_threshold"]],
                color=plot_style.BLACK,
                linewidth=1.1,
                linestyle=_SIZE_STYLES[part["name"]],
                label=f"signal, {part['name']} boxes",
            )
        right.set_title("Mean of p(1 - p) over groups")
        right.set_ylim(0, 0.26)
        for axes in (left, right):
            axes.set_xlabel("IoU that earns the reward")
            axes.set_xticks(thresholds)
            if start is not None:
                axes.axvline(start, color=plot_style.ORANGE, linewidth=1.2, label="suggested tau0")
        plot_style.legend_above(figure)
