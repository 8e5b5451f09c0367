# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A report of one run, or a comparison of several: Markdown, PNGs and one self-contained HTML page.

Every number comes from the run's files; what is not there is listed at the end of the report.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from medloc_jax.evaluation import (
    comparison,
    contact_sheet,
    document,
    gallery,
    plot_style,
    plots,
    result_tables,
    run_folder,
    sweep_folder,
    tables,
)
from medloc_jax.evaluation.document import Block, Bullets, Heading, Picture, Table, Text

SHEET_COLUMNS = 4  # images of each kind on the contact sheet
_SHEET_SEED = 0
_LONGEST_TEXT = 160  # characters of a completion shown in a table
_NOT_THERE = Heading("Not there")


def write_report(
    workdirs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    options: result_tables.Options = result_tables.Options(),  # noqa: B008
    gallery_megabytes: float = gallery.DEFAULT_MEGABYTES,
) -> list[Path]:
    """Writes report.md, report.html and their PNGs, and the tables as results.md, .tex and .csv.

    Args:
        workdirs: one run's folder for its report, several for a comparison; a sweep's folder
            stands for its finished runs.
        out: folder of the report. Default: WORKDIR/report; for several, `report` in the deepest
            folder that holds them all.
        options: what is compared, and what may differ.
        gallery_megabytes: limit of the images in the page's gallery of predictions.

    Returns:
        The files written, report.md and report.html first.

    Raises:
        ValueError: no workdir, a folder without metrics, a broken file, no place to write to, or
            runs that are not comparable.
    """
    if not workdirs:
        raise ValueError("no workdir given; name the --workdir of one run or of several")
    gallery.check(gallery_megabytes)
    named = list(dict.fromkeys(Path(workdir).resolve() for workdir in workdirs))
    # `runs/*` names the report of last time, too.
    folders = [folder for folder in named if not _is_report(folder)]
    if not folders:
        raise ValueError(f"{named[0]} is a report: name the folders of runs")
    chosen, lacking = sweep_folder.expand(folders)
    lacking += [f"{one.name}: left out, it is a report" for one in named if one not in folders]
    allow, reference = sweep_folder.asked(folders)
    options = options._replace(
        allow={*options.allow, *allow}, reference=options.reference or reference
    )
    runs = [run_folder.load(folder) for folder in chosen]
    made = result_tables.of_runs(runs, options)
    if out is not None:
        out = Path(out)
    elif len(folders) == 1:
        out = folders[0] / "report"
    else:
        common = Path(os.path.commonpath(folders))
        if common == common.parent:
            raise ValueError("the workdirs have no folder in common to write into; give --out=DIR")
        out = common / "report"
    out.mkdir(parents=True, exist_ok=True)

    if len(runs) == 1:
        blocks = run_blocks(runs[0], out, made, lacking)
    else:
        blocks = comparison.blocks(runs, out, made, lacking)
    predictions = gallery.build(runs, megabytes=gallery_megabytes)
    if predictions is not None:
        before = blocks.index(_NOT_THERE) if _NOT_THERE in blocks else len(blocks)
        blocks.insert(before, predictions)
    pictures = [out / block.file for block in blocks if isinstance(block, Picture)]
    document.replace(out / "report.md", document.to_markdown(blocks))
    document.replace(out / "report.html", document.to_html(blocks, out))
    written = result_tables.write(made, out)
    return [out / "report.md", out / "report.html", *pictures, *written]


def _is_report(folder: Path) -> bool:
    """Whether a folder holds a report and nothing of a run."""
    of_a_run = ("config.json", "metrics.jsonl", "eval", sweep_folder.FILE)
    return (folder / "report.md").is_file() and not any((folder / n).exists() for n in of_a_run)


def run_blocks(
    run: run_folder.Run, out: Path, made: result_tables.Tables, lacking: Sequence[str]
) -> list[Block]:
    """The report of one run; draws its PNGs into `out`."""
    missing = [*run.missing, *lacking]
    sections: list[Callable[[run_folder.Run, Path, list[str]], list[Block]]] = [
        _evaluations,
        *([_losses] if run.is_sft else [_reward_and_threshold]),
        _accuracy,
        _histograms,
        _contact_sheet,
        *([] if run.is_sft else [_group_health, _blocked, _rollouts]),
    ]
    blocks: list[Block] = [Heading(f"Report of {run.name}", 1), Table(*tables.facts(run))]
    for section in sections:
        blocks += section(run, out, missing)
    blocks += made.blocks()
    if missing:
        blocks += [_NOT_THERE, Bullets(missing)]
    return blocks


def _evaluations(run: run_folder.Run, out: Path, missing: list[str]) -> list[Block]:
    del out
    header, rows = tables.evaluations(run, missing)
    if not rows:
        return []
    return [
        Heading("Evaluations"),
        Table(header, rows),
        Text(
            "Per cent; in brackets the 95% bootstrap interval over the examples. "
            f"{'Boxes of an outside detector' if run.is_detector else 'Greedy decoding'}; "
            "an answer that does not parse counts as IoU 0. The floor is what always answering the "
            "median training box scores."
        ),
    ]


def _reward_and_threshold(run: run_folder.Run, out: Path, missing: list[str]) -> list[Block]:
    reward, iou = run.series("reward/total"), run.series("iou/raw_mean")
    threshold = run.series("curriculum/threshold")
    # Where the reward asks for no threshold, a line of it would say what is not so.
    if not run.has_threshold:
        threshold = run_folder.Series(threshold.steps[:0], threshold.values[:0])
    if not len(reward.steps):
        missing.append("reward/total in metrics.jsonl: no reward curve")
        return []
    plots.reward_and_threshold(out / "reward_and_threshold.png", reward, iou, threshold)
    path = tables.threshold_path(threshold)
    window = plot_style.smoothing_window(len(reward.steps))
    caption = (
        f"Reward of the sampled completions (light: each step; solid: mean of the last {window}), "
        "their mean IoU, and the threshold in force."
    )
    if not run.has_threshold:
        caption = caption.replace("and the threshold in force", "the schedule has no threshold")
    return [
        Heading("Reward and threshold"),
        Picture("reward_and_threshold.png", caption),
        *([Text(f"Threshold: {path}.")] if path else []),
    ]


def _losses(run: run_folder.Run, out: Path, missing: list[str]) -> list[Block]:
    loss, token_accuracy = run.series("sft/loss"), run.series("sft/token_accuracy")
    if not len(loss.steps):
        missing.append("sft/loss in metrics.jsonl: no loss curve")
        return []
    plots.losses(out / "loss.png", loss, token_accuracy)
    caption = "Supervised loss of the completion tokens" + (
        ", and the share of them that the model would have chosen."
        if len(token_accuracy.steps)
        else "."
    )
    return [Heading("Loss"), Picture("loss.png", caption)]


def _accuracy(run: run_folder.Run, out: Path, missing: list[str]) -> list[Block]:
    by_split, floors, intervals = {}, {}, {}
    for split in run.splits():
        series = {measure: run.accuracy(split, measure) for measure in plots.MEASURES}
        series = {measure: one for measure, one in series.items() if len(one.steps)}
        if not series:
            continue
        by_split[split] = series
        folders = run.of_split(split)
        floors[split] = next((e.floor for e in reversed(folders) if e.floor), {})
        intervals[split] = {
            measure: {
                entry.step: entry.metrics[f"{measure}_ci"]
                for entry in folders
                if f"{measure}_ci" in entry.metrics
            }
            for measure in series
        }
    if not by_split:
        missing.append("eval/<split>/a50, a80, map: no accuracy curve")
        return []
    plots.accuracy(out / "accuracy.png", by_split, floors, intervals)
    caption = (
        f"{'Accuracy' if run.is_detector else 'Greedy accuracy by step'}; "
        "whiskers: 95% bootstrap interval over the examples; dashed: the "
        "constant-box floor of the same colour's measure."
    )
    return [Heading("Accuracy"), Picture("accuracy.png", caption)]


def _histograms(run: run_folder.Run, out: Path, missing: list[str]) -> list[Block]:
    panels, notes = [], []
    for split in run.splits():
        read = [entry for entry in run.of_split(split) if entry.has_predictions]
        if not read:
            continue
        predictions = read[-1].predictions()
        if not predictions:
            missing.append(f"lines in eval/{read[-1].folder.name}/predictions.jsonl")
            continue
        title = f"{split}, step {read[-1].step}"
        earlier = read[0].predictions() if len(read) > 1 else []
        if earlier:
            title += f" (dashed: step {read[0].step})"
        panels.append(plots.Spread(title, _ious(predictions), _ious(earlier) if earlier else None))
        unparsed = sum(not prediction["valid"] for prediction in predictions)
        notes.append(f"{unparsed} of {len(predictions)} answers on {split} did not parse")
    if not panels:
        missing.append("eval/*/predictions.jsonl: no histogram and no images")
        return []
    plots.iou_histograms(out / "iou_histogram.png", panels)
    caption = (
        "IoU of the last evaluation of each split, and of the first (dashed) where there was one. "
        + "; ".join(notes)
        + ", and count as 0."
    )
    return [Heading("IoU of the answers"), Picture("iou_histogram.png", caption)]


def _contact_sheet(run: run_folder.Run, out: Path, missing: list[str]) -> list[Block]:
    last = run.last_evaluation()
    predictions = last.predictions() if last else []
    if last is None or not predictions:
        return []
    chosen = contact_sheet.choose(_ious(predictions), columns=SHEET_COLUMNS, seed=_SHEET_SEED)
    rows, lost = {}, []
    for title, indices in chosen.items():
        sheets = []
        for index in indices:
            prediction = predictions[index]
            image_path = run.image_path(prediction, last)
            if image_path is None or not contact_sheet.can_be_drawn(image_path):
                lost.append(str(prediction["image"]))
            else:
                sheets.append(_sheet(prediction, image_path))
        if sheets:
            rows[title] = sheets
    if lost:
        missing.append(
            f"{len(lost)} images of the contact sheet, {lost[0]} the first: not there, or not "
            "to be read; looked for beside the manifest that config.json names"
        )
    if not rows:
        return []
    contact_sheet.draw(out / "examples.png", rows)
    caption = (
        f"{last.split}, step {last.step}: the best, median and worst answers, and a random draw "
        "from the rest. Green: true box; orange, dashed: predicted."
    )
    return [Heading("Images"), Picture("examples.png", caption, photo=True)]


def _group_health(run: run_folder.Run, out: Path, missing: list[str]) -> list[Block]:
    series = {
        "groups without signal": run.series("group/zero_advantage_rate"),
        "answers that parse": run.series("answer/valid_rate"),
        "completions cut off": run.series("completion/truncated_rate"),
    }
    series = {label: one for label, one in series.items() if len(one.steps)}
    if not series:
        missing.append("group/zero_advantage_rate, answer/valid_rate: no picture of group health")
        return []
    plots.rates(out / "group_health.png", series)
    caption = (
        "Of the sampled completions: groups in which all rewards are equal (they teach nothing), "
        "answers that hold a box, completions that ran into the length limit."
    )
    return [Heading("Health of the groups"), Picture("group_health.png", caption)]


def _blocked(run: run_folder.Run, out: Path, missing: list[str]) -> list[Block]:
    criteria = {
        name: run.series(f"curriculum/blocked_by_{name}")
        for name in ("reward", "margin", "stability")
    }
    criteria = {name: one for name, one in criteria.items() if len(one.steps)}
    if not criteria:
        if run.schedule in ("medloc", ""):
            missing.append("curriculum/blocked_by_*: no picture of what held the threshold")
        return []
    plots.blocked(out / "blocked.png", criteria, run.series("curriculum/tightened"))
    caption = (
        "Steps at which a condition of the curriculum was tested and held the threshold where it "
        "was. No mark in any strip: the window was filling, or the target reached."
    )
    return [Heading("What held the threshold"), Picture("blocked.png", caption)]


def _rollouts(run: run_folder.Run, out: Path, missing: list[str]) -> list[Block]:
    del out
    if not run.rollouts:
        missing.append("rollouts.jsonl: no sampled completions are shown")
        return []
    rows = tables.rollout_rows(run.rollouts[-1], longest=_LONGEST_TEXT)
    if not rows:
        return []
    return [
        Heading("One group of the last rollout on file"),
        Text(tables.rollout_title(run.rollouts[-1])),
        Table(["completion", "IoU", "reward"], rows),
    ]


def _sheet(prediction: dict[str, Any], image_path: Path) -> contact_sheet.Cell:
    name = str(prediction["id"])
    if len(name) > 23:  # what fits over a cell
        name = f"{name[:11]}…{name[-11:]}"
    valid = prediction["valid"] and prediction["boxes_px"]
    result = f"IoU {prediction['iou']:.2f}" if valid else "no box in the answer"
    return contact_sheet.Cell(
        image_path,
        f"{name}\n{result}",
        prediction["target_boxes_px"][0],
        prediction["boxes_px"][0] if valid else None,
    )


def _ious(predictions: Sequence[dict[str, Any]]) -> Float[np.ndarray, " n"]:
    return np.asarray([p["iou"] if p["valid"] else 0.0 for p in predictions], np.float64)
