# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from medloc_jax.evaluation import significance


def test_t_test_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, t = 2 / (1 / sqrt 3) = 3.4641; with df 2 the
    # two-tailed p is 1 - t / sqrt(t^2 + 2) = 0.0742.
    found = significance.paired_t_test(np.array([11.0, 22.0, 33.0]), np.array([10.0, 20.0, 30.0]))
    assert found.effect == 2.0 and found.df == 2
    assert found.t == pytest.approx(2 * math.sqrt(3))
    assert found.p == pytest.approx(1 - found.t / math.sqrt(found.t**2 + 2))


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_t_test_is_that_of_scipy(n):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    found, theirs = significance.paired_t_test(a, b), stats.ttest_rel(a, b)
    assert found.t == pytest.approx(theirs.statistic) and found.p == pytest.approx(theirs.pvalue)
    assert found.df == n - 1


def test_pairs_that_cannot_tell_have_no_t():
    assert significance.paired_t_test(np.array([0.5]), np.array([0.4])).p is None
    same = significance.paired_t_test(np.array([0.5, 0.6]), np.array([0.4, 0.5]))
    assert same.effect == pytest.approx(0.1) and same.t is None and same.df == 1
    empty = significance.paired_t_test(np.array([]), np.array([]))
    assert math.isnan(empty.effect) and empty.df == -1
    with pytest.raises(ValueError, match="2 values against 3.*pairs"):
        significance.paired_t_test(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        significance.paired_t_test(np.array([1.0, np.nan]), np.zeros(2))


def test_pairs_go_by_key_and_wrong_pairs_change_the_verdict():
    """Seeds differ much more than methods: only right pairs show that one is always better."""
    theirs = {42: 0.50, 43: 0.60, 44: 0.70, 45: 0.80}
    ours = {45: 0.83, 42: 0.52, 44: 0.72, 43: 0.63}  # in another order
    keys, a, b = significance.pairs(ours, theirs)
    assert keys == [45, 42, 44, 43]
    right = significance.paired_t_test(a, b)
    assert right.p is not None and right.p < 0.01
    # The sabotage: by position, as if dictionaries had one order.
    wrong = significance.paired_t_test(
        np.array(list(ours.values())), np.array(list(theirs.values()))
    )
    assert wrong.effect == pytest.approx(right.effect)
    assert wrong.p is not None and wrong.p > 0.5
    assert significance.pairs({1: 0.0}, {2: 0.0})[0] == []


def test_bootstrap_knows_the_interval_of_a_mean():
    # n differences of deviation s: the interval of their mean is +- 1.96 s / sqrt n.
    rng = np.random.default_rng(0)
    n = 900
    differences = rng.permutation(np.repeat([-1.0, 1.0], n // 2)) + 0.1
    base = rng.random(n)
    found = significance.paired_bootstrap(base + differences, base, seed=1)
    assert found.effect == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1 - 1.96 / 30, abs=0.004)
    assert found.high == pytest.approx(0.1 + 1.96 / 30, abs=0.004)
    assert found == significance.paired_bootstrap(base + differences, base, seed=1)


def test_bootstrap_draws_pairs_and_wrong_pairs_change_the_verdict():
    """Hard and easy examples: the method is a little better on each."""
    theirs = np.linspace(0, 1, 200)
    ours = theirs + 0.02
    found = significance.paired_bootstrap(ours, theirs, seed=0)
    assert found.low == pytest.approx(0.02) and found.high == pytest.approx(0.02)
    shuffled = np.random.default_rng(0).permutation(theirs)
    wrong = significance.paired_bootstrap(ours, shuffled, seed=0)
    assert wrong.low < 0 < wrong.high
    with pytest.raises(ValueError, match="no pairs"):
        significance.paired_bootstrap(np.array([]), np.array([]), seed=0)


def test_many_examples_are_resampled_in_blocks(monkeypatch):
    a = np.random.default_rng(3).random(50)
    whole = significance.paired_bootstrap(a, np.zeros(50), seed=0, num_bootstrap=101)
    monkeypatch.setattr(significance, "_CELLS", 500)
    assert significance.paired_bootstrap(a, np.zeros(50), seed=0, num_bootstrap=101) == whole


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04; none falls.
    assert significance.holm([0.03, None, 0.01, 0.04, 0.02]) == pytest.approx(
        [0.06, None, 0.04, 0.06, 0.06]
    )
    assert significance.holm([0.9, 0.8]) == [1.0, 1.0]
    assert significance.holm([]) == [] and significance.holm([None]) == [None]


def test_spearman_is_of_ranks():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    found = significance.spearman(x, np.exp(x))
    assert found is not None and found[0] == pytest.approx(1.0)
    assert significance.spearman(x, np.ones(4)) is None
    assert significance.spearman(x[:2], x[:2]) is None


def _reached(start):
    """The modules of the package that importing `start` runs, by their sources."""
    package = Path(significance.__file__).parents[1]
    seen, waiting = set(), [start]
    while waiting:
        module = waiting.pop()
        path = package.joinpath(*module.split(".")).with_suffix(".py")
        if module in seen or not path.is_file():
            continue
        seen.add(module)
        for where, names in re.findall(
            r"from medloc_jax([\w.]*) import (\([^)]*\)|[^\n]*)", path.read_text()
        ):
            waiting += [
                f"{where}.{name}".strip(".") for name in [*re.findall(r"\w+", names), ""]
            ]  # fmt: skip
    return seen


def test_training_runs_without_the_report_extra():
    assert "evaluation.metrics" in _reached("training.grpo") | _reached("training.session")
    for module in ("training.grpo", "training.sft", "training.session", "cli.train"):
        assert "evaluation.significance" not in _reached(module)
    assert "evaluation.significance" in _reached("evaluation.report")
