# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several runs side by side: a row a run, mean and deviation over seeds, overlaid curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medloc_jax.evaluation import plots, run_folder, tables
from medloc_jax.evaluation.document import Block, Bullets, Heading, Picture, Table, Text


def blocks(runs: Sequence[run_folder.Run], out: Path) -> list[Block]:
    """The comparison of several runs; draws its PNG into `out`."""
    groups = run_folder.groups_by_seed(runs)
    labels = group_labels(groups)
    missing = [f"{run.name}: {note}" for run in runs for note in run.missing]
    result: list[Block] = [Heading(f"Comparison of {len(runs)} runs", 1)]
    splits = sorted({split for run in runs for split in run.splits() if run.of_split(split)})
    if not splits:
        missing.append("eval/*/metrics.json in every run: there is no table to compare")
    for split in splits:
        result += [Heading(f"Last evaluation, {split} split"), _runs_table(groups, labels, split)]
        if any(len(group) > 1 for group in groups):
            result += [
                Text("Mean ± sample standard deviation over runs that differ only in the seed:"),
                _seeds_table(groups, labels, split),
            ]
        result.append(
            Text("Per cent. The floor is what always answering the median training box scores.")
        )
        without = [run.name for run in runs if not run.of_split(split)]
        missing += [f"{name}: no evaluation of {split}" for name in without]
    picture = _picture(groups, labels, out)
    if picture:
        result += [Heading("Curves"), picture]
    else:
        missing.append("metrics.jsonl in every run: there are no curves to compare")
    if missing:
        result += [Heading("Not there"), Bullets(missing)]
    return result


def group_labels(groups: Sequence[Sequence[run_folder.Run]]) -> list[str]:
    """A name for each group: its method, and where that is not enough, the settings that differ."""
    methods = [group[0].method for group in groups]
    flat = [_flatten(group[0].config) for group in groups]
    labels = []
    for index, method in enumerate(methods):
        rivals = [other for other, name in enumerate(methods) if name == method]
        keys = sorted({key for other in rivals for key in flat[other] if key != "seed"})
        differing = [key for key in keys if len({str(flat[o].get(key)) for o in rivals}) > 1]
        if len(rivals) > 1:
            settings = ", ".join(f"{key}={flat[index].get(key)}" for key in differing[:3])
            method = f"{method} ({settings or groups[index][0].name})"
        labels.append(method)
    # Two groups may still share a name, when more than three settings differ.
    return [
        label if labels.count(label) == 1 else f"{label} [{group[0].name}]"
        for label, group in zip(labels, groups, strict=True)
    ]


def _runs_table(
    groups: Sequence[Sequence[run_folder.Run]], labels: Sequence[str], split: str
) -> Table:
    header = [
        "run", "method", "seed", "step", "threshold", "examples", *tables.MEASURES.values()
    ]  # fmt: skip
    rows, floors = [], []
    for group, label in zip(groups, labels, strict=True):
        for run in group:
            if not run.of_split(split):
                continue
            last = run.of_split(split)[-1]
            seed = "-" if run.seed is None else str(run.seed)
            rows.append(
                [run.name, label, seed, str(last.step), _threshold_reached(run)]
                + tables.measures(last.metrics)
            )
            if last.floor:
                floors.append(["floor", "", "", "", "", *tables.measures(last.floor)])
    # Runs on the same data have one floor; where it differs, so do the data, and each is shown.
    unique = [list(floor) for floor in dict.fromkeys(map(tuple, floors))]
    return Table(header, rows + unique)


def _seeds_table(
    groups: Sequence[Sequence[run_folder.Run]], labels: Sequence[str], split: str
) -> Table:
    rows = []
    for group, label in zip(groups, labels, strict=True):
        last = [run.of_split(split)[-1].metrics for run in group if run.of_split(split)]
        if last:
            rows.append(
                [label, str(len(last))]
                + [
                    tables.mean_and_deviation([m[name] for m in last if name in m])
                    for name in tables.MEASURES
                ]
            )
    return Table(["method", "runs", *tables.MEASURES.values()], rows)


def _picture(
    groups: Sequence[Sequence[run_folder.Run]], labels: Sequence[str], out: Path
) -> Picture | None:
    # The reward is not among them: under different thresholds it means different things.
    panels = {"threshold": "threshold in force", "iou": "mean IoU of sampled completions"}
    every = [run for group in groups for run in group]
    for split in sorted({split for run in every for split in run.splits()}):
        panels |= {f"{split}/a50": f"A@0.5, {split}", f"{split}/a80": f"A@0.8, {split}"}
    curves = [
        plots.Curves(label, {key: _curve(run, key) for key in panels})
        for group, label in zip(groups, labels, strict=True)
        for run in group
    ]
    panels = {
        key: title
        for key, title in panels.items()
        if any(len(curve.series[key].steps) for curve in curves)
    }
    if not panels:
        return None
    plots.comparison(out / "comparison.png", panels, curves, _floors(every))
    return Picture(
        "comparison.png",
        "One line a run; runs of one method share a colour. The mean IoU is smoothed over the last "
        "thirtieth of the run's steps; dashed grey: the constant-box floor.",
    )


def _floors(runs: Sequence[run_folder.Run]) -> dict[str, float]:
    """The floor of every accuracy panel, where all runs agree on it: else their data differ."""
    found: dict[str, set[float]] = {}
    for entry in (
        run.of_split(split)[-1] for run in runs for split in run.splits() if run.of_split(split)
    ):
        for measure in ("a50", "a80"):
            if entry.floor:
                found.setdefault(f"{entry.split}/{measure}", set()).add(entry.floor[measure])
    return {key: values.pop() for key, values in found.items() if len(values) == 1}


def _curve(run: run_folder.Run, key: str) -> run_folder.Series:
    if key == "threshold":
        series = run.series("curriculum/threshold")
        keep = 0 if run.schedule == "raw_iou" else len(series.steps)
        return run_folder.Series(series.steps[:keep], series.values[:keep])
    if key == "iou":
        return run.series("iou/raw_mean")
    split, measure = key.rsplit("/", 1)
    return run.accuracy(split, measure)


def _threshold_reached(run: run_folder.Run) -> str:
    series = _curve(run, "threshold")
    return f"{series.values[-1]:g}" if len(series.values) else "-"


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
