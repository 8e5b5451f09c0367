# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from medloc_jax.curriculum import criterion
from medloc_jax.curriculum.window import Statistics

PAPER = ((0.60, 0.80, 0.20), (0.75, 0.75, 0.35), (1.01, 0.55, 0.40))
ALL = criterion.CRITERIA


@pytest.mark.parametrize(
    ("threshold", "least"),
    [(0.0, 0.8), (0.45, 0.8), (0.6 - 1e-12, 0.75), (0.3 + 0.3, 0.75), (0.7, 0.75), (0.75, 0.55)]
    + [(1.0, 0.55)],
)
def test_regime_borders(threshold, least):
    regimes = criterion.make_regimes(PAPER, 0.8)
    assert criterion.regime_at(threshold, regimes).min_reward == least


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "empty"),
        (((0.6, 0.8, 0.2),), "uncovered"),
        (((0.8, 0.8, 0.2),), "uncovered"),
        (((0.75, 0.8, 0.2), (0.6, 0.8, 0.2), (1.01, 0.5, 0.4)), "not sorted"),
        (((0.6, 0.8, 0.2), (0.6, 0.8, 0.2), (1.01, 0.5, 0.4)), "not sorted"),
        ((1.01, 0.6, 0.4), "upper threshold"),  # the outer brackets forgotten
        (((1.01, 0.6),), "upper threshold"),
        ((("1.01", 0.6, 0.4),), "three finite numbers"),
        (((float("nan"), 0.6, 0.4),), "three finite numbers"),
        (((1.01, 1.6, 0.4),), "hit rate within"),
        (((1.01, 0.6, -0.4),), "std of 0"),
    ],
)
def test_bad_regimes_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        criterion.make_regimes(rows, 0.8)


@pytest.mark.parametrize(
    ("seen", "want"),
    [
        ((0.8, 0.2, 0.1), ()),
        ((0.8 - 1e-12, 0.2 + 1e-12, 0.1 - 1e-12), ()),  # means of exact values are off by an ulp
        ((0.79, 0.2, 0.1), ("reward",)),
        ((0.8, 0.21, 0.1), ("stability",)),
        ((0.8, 0.2, 0.09), ("margin",)),
        ((0.0, 1.0, -1.0), ALL),
    ],
)
def test_blocked_by(seen, want):
    regime = criterion.Regime(0.6, 0.8, 0.2)
    assert criterion.blocked_by(Statistics(*seen), regime, 0.1, ALL) == want
    for name in ALL:
        others = [other for other in ALL if other != name]
        got = criterion.blocked_by(Statistics(*seen), regime, 0.1, others)
        assert got == tuple(held for held in want if held != name)


def test_expected_std_by_hand():
    assert criterion.expected_std(0.8, 1.0, 1, 8) == pytest.approx(0.40)
    assert criterion.expected_std(0.8, 1.0, 8, 8) == pytest.approx(0.141, abs=5e-4)
    assert criterion.expected_std(0.5, 1.0, 8, 8) == pytest.approx(0.177, abs=5e-4)
    assert criterion.expected_std(0.8, 0.3, 1, 8) == pytest.approx(0.249, abs=5e-4)
    # S = .20 with one prompt an entry is met at p = .88 (agreement .3), at .958 (agreement 1).
    assert criterion.expected_std(0.883, 0.3, 1, 8) == pytest.approx(0.20, abs=1e-3)
    assert criterion.expected_std(0.958, 1.0, 1, 8) == pytest.approx(0.20, abs=1e-3)


def test_expected_std_is_what_a_policy_that_does_not_change_shows():
    random = np.random.default_rng(0)
    p, agreement, prompts, group_size = 0.7, 0.3, 2, 4
    common = random.random((40_000, prompts, 1)) < p
    own = random.random((40_000, prompts, group_size)) < p
    # Each draws on what is common with probability sqrt(a), hence two of them with a.
    uses = random.random(own.shape) < np.sqrt(agreement)
    rates = np.where(uses, common, own).mean(axis=(1, 2))
    want = criterion.expected_std(p, agreement, prompts, group_size)
    assert rates.std() == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize(
    ("prompts", "alive"), [(1, True), (2, True), (3, True), (4, False), (8, False)]
)
def test_stability_binds_only_below_four_prompts(prompts, alive):
    regime = criterion.Regime(0.6, 0.8, 0.2)
    assert criterion.stability_alive(regime, ALL, prompts, 8) == alive
    assert not criterion.stability_alive(regime, ("reward", "margin"), prompts, 8)


def test_stability_without_the_reward_check_may_bind_at_half():
    regime = criterion.Regime(0.6, 0.8, 0.2)
    assert criterion.stability_alive(regime, ("stability",), 6, 8)  # .5 / sqrt(6) = .204
    assert not criterion.stability_alive(regime, ("stability",), 8, 8)
