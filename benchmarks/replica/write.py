# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""RESULTS.md, runs.csv and the pictures of the replica, from the folders of its sweeps.

python benchmarks/replica/write.py RUNS... [--readme] [--demo=RUNS,RUNS]

RUNS are folders of `medloc sweep`. The report of each is written into it (RUNS/report), and some of
its pictures are copied here. --readme puts the first table into README.md, too, with the demo's
(runs of `make demo`) under it. No number is typed by hand, and none is computed here that
`medloc_jax.evaluation` computes.
"""

import argparse
import csv
import dataclasses
import io
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import controls
import wall_clock
from claims import CLAIMS
from claims_page import ABLATIONS, REPLICA, command, findings, put
from verdicts import NO_RUN, Sweep, read

from medloc_jax.evaluation import (
    document,
    report,
    result_tables,
    results,
    table_files,
    table_one,
    tables,
)
from medloc_jax.evaluation.document import Block, Bullets, Heading, Picture, Table, Text
from medloc_jax.evaluation.table_files import ResultTable

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
README_MARKS = ("<!-- results -->\n", "<!-- end of results -->\n")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")
# Of a report's pictures, those that are copied here.
PICTURES = {
    REPLICA: (
        "figure_1_rewards_and_threshold.png",
        "figure_3_accuracy.png",
        "figure_5_step_size_forms.png",
        "zero_advantage_rate.png",
        "iou_by_method.png",
        "failures.png",
    ),
    ABLATIONS: ("figure_7_window.png",),  # of two dozen arms, the others cannot be read
}
# The ablations' arms are held against their own default, and their group sizes differ by design.
OPTIONS = {
    REPLICA: result_tables.Options(),
    ABLATIONS: result_tables.Options(allow=("budget",), reference="default"),
}


def main(arguments: Sequence[str]) -> None:
    """Writes everything."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--demo", default="", help="folders of `make demo`, with commas")
    given = parser.parse_args(arguments)
    sweeps = [sweep for folder in given.runs for sweep in read(folder)]
    document.replace(HERE / "RESULTS.md", document.to_markdown(page(sweeps, HERE)))
    print(HERE / "RESULTS.md")
    if sweeps:
        document.replace(HERE / "runs.csv", runs_csv(sweeps))
    if given.readme:
        demos = [Path(folder) for folder in given.demo.split(",") if folder]
        put(ROOT / "README.md", README_MARKS, readme(sweeps, demos))
        print(ROOT / "README.md")


def page(sweeps: Sequence[Sweep], out: Path) -> list[Block]:
    """RESULTS.md; pictures are copied into `out`."""
    made: list[Block] = [
        Heading("The replica: results", 1),
        Text(
            "Written by benchmarks/replica/write.py. Every run behind a number stands in runs.csv "
            "with its folder, command, commit and seconds; verdicts on the paper's claims are in "
            "CLAIMS.md, and README.md here tells how to run it all."
        ),
    ]
    if not sweeps:
        lines = [command(file) for file in (REPLICA, ABLATIONS)]
        return [*made, Text(f"{NO_RUN.capitalize()}. What would give some:"), Bullets(lines)]
    made += [Heading("Made with"), Bullets(_environment())]
    for sweep in sweeps:
        made += _section(sweep, out)
    return made


def _environment() -> list[str]:
    """What this page was written with: the runs' own commits stand with each sweep."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return [
        f"Python {platform.python_version()}, {', '.join(versions)}, where this page was written",
        f"{os.cpu_count()} cores: {cpu}",
    ]


def _section(sweep: Sweep, out: Path) -> list[Block]:
    """Everything about one sweep on one data set."""
    experiments = list(sweep.arms.values())
    options = OPTIONS.get(sweep.file, result_tables.Options())
    made = result_tables.of_runs([f.run for one in experiments for f in one.finals], options)
    name = f"{Path(sweep.file).stem}, {sweep.data_set}"
    blocks: list[Block] = [Heading(name), Bullets(_provenance(sweep))]
    found = made.blocks()
    for table in (
        signal_table(experiments),
        wall_clock.table(experiments),
        controls.table(sweep),
        rates_table(sweep),
        seconds_table(sweep),
    ):
        if table.rows:
            found += table_files.blocks(table)
    blocks += [_lower(block) for block in found]
    stem = "_".join([Path(sweep.file).stem, *sweep.data_set.split()])
    return blocks + _pictures(sweep, out, stem, options)


def _lower(block: Block) -> Block:
    return dataclasses.replace(block, level=3) if isinstance(block, Heading) else block


def _provenance(sweep: Sweep) -> list[str]:
    account = sweep.account
    facts = [
        f"Command: {shlex.join(map(str, account['command']))}",
        f"Runs: {sweep.folder}, base {account.get('base', 'unknown')}, seeds "
        f"{', '.join(map(str, account.get('seeds', ())))}",
        f"Commit: {', '.join(sweep.commits)} (+: with changes that were not committed)",
    ]
    facts += [f"Lacking: {line}" for line in sweep.lacking]
    return facts + ([f"Note: {account['note']}"] if account.get("note") else [])


def no_signal(experiment: results.Experiment) -> list[float]:
    """Of each run that logs it, the share of groups without a signal, mean over its steps."""
    logged = [final.run.series("group/zero_advantage_rate").values for final in experiment.finals]
    return [float(values.mean()) for values in logged if len(values)]


def signal_table(experiments: Sequence[results.Experiment]) -> ResultTable:
    """Groups without a signal, and the threshold's way in each seed."""
    rows = []
    for one in experiments:
        paths: dict[str, list[str]] = {}
        for final in one.finals:
            # Some log a threshold of 0, which nothing is asked by.
            values = final.run.series("curriculum/threshold")
            path = tables.threshold_path(values) if final.run.has_threshold else ""
            if path:
                paths.setdefault(path, []).append(str(final.seed))
        told = "; ".join(f"{', '.join(seeds)}: {path}" for path, seeds in paths.items())
        if no_signal(one):
            rows.append([one.name, tables.mean_and_deviation(no_signal(one)), told or "-"])
    notes = ["Per cent of all groups, mean over the run ± sample deviation over seeds."]
    title = "Groups without a signal, and the threshold by seed"
    return ResultTable("signal", title, ["method", "no signal", "threshold"], rows, {}, notes)


def rates_table(sweep: Sweep) -> ResultTable:
    """The value that tuning chose for each arm, with all tries."""
    rows = []
    for path in sorted((sweep.folder / "tuning").glob("*/chosen.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        tries = ", ".join(f"{one['value']}: {100 * one['result']:.1f}" for one in told["tries"])
        rows.append([results.title(told["arm"]), told["field"], str(told["chosen"]), tries])
    note = "By the measure on val at the last step, per cent; tries have a seed of their own."
    header = ["method", "field", "chosen", "tries"]
    return ResultTable("rates", "Tuning", header, rows, {}, [note])


def seconds_table(sweep: Sweep) -> ResultTable:
    """What the runs took."""
    took: dict[tuple[str, str], list[float]] = {}
    for run in sweep.account["runs"]:
        if run["state"] == "finished" and run.get("seconds"):
            took.setdefault((run["kind"], run["arm"]), []).append(run["seconds"])
    rows = [
        [
            results.title(arm) or "-",
            kind,
            str(len(s)),
            f"{statistics.median(s):.0f}",
            f"{sum(s):.0f}",
        ]
        for (kind, arm), s in took.items()
    ]
    if rows:
        every = [second for seconds in took.values() for second in seconds]
        rows.append(
            ["all", "", str(len(every)), f"{statistics.median(every):.0f}", f"{sum(every):.0f}"]
        )
    note = (
        "Wall clock, of the start that ended the run. Runs that go on at once share the cores out "
        "among them (--jobs in the command), so that CPU seconds are at most these times a run's "
        "share of the cores; they are not measured."
    )
    header = ["method", "kind", "runs", "median s", "all s"]
    return ResultTable("seconds", "Seconds", header, rows, {}, [note])


def _pictures(sweep: Sweep, out: Path, stem: str, options: result_tables.Options) -> list[Block]:
    """Writes the sweep's report, and copies some of its pictures."""
    there = sweep.folder / "report"
    runs = [final.run.folder for one in sweep.arms.values() for final in one.finals]
    report.write_report(runs, there, options)
    made: list[Block] = [Heading("Pictures", 3)]
    for name in PICTURES.get(sweep.file, ()):
        if (there / name).is_file():
            target = f"{stem}_{name}"
            shutil.copyfile(there / name, out / target)
            title = Path(name).stem.replace("_", " ")
            made.append(Picture(target, f"{title}. All pictures, with their words: {there}"))
    return made if len(made) > 1 else []


def runs_csv(sweeps: Sequence[Sweep]) -> str:
    """A line a run: where it is, what made it, what it reached."""
    text = io.StringIO()
    measures = tuple(results.MEASURES)
    names = ("sweep", "data", "arm", "seed", "folder", "commit", "seconds", "step", *measures)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "command"])
    for sweep in sweeps:
        noted = {str(run["name"]): run for run in sweep.account["runs"]}
        for arm, one in sweep.arms.items():
            for final in one.finals:
                folder = final.run.folder
                entry: dict[str, Any] = noted[str(folder.relative_to(sweep.folder))]
                writer.writerow(
                    [sweep.file, sweep.data_set, arm, final.seed, folder]
                    + [entry.get("commit", ""), entry.get("seconds", ""), final.evaluation.step]
                    + [final.evaluation.metrics.get(measure, "") for measure in measures]
                    + [_command(folder)]
                )
    return text.getvalue()


def _command(folder: Path) -> str:
    """The last command that the sweep started this run with; "" where its log is gone."""
    log = folder / "log.txt"
    if not log.is_file():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line[2:] for line in reversed(lines) if line.startswith("$ ")), "")


def readme(sweeps: Sequence[Sweep], demos: Sequence[Path]) -> str:
    """What README.md says first: a table a data set, the verdict on the order, and the demo."""
    parts = []
    for sweep in sweeps:
        if sweep.file == REPLICA:
            parts += [_order(sweep), document.to_markdown([_first_table(sweep)]).strip()]
    if not parts:
        parts.append(f"The replica (`benchmarks/replica/README.md`): {NO_RUN}.")
    if demos:
        sys.path.insert(0, str(ROOT / "launch"))
        import results_table

        parts.append(results_table.demo_table(demos))
    return "\n\n".join(parts)


def _order(sweep: Sweep) -> str:
    """In words: does the paper's order hold on this data set, by the rule of CLAIMS.md?"""
    claim = next(one for one in CLAIMS if one.name == "beats each baseline")
    (_, finding, _), *_ = findings(claim, [sweep])
    seeds = max(len(one.finals) for one in sweep.arms.values())
    said = {
        "holds": "**The paper's order holds at this size:** MedLoc is above every baseline in "
        "A@0.5, A@0.8 and mAP.",
        "does not hold": "**The paper's order does not hold at this size:** MedLoc is not above "
        "every baseline in A@0.5, A@0.8 and mAP.",
    }.get(
        finding.verdict,
        "**Whether the paper's order (MedLoc above every baseline in A@0.5, A@0.8 and mAP) holds "
        "at this size is not decided.**",
    )
    why = f" ({finding.why})" if finding.why else ""
    examples = next(iter(sweep.arms.values())).finals[0].evaluation.metrics.get("num_examples")
    return (
        f"{sweep.data_set}: {examples} test images, up to {seeds} seeds, one budget and one warm "
        f"start for all, learning rates chosen on val. {said}{why} Commit "
        f"{', '.join(one[:7] + one[40:] for one in sweep.commits)}; tests, pictures, all runs and "
        "commands: `benchmarks/replica/RESULTS.md`."
    )


def _first_table(sweep: Sweep) -> Table:
    """The methods' rows of the table of results, with what no measure tells beside them."""
    experiments = list(sweep.arms.values())
    full = table_one.main_table(experiments, [])
    silent = {
        one.name: tables.mean_and_deviation(no_signal(one)) for one in experiments if no_signal(one)
    }
    kept = [i for i, row in enumerate(full.rows) if not row[0].startswith("  theirs")]
    rows = [[*full.rows[i], silent.get(full.rows[i][0], "-")] for i in kept]
    marks = {
        (kept.index(row), column): mark for (row, column), mark in full.marks.items() if row in kept
    }
    return Table([*full.header, "groups without signal"], rows, marks)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
