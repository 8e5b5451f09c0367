# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Is one method better than another: paired tests, intervals, and many tests at once.

Two questions, two tests, never mixed:

* Would another *training* end the same way? `paired_t_test` pairs runs by their seed: one number a
  run. Its degrees of freedom are the pairs less one: three seeds give 2, where |t| must pass 4.3
  for p < 0.05.
* Would other *test examples* tell the same? `paired_bootstrap` pairs answers by their example, each
  example's score being the mean over the seeds. It says nothing about other trainings.

The only module that imports scipy: training must not come here.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float
from scipy import stats

_CELLS = 4_000_000  # resampled entries held at one time, about 32 MB
_Key = TypeVar("_Key", bound=Hashable)
_ROUNDING = 1e-12  # differences of accuracies that are equal but for float64's last digits


class TTest(NamedTuple):
    """A two-tailed paired t-test; `t` and `p` are None where the pairs cannot tell."""

    effect: float  # mean of the differences
    t: float | None
    df: int  # pairs less one; -1 where nothing is paired
    p: float | None


class Interval(NamedTuple):
    """A mean difference with its 95% percentile interval."""

    effect: float
    low: float
    high: float


def pairs(
    ours: Mapping[_Key, float], theirs: Mapping[_Key, float]
) -> tuple[list[_Key], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Lines two sets of numbers up by their keys (seeds, or example ids), never by position.

    Returns:
        The keys that both have, in the order of `ours`, and the two columns.
    """
    keys = [key for key in ours if key in theirs]
    columns = [np.asarray([side[key] for key in keys], np.float64) for side in (ours, theirs)]
    return keys, columns[0], columns[1]


def paired_t_test(ours: Float[np.ndarray, " n"], theirs: Float[np.ndarray, " m"]) -> TTest:
    """Two-tailed t-test of the differences of pairs.

    Args:
        ours: one number a pair; for a comparison of methods, one a seed.
        theirs: the other number of the same pair, in the same order.

    Returns:
        The mean difference, t, the degrees of freedom and p. With fewer than two pairs, or where
        all differences are the same (no deviation to measure the mean against), there is no t.

    Raises:
        ValueError: the two differ in length, or a value is not finite.

    Reference: Student (1908); MedLoc-R1 (arXiv 2603.28120), Table 1, marks such a test.
    """
    differences = _differences(ours, theirs)
    count = len(differences)
    if not count:
        return TTest(math.nan, None, -1, None)
    effect = float(differences.mean())
    deviation = float(differences.std(ddof=1)) if count > 1 else 0.0
    if deviation < _ROUNDING:
        return TTest(effect, None, count - 1, None)
    t = effect / (deviation / math.sqrt(count))
    return TTest(effect, t, count - 1, float(2 * stats.t.sf(abs(t), count - 1)))


def paired_bootstrap(
    ours: Float[np.ndarray, " n"],
    theirs: Float[np.ndarray, " m"],
    *,
    seed: int,
    num_bootstrap: int = 10_000,
) -> Interval:
    """The mean difference over examples, with a 95% interval over which examples were drawn.

    Whole pairs are drawn: an example that is hard for both does not widen the interval.

    Args:
        ours: one score an example, such as its hits at IoU 0.5 averaged over the seeds.
        theirs: the other method's score of the same example, in the same order.
        seed: of the resampling.
        num_bootstrap: resamplings.

    Raises:
        ValueError: no examples, the two differ in length, or a value is not finite.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    differences = _differences(ours, theirs)
    count = len(differences)
    if not count:
        raise ValueError("a bootstrap of no pairs: the two methods share no test example")
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS // count)
    means = [
        # How often each example is drawn: a sample's mean is then one product.
        rng.multinomial(count, np.full(count, 1 / count), size=min(block, num_bootstrap - start))
        @ differences
        / count
        for start in range(0, num_bootstrap, block)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(differences.mean()), float(low), float(high))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction: p-values that hold for all the tests of one family together.

    Args:
        p_values: of the family, in any order; None where there was no test.

    Returns:
        Corrected p-values in [0, 1], in the same order. The smallest is multiplied by the number of
        tests, the next by one less, and so on, none below the one before it.

    Reference: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    present = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(present):
        largest = max(largest, min(1.0, p * (len(present) - rank)))
        corrected[index] = largest
    return corrected


def spearman(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[float, float] | None:
    """Rank correlation and its two-tailed p; None with fewer than 3 pairs or a constant side."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    found = stats.spearmanr(x, y)
    return float(found.statistic), float(found.pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def _differences(
    ours: Float[np.ndarray, " n"], theirs: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " n"]:
    if len(ours) != len(theirs):
        raise ValueError(
            f"{len(ours)} values against {len(theirs)}: a paired test needs both of every pair; "
            "line them up with `pairs` first"
        )
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    if not np.isfinite(differences).all():
        raise ValueError("a value of a pair is not finite: mend or leave out that run")
    return differences
