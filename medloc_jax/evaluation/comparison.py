# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several runs side by side: a row a run, mean and deviation over seeds, overlaid curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medloc_jax.evaluation import figures, plots, result_tables, results, run_folder, tables
from medloc_jax.evaluation.document import Block, Bullets, Heading, Picture, Table, Text


def blocks(
    runs: Sequence[run_folder.Run],
    out: Path,
    made: result_tables.Tables,
    lacking: Sequence[str],
) -> list[Block]:
    """The comparison of several runs; draws its PNG into `out`.

    Args:
        runs: all runs.
        out: folder of the report.
        made: the tables of these runs.
        lacking: a line for each run that should be among them and is not.
    """
    groups = run_folder.groups_by_seed(runs)
    labels = results.group_labels(groups)
    names = {run.folder: name for run, name in zip(runs, results.run_names(runs), strict=True)}
    missing = [*lacking, *(f"{names[run.folder]}: {note}" for run in runs for note in run.missing)]
    result: list[Block] = [Heading(f"Comparison of {len(runs)} runs", 1), *made.blocks()]
    splits = sorted({split for run in runs for split in run.splits() if run.of_split(split)})
    if not splits:
        missing.append("eval/*/metrics.json in every run: there is no table to compare")
    for split in splits:
        result += [
            Heading(f"Every run's last evaluation, {split} split"),
            _runs_table(groups, labels, names, split),
            Text("Per cent. The floor is what always answering the median training box scores."),
        ]
        without = [name for run, name in zip(runs, names.values(), strict=True)
                   if not run.of_split(split)]  # fmt: skip
        missing += [f"{name}: no evaluation of {split}" for name in without]
    missing += [note for note in made.missing if note not in missing]
    picture = _picture(groups, labels, out)
    if picture:
        result += [Heading("Curves"), picture]
    else:
        missing.append("metrics.jsonl in every run: there are no curves to compare")
    result += figures.blocks(runs, out, missing)
    if missing:
        result += [Heading("Not there"), Bullets(missing)]
    return result


def _runs_table(
    groups: Sequence[Sequence[run_folder.Run]],
    labels: Sequence[str],
    names: Mapping[Path, str],
    split: str,
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
                [names[run.folder], label, seed, str(last.step), _threshold_reached(run)]
                + tables.measures(last.metrics)
            )
            if last.floor:
                floors.append(["floor", "", "", "", "", *tables.measures(last.floor)])
    # Runs on the same data have one floor; where it differs, so do the data, and each is shown.
    unique = [list(floor) for floor in dict.fromkeys(map(tuple, floors))]
    return Table(header, rows + unique)


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
        keep = len(series.steps) if run.has_threshold else 0
        return run_folder.Series(series.steps[:keep], series.values[:keep])
    if key == "iou":
        return run.series("iou/raw_mean")
    split, measure = key.rsplit("/", 1)
    return run.accuracy(split, measure)


def _threshold_reached(run: run_folder.Run) -> str:
    series = _curve(run, "threshold")
    return f"{series.values[-1]:g}" if len(series.values) else "-"
