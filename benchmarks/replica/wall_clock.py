# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the methods have reached after the same seconds of training, not the same steps.

A method's second is that of its own runs: the median phases of a step, so that a pause of the
machine does not count, nor do compilation and evaluation. The time given to all is that of the
cheapest GRPO method's whole run; the others are read, between their evaluations on val, at the step
that they had reached by then. SFT samples nothing and has long ended.
"""

import statistics
from collections.abc import Sequence

import numpy as np
from readings import step_seconds

from medloc_jax.evaluation import results, run_folder, tables
from medloc_jax.evaluation.table_files import ResultTable

MEASURES = ("a50", "a80", "map")


def seconds(run: run_folder.Run) -> float:
    """Seconds that the run's steps took, by their median; 0 where none is logged."""
    return step_seconds(run) * (run.last_step or 0)


def at(run: run_folder.Run, measure: str, time: float) -> float | None:
    """A measure on val after `time` seconds of steps, by a line between two evaluations.

    A run that has ended by then is read at its end; None where nothing was evaluated.
    """
    series = run.accuracy("val", measure)
    one = step_seconds(run)
    if not len(series.steps) or not one:
        return None
    return float(np.interp(time / one, series.steps, series.values))


def table(experiments: Sequence[results.Experiment]) -> ResultTable:
    """Accuracy on val at the time of the cheapest GRPO method's end; empty without one."""
    runs = {one.name: [final.run for final in one.finals] for one in experiments}
    trained = {
        name: [run for run in those if seconds(run)]
        for name, those in runs.items()
        if any(seconds(run) for run in those)
    }
    whole = {name: statistics.mean(map(seconds, those)) for name, those in trained.items()}
    grpo = [whole[name] for name, those in trained.items() if not those[0].is_sft]
    header = ["method", "ms a step", "s, all steps"]
    header += [results.MEASURES[measure] for measure in MEASURES]
    rows: list[list[str]] = []
    for name, those in trained.items() if grpo else ():
        one = statistics.mean(map(step_seconds, those))
        row = [name, f"{1000 * one:.0f}", f"{whole[name]:.0f}"]
        for measure in MEASURES:
            found = [at(run, measure, min(grpo)) for run in those]
            there = [value for value in found if value is not None]
            row.append(tables.mean_and_deviation(there) if there else "-")
        rows.append(row)
    time = f"{min(grpo):.0f} s" if grpo else "none"
    notes = [
        f"Val, at {time} of training steps: what the cheapest GRPO method takes for all its own. "
        "Per cent, mean ± sample deviation over seeds; read between evaluations by a line. Median "
        "seconds of a step; compilation, evaluation and saving are the same for all and left out. "
        "Runs shared a machine, and a few per cent of a step's time are chance."
    ]
    return ResultTable("wall_clock", "At equal wall clock", header, rows, {}, notes)
