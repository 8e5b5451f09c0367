# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Curves of many methods over the steps: the mean over seeds, with a band where there is room."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from medloc_jax.evaluation import figures_arms, plot_style, run_folder
from medloc_jax.evaluation.document import Picture
from medloc_jax.evaluation.figures_arms import Arm, Band, NotThere

MOST_BANDS = 6  # more would lie over each other until nothing is seen
MEASURES = {"a50": "A@0.5", "a80": "A@0.8", "map": "mAP"}


def rewards_and_threshold(arms: Sequence[Arm], out: Path) -> list[Picture]:
    """The paper's Figure 1 for every method: mean reward, mean raw IoU, threshold in force.

    Raises:
        NotThere: no run logged its reward.
    """
    panels = {
        "reward/total": "mean reward of the sampled completions",
        "iou/raw_mean": "their mean IoU",
        "curriculum/threshold": "threshold in force (IoU that earns a reward)",
    }
    bands = _bands(arms, panels)
    if not any(len(one.steps) for one in bands["reward/total"].values()):
        raise NotThere("reward/total in metrics.jsonl, which a GRPO run of one step or more writes")
    name = "figure_1_rewards_and_threshold.png"
    _draw(out / name, {panels[key]: bands[key] for key in panels}, smoothed=True)
    return [
        Picture(
            name,
            f"{_how(arms, bands)} Rewards of different shapes are not one measure: compare methods "
            "by the IoU below. A method without a line in the last panel has no threshold.",
        )
    ]


def accuracy(arms: Sequence[Arm], out: Path) -> list[Picture]:
    """The paper's Figure 3: greedy accuracy over the steps, by method.

    Raises:
        NotThere: no split was evaluated at more than one step.
    """
    split = figures_arms.split_over_steps(arms)
    if not split:
        raise NotThere("evaluations of one split at two steps or more: set --config.eval.every")
    bands = {
        title: {
            arm.title: figures_arms.band([run.accuracy(split, measure) for run in arm.runs])
            for arm in arms
        }
        for measure, title in MEASURES.items()
    }
    name = "figure_3_accuracy.png"
    panels = {f"{title}, {split} split": one for title, one in bands.items() if _any(one)}
    _draw(out / name, panels, smoothed=False, share=True)
    return [Picture(name, _how(arms, panels))]


def step_size_forms(arms: Sequence[Arm], out: Path) -> list[Picture]:
    """The paper's Figure 5: threshold and reward by the form of the step size.

    Raises:
        NotThere: no two arms differ in that form alone.
    """
    forms = figures_arms.by_setting(arms, "curriculum.step_size")
    if not forms:
        raise NotThere(
            "two forms of the step size under one budget: runs of medloc, medloc_linear and "
            "medloc_cosine"
        )
    panels = {
        "curriculum/threshold": "threshold in force",
        "reward/total": "mean reward of the sampled completions",
    }
    named = [Arm(str(form), arm.runs) for form, arm in forms.items()]
    bands = _bands(named, panels)
    name = "figure_5_step_size_forms.png"
    _draw(out / name, {panels[key]: bands[key] for key in panels}, smoothed=True)
    return [Picture(name, _how(named, bands))]


def zero_advantage(arms: Sequence[Arm], out: Path) -> list[Picture]:
    """Groups in which all rewards are equal, over the steps.

    Raises:
        NotThere: no run logged it.
    """
    key = "group/zero_advantage_rate"
    bands = _bands(arms, [key])
    if not _any(bands[key]):
        raise NotThere(f"{key} in metrics.jsonl, which a GRPO run of one step or more writes")
    name = "zero_advantage_rate.png"
    _draw(out / name, {"groups without signal": bands[key]}, smoothed=True, share=True)
    caption = f"Groups in which all rewards are equal teach nothing. {_how(arms, bands)}"
    return [Picture(name, caption)]


def _bands(arms: Sequence[Arm], keys: Any) -> dict[str, dict[str, Band]]:
    return {
        key: {
            arm.title: figures_arms.band([figures_arms.curve(run, key) for run in arm.runs])
            for arm in arms
        }
        for key in keys
    }


def _any(bands: Mapping[str, Band]) -> bool:
    return any(len(one.steps) for one in bands.values())


def _how(arms: Sequence[Arm], panels: Mapping[str, Mapping[str, Band]]) -> str:
    """What a line and a band are, and which steps are left out."""
    most = max(one.num_runs for bands in panels.values() for one in bands.values())
    if most < 2:
        text = "A line a method, one run each."
    elif len(arms) > MOST_BANDS:
        text = f"A line a method: the mean over its runs (up to {most} seeds)."
    else:
        text = (
            f"A line a method: the mean over its runs (up to {most} seeds); band: one sample "
            "standard deviation to either side."
        )
    if any(len({run.last_step for run in arm.runs}) > 1 for arm in arms):
        text += " Only steps that all seeds of a method reached are drawn."
    return text


def _draw(
    path: Path,
    panels: Mapping[str, Mapping[str, Band]],
    *,
    smoothed: bool,
    share: bool = False,
) -> None:
    """A panel a metric, below each other, with one legend above."""
    titles = list(dict.fromkeys(title for bands in panels.values() for title in bands))
    styles = plot_style.line_styles(titles)
    columns = plot_style.fitting_columns(titles, plot_style.NARROW_INCHES)
    legend_rows = -(-len(titles) // columns)
    height = 0.35 + 0.24 * legend_rows + 2.6 * len(panels)
    with plot_style.figure_file(path, height=height, width=plot_style.NARROW_INCHES) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        windows = set()
        for axes, (title, bands) in zip(grid, panels.items(), strict=True):
            for order, (name, one) in enumerate(bands.items()):
                if len(one.steps):
                    stepped = "threshold" in title and len(one.steps) > 1
                    window = _line(
                        axes,
                        one,
                        styles[name],
                        smoothed=smoothed and not stepped,
                        stepped=stepped,
                        filled=len(bands) <= MOST_BANDS,
                        place=order / len(bands),
                    )
                    windows.add(window)
            axes.set_title(title)
            axes.tick_params(labelbottom=True)
            if share:
                axes.yaxis.set_major_formatter(plot_style.percent_formatter())
            all_steps = [run_folder.Series(o.steps, o.mean) for o in bands.values()]
            if any(len(series.steps) for series in all_steps):
                plot_style.set_steps_axis(axes, all_steps)
        window = max(windows, default=1)
        grid[-1].set_xlabel(f"step (mean of the last {window})" if window > 1 else "step")
        drawn = {name for bands in panels.values() for name, one in bands.items() if len(one.steps)}
        handles = [Line2D([], [], label=n, **style) for n, style in styles.items() if n in drawn]
        figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=3.2)


def _line(
    axes: Axes,
    one: Band,
    style: dict[str, Any],
    *,
    smoothed: bool,
    stepped: bool,
    filled: bool,
    place: float,
) -> int:
    """Draws one arm; returns how many points the smoothing averages over."""
    window = plot_style.smoothing_window(len(one.steps)) if smoothed else 1
    middle = plot_style.trailing_mean(one.mean, window)
    spread = plot_style.trailing_mean(one.deviation, window)
    # A marker here and there tells lines apart that share a colour; they stand apart from method to
    # method, so that none hides another.
    every = max(1, len(one.steps) // 6)
    few = len(one.steps) <= 12
    marks = {"markevery": 1 if few else (int(place * every), every), "markersize": 5}
    axes.plot(
        one.steps,
        middle,
        drawstyle="steps-post" if stepped else "default",
        linewidth=1.6,
        **style,
        **marks,
    )
    if filled and one.num_runs > 1:
        axes.fill_between(
            one.steps,
            middle - spread,
            middle + spread,
            step="post" if stepped else None,
            color=style["color"],
            alpha=0.16,
            linewidth=0,
        )
    return window
