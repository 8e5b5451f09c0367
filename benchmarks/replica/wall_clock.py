# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the methods have reached after the same seconds of training, not the same steps.

A method's second is that of its least disturbed steps: in each of its runs the step that nine in
ten take longer than, and of its runs the lowest. Whatever else runs on the machine only adds to
that, and to one method as to another, but not at the same time. Compilation and evaluation do not
count. The time given to all is that of the cheapest GRPO method's whole run; the others are read,
between their evaluations on val, at the step that they had reached by then. SFT samples nothing and
has long ended.
"""

from collections.abc import Sequence

import numpy as np

from medloc_jax.evaluation import live_run, results, run_folder, tables
from medloc_jax.evaluation.table_files import ResultTable

MEASURES = ("a50", "a80", "map")
QUANTILE = 0.1  # of a run's steps, by what they took


def least_step_seconds(runs: Sequence[run_folder.Run]) -> float:
    """What a step of these runs takes, all phases; 0 where none is logged."""
    found = []
    for run in runs:
        phases = [run.series(f"speed/{phase}_seconds").values for phase in live_run.PHASES]
        whole = sum(phase for phase in phases if len(phase))
        if np.size(whole) > 1:
            found.append(float(np.quantile(whole, QUANTILE)))
    return min(found, default=0.0)


def at(run: run_folder.Run, measure: str, step: float) -> float | None:
    """A measure on val after these steps, by a line between two evaluations.

    A run that has ended by then is read at its end; None where nothing was evaluated.
    """
    series = run.accuracy("val", measure)
    return float(np.interp(step, series.steps, series.values)) if len(series.steps) else None


def table(experiments: Sequence[results.Experiment]) -> ResultTable:
    """Accuracy on val at the time of the cheapest GRPO method's end; empty without one."""
    runs = {one.name: [final.run for final in one.finals] for one in experiments}
    costs = {name: least_step_seconds(those) for name, those in runs.items()}
    wholes = {name: costs[name] * (runs[name][0].last_step or 0) for name in runs if costs[name]}
    grpo = [whole for name, whole in wholes.items() if not runs[name][0].is_sft]
    header = ["method", "ms a step", "s, all steps"]
    header += [results.MEASURES[measure] for measure in MEASURES]
    rows: list[list[str]] = []
    for name, whole in wholes.items() if grpo else ():
        row = [name, f"{1000 * costs[name]:.0f}", f"{whole:.0f}"]
        for measure in MEASURES:
            found = [at(run, measure, min(grpo) / costs[name]) for run in runs[name]]
            there = [value for value in found if value is not None]
            row.append(tables.mean_and_deviation(there) if there else "-")
        rows.append(row)
    time = f"{min(grpo):.0f} s" if grpo else "none"
    notes = [
        f"Val, after {time} of training steps: what the cheapest GRPO method takes for its whole. "
        "Per cent, mean ± sample deviation over seeds; read between evaluations by a line. Seconds "
        "are those of a method's least disturbed steps (the lower tenth of the run where that is "
        "least): runs shared a machine. Compilation, evaluation and saving are left out."
    ]
    return ResultTable("wall_clock", "At equal wall clock", header, rows, {}, notes)
