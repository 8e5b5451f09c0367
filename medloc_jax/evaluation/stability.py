# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How steady the training of a method was, and after how many steps it was good enough.

Four readings of "stable", which need not agree: how far the seeds end apart; the variance over
steps of the gradient's norm and of the reward; and the largest fall from an evaluation to the next.

A variance over steps also grows with a trend, and learning is a trend. Beside it stands the part
that is not: half the mean square of the change from one logged step to the next (von Neumann). A
slow rise hardly touches it, and it equals the variance where steps are independent. The reward of a
curriculum falls by design when its threshold rises; the mean IoU of the samples does not.

Reference: von Neumann, Distribution of the ratio of the mean square successive difference to the
variance (1941).
"""

import statistics
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from medloc_jax.evaluation import results, run_folder, tables
from medloc_jax.evaluation.table_files import ResultTable

# Accuracies that runs are timed to, by measure.
LEVELS = {"a50": (0.5, 0.7, 0.9), "map": (0.3, 0.5)}


def variance(values: Float[np.ndarray, " n"]) -> float | None:
    """Sample variance over the logged steps; None for fewer than two."""
    return float(np.var(values, ddof=1)) if len(values) > 1 else None


def jitter(values: Float[np.ndarray, " n"]) -> float | None:
    """Half the mean square of successive differences; None for fewer than two values."""
    return float(np.mean(np.diff(values) ** 2) / 2) if len(values) > 1 else None


def largest_drop(values: Float[np.ndarray, " n"]) -> float | None:
    """The largest fall from a value to the next, 0 where none falls; None for fewer than two."""
    return float(max(0.0, -np.diff(values).min())) if len(values) > 1 else None


def steps_to(series: run_folder.Series, level: float) -> int | None:
    """The first evaluated step whose accuracy is at least `level`; None where none is.

    What lies between two evaluations is not known, so that the answer is as coarse as they are.
    """
    reached = np.flatnonzero(series.values >= level - 1e-9)
    return int(series.steps[reached[0]]) if len(reached) else None


def table(experiments: Sequence[results.Experiment], curve_split: str) -> ResultTable:
    """The readings by method; each the mean over seeds of what a run has.

    Args:
        experiments: as `results.collect` gives them.
        curve_split: the split that was evaluated while training.
    """
    readings: dict[str, Callable[[run_folder.Run], float | None]] = {
        "gradient norm, variance": lambda run: variance(_logged(run, "optimizer/grad_norm")),
        "gradient norm, jitter": lambda run: jitter(_logged(run, "optimizer/grad_norm")),
        "reward, variance": lambda run: variance(_logged(run, "reward/total")),
        "reward, jitter": lambda run: jitter(_logged(run, "reward/total")),
        "sampled IoU, jitter": lambda run: jitter(_logged(run, "iou/raw_mean")),
    }
    drops = {"a50": "A@0.5", "map": "mAP"}
    rows, records = [], []
    for experiment in experiments:
        runs = [final.run for final in experiment.finals]
        row = [experiment.data_set, experiment.name, str(len(runs))]
        record: dict[str, str | float | int | None] = {
            "data_set": experiment.data_set, "method": experiment.name, "seeds": len(runs)
        }  # fmt: skip
        for measure, title in drops.items():
            ends = list(experiment.values(measure).values())
            deviation = statistics.stdev(ends) if len(ends) > 1 else None
            row.append("-" if deviation is None else f"{100 * deviation:.1f}")
            record[f"{title}, seed sd"] = deviation
        for title, reading in readings.items():
            mean = _mean([reading(run) for run in runs])
            row.append("-" if mean is None else f"{mean:.2g}")
            record[title] = mean
        for measure, title in drops.items():
            falls = [largest_drop(run.accuracy(curve_split, measure).values) for run in runs]
            there = [fall for fall in falls if fall is not None]
            row.append(f"{100 * max(there):.1f}" if there else "-")
            record[f"{title}, largest drop"] = max(there) if there else None
        rows.append(row)
        records.append(record)
    return ResultTable(
        "stability",
        "Stability",
        ["data", "method", "seeds", "A@0.5 sd", "mAP sd", *readings, "A@0.5 drop", "mAP drop"],
        rows,
        {},
        [
            "sd: sample standard deviation of the final accuracy over seeds, points. Variance and "
            "jitter over the logged steps, mean over seeds; jitter is half the mean square of the "
            "change between steps, which a slow trend does not enter. drop: the largest fall from "
            f"one evaluation on {curve_split} to the next, points, of the worst seed. The gradient "
            "is measured before it is clipped; rewards under different schedules are different "
            "things, and their variances no contest."
        ],
        records,
    )


def convergence_table(experiments: Sequence[results.Experiment], curve_split: str) -> ResultTable:
    """Steps until a run first reached an accuracy, by method."""
    columns = [(measure, level) for measure, levels in LEVELS.items() for level in levels]
    rows, records = [], []
    for experiment in experiments:
        row = [experiment.data_set, experiment.name]
        record: dict[str, str | float | int | None] = {
            "data_set": experiment.data_set, "method": experiment.name
        }  # fmt: skip
        for measure, level in columns:
            runs = [final.run.accuracy(curve_split, measure) for final in experiment.finals]
            runs = [series for series in runs if len(series.steps)]
            found = [step for series in runs if (step := steps_to(series, level)) is not None]
            text = f"{statistics.median(found):g}" if found else "never"
            if len(found) < len(runs):
                text += f" ({len(found)} of {len(runs)})" if found else ""
            row.append(text if runs else "-")
            record[f"{measure} {level:g}"] = statistics.median(found) if found else None
            record[f"{measure} {level:g} reached by"] = len(found)
            record[f"{measure} {level:g} runs"] = len(runs)
        rows.append(row)
        records.append(record)
    return ResultTable(
        "convergence",
        "Steps to a given accuracy",
        ["data", "method", *(f"{tables.MEASURES[m]} {100 * level:g}%" for m, level in columns)],
        rows,
        {},
        [
            f"The first evaluation on {curve_split} at which a run was that good, median over the "
            "seeds that ever were; in brackets how many those are, where not all. As coarse as the "
            "evaluations lie apart; step 0 is before training."
        ],
        records,
    )


def _logged(run: run_folder.Run, key: str) -> Float[np.ndarray, " n"]:
    return run.series(key).values


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None
