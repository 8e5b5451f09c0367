# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One method less every other, with the tests: what the difference rows of Table 1 stand on."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from medloc_jax import methods
from medloc_jax.evaluation import results, significance
from medloc_jax.evaluation.table_files import ResultTable

BOOTSTRAP_SEED = 0
MINUS = "\N{MINUS SIGN}"


class Comparison(NamedTuple):
    """One method less another, in one measure on one data set."""

    data_set: str
    ours: str
    theirs: str
    measure: str
    seeds: tuple[int | str, ...]  # of the runs that are paired
    test: significance.TTest  # over these seeds
    interval: significance.Interval | None  # over the test examples; None: no predictions
    examples: int


def comparisons(experiments: Sequence[results.Experiment], reference: str = "") -> list[Comparison]:
    """Tests one method against every other, data set by data set.

    Runs are paired by their seed, and only seeds that both methods have are used, for the test as
    for the interval; examples are paired by their id. A method that took no step (zero-shot, a
    detector) and has one run is a constant: it is paired with every seed of the other.

    Args:
        experiments: as `results.collect` gives them.
        reference: the method (a label, or a name as tables print it) that the others are taken
            from; "": MedLoc. Where a data set lacks it, nothing is compared there.

    Raises:
        ValueError: none of the experiments is `reference`, or several of a data set are.
    """
    asked = reference or methods.DEFAULT
    if reference and not any(reference in (one.method, one.name) for one in experiments):
        known = ", ".join(dict.fromkeys(one.method for one in experiments))
        raise ValueError(f"--reference={reference}: no such method among the runs, but {known}")
    found = []
    for data_set in dict.fromkeys(experiment.data_set for experiment in experiments):
        there = [experiment for experiment in experiments if experiment.data_set == data_set]
        named = [one for one in there if asked in (one.method, one.name)]
        if len(named) > 1 and reference:
            names = ", ".join(repr(one.name) for one in named)
            raise ValueError(
                f"{data_set}: the reference {reference!r} could be {names}: give one of these "
                "names as --reference"
            )
        if len(named) > 1:
            named = [one for one in named if not results.departures(one.finals[0].run.config)]
        if len(named) != 1:
            continue
        for other in there:
            if other is not named[0]:
                found += [
                    _compare(named[0], other, measure) for measure in results.MEASURES
                ]  # fmt: skip
    return found


def table(tested: Sequence[Comparison]) -> ResultTable:
    """The tests behind the difference rows, with Holm's correction over all of them."""
    corrected = significance.holm([one.test.p for one in tested])
    rows, records = [], []
    for one, p in zip(tested, corrected, strict=True):
        test, interval = one.test, one.interval
        rows.append(
            [
                one.data_set,
                f"{one.ours} {MINUS} {one.theirs}",
                results.MEASURES[one.measure],
                signed(test.effect),
                "-" if interval is None else f"[{signed(interval.low)}, {signed(interval.high)}]",
                str(len(one.seeds)),
                "-" if test.t is None else f"{test.t:.2f}".replace("-", MINUS),
                "-" if test.df < 1 else str(test.df),
                _p(test.p),
                _p(p),
            ]
        )
        records.append(
            {
                "data_set": one.data_set,
                "ours": one.ours,
                "theirs": one.theirs,
                "measure": one.measure,
                "effect": 100 * test.effect,
                "low": None if interval is None else 100 * interval.low,
                "high": None if interval is None else 100 * interval.high,
                "examples": one.examples,
                "seeds": " ".join(map(str, one.seeds)),
                "t": test.t,
                "df": test.df if test.df > 0 else None,
                "p": test.p,
                "p_holm": p,
            }
        )
    number = sum(p is not None for p in corrected)
    return ResultTable(
        "comparisons",
        "Differences and their tests",
        ["data", "difference", "measure", "effect", "95% over examples", "pairs"]
        + ["t", "df", "p", "p (Holm)"],
        rows,
        {},
        [
            "Effect in percentage points, over the seeds that both methods have; a single run "
            "that took no step (zero-shot, a detector) is a constant, paired with every seed of "
            "the other. The interval: "
            "bootstrap over test examples, each example's pair drawn together, its score the mean "
            "over these seeds; it speaks of other examples, not of other trainings. t, df and p: "
            "two-tailed paired t-test over seeds, one pair a seed; it speaks of other trainings on "
            f"these examples. Holm: corrected for the {number} tests of this table together. "
            f'"-": fewer than two pairs, or pairs that all differ by the same amount.'
        ],
        records,
    )


def signed(fraction: float) -> str:
    """A difference in percentage points with its sign; "-" where nothing is paired."""
    if math.isnan(fraction):
        return "-"
    return f"{100 * fraction:+.1f}".replace("-", MINUS)


def is_constant(experiment: results.Experiment) -> bool:
    """Whether a method is one run that took no step: another seed would tell the same number."""
    return len(experiment.finals) == 1 and not experiment.finals[0].run.is_trained


def pair_seeds(
    ours: results.Experiment,
    theirs: results.Experiment,
    values: Callable[[results.Experiment], Mapping[int | str, float]],
) -> tuple[list[int | str], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """A number of two methods, paired by seed; a constant is paired with every seed of the other.

    Args:
        ours: one method.
        theirs: another, of the same data set.
        values: what is compared, by seed.

    Returns:
        The seeds, and the columns of ours and theirs.
    """
    a, b = values(ours), values(theirs)
    if is_constant(theirs) and len(b) == 1:
        b = dict.fromkeys(a, next(iter(b.values())))
    elif is_constant(ours) and len(a) == 1:
        a = dict.fromkeys(b, next(iter(a.values())))
    return significance.pairs(a, b)


def pair_examples(
    ours: results.Experiment,
    theirs: results.Experiment,
    measure: str,
    seeds: Sequence[int | str],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The examples' scores of two methods, paired by id: means over the seeds of `pair_seeds`.

    A constant's scores are those of its one run; empty where a run lacks its predictions.
    """

    def scores(experiment: results.Experiment) -> dict[str, float]:
        own = [experiment.finals[0].seed] if seeds and is_constant(experiment) else seeds
        return experiment.scores(measure, own)

    return significance.pairs(scores(ours), scores(theirs))[1:]


def _compare(ours: results.Experiment, theirs: results.Experiment, measure: str) -> Comparison:
    seeds, a, b = pair_seeds(ours, theirs, lambda one: one.values(measure))
    x, y = pair_examples(ours, theirs, measure, seeds)
    interval = significance.paired_bootstrap(x, y, seed=BOOTSTRAP_SEED) if len(x) else None
    test = significance.paired_t_test(a, b)
    return Comparison(
        ours.data_set, ours.name, theirs.name, measure, tuple(seeds), test, interval, len(x)
    )


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"
