# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the verdicts read of a run: one number each, larger being better."""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from medloc_jax.evaluation import live_run, results, run_folder, stability


class Reading(NamedTuple):
    """A number by seed of an arm, larger being better.

    Attributes:
        title: as tables print it.
        smallest: difference that counts, in the reading's own unit.
        of: the number by seed.
        measure: of `results.MEASURES`, where examples can be resampled; else "".
        ratio: the numbers are logarithms, and a difference is told as a ratio.
    """

    title: str
    smallest: float
    of: Callable[[results.Experiment], dict[int | str, float]]
    measure: str = ""
    ratio: bool = False

    def told(self, value: float) -> str:
        """A difference of two such numbers."""
        number = math.expm1(value) if self.ratio else value
        return f"{100 * number:+.1f}".replace("-", "\N{MINUS SIGN}") + (" %" if self.ratio else "")


def accuracy(measure: str, smallest: float = 0.01) -> Reading:
    """A measure of the final evaluation on test."""
    return Reading(results.MEASURES[measure], smallest, lambda one: one.values(measure), measure)


def by_run(
    title: str,
    smallest: float,
    read_run: Callable[[run_folder.Run], float | None],
    *,
    ratio: bool = False,
) -> Reading:
    """A number that each run's own log gives; None: it does not."""

    def of(one: results.Experiment) -> dict[int | str, float]:
        found = {final.seed: read_run(final.run) for final in one.finals}
        return {seed: value for seed, value in found.items() if value is not None}

    return Reading(title, smallest, of, ratio=ratio)


def with_signal(run: run_folder.Run) -> float | None:
    """The share of groups that have a signal, over the whole run."""
    silent = run.series("group/zero_advantage_rate").values
    return 1 - float(silent.mean()) if len(silent) else None


def early(run: run_folder.Run) -> float | None:
    """Mean mAP on val over the course of training, by trapezoids: high is early."""
    series = run.accuracy("val", "map")
    if len(series.steps) < 2:
        return None
    length = series.steps[-1] - series.steps[0]
    return float(np.trapezoid(series.values, series.steps) / length)


def steady(key: str) -> Callable[[run_folder.Run], float | None]:
    """Minus the logarithm of a logged number's jitter."""

    def of(run: run_folder.Run) -> float | None:
        found = stability.jitter(run.series(key).values)
        return -math.log(found) if found else None

    return of


def no_drop(run: run_folder.Run) -> float | None:
    """Minus the largest fall of val mAP from an evaluation to the next."""
    found = stability.largest_drop(run.accuracy("val", "map").values)
    return None if found is None else -found


def step_seconds(run: run_folder.Run) -> float:
    """The phases of a step, the median of each over the run, together; 0 where none is logged."""
    found = [run.series(f"speed/{phase}_seconds").values for phase in live_run.PHASES]
    return sum(statistics.median(values) for values in found if len(values))
