# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from medloc_jax.curriculum import step_size

PAPER = step_size.StepOptions(
    threshold_start=0.3,
    threshold_target=0.8,
    step_sizes=(0.15, 0.10, 0.05),
    boundaries=(0.55, 0.75),
    step_size_start=0.2,
    snap_eps=0.0,
)
FROM_02 = dataclasses.replace(PAPER, threshold_start=0.2)


def ladder(name, options, updates=40):
    thresholds = [options.threshold_start]
    while thresholds[-1] < options.threshold_target and len(thresholds) <= updates:
        thresholds.append(step_size.next_threshold(thresholds[-1], name, options))
    return thresholds


@pytest.mark.parametrize(
    ("step_sizes", "boundaries", "want"),
    [
        ((0.15, 0.10, 0.05), (0.55, 0.75), [0.3, 0.45, 0.6, 0.7, 0.8]),  # Eq. 11
        ((0.15, 0.10, 0.05), (0.60, 0.75), [0.3, 0.45, 0.6, 0.7, 0.8]),  # Appendix B
        ((0.15, 0.10, 0.05), (0.50, 0.75), [0.3, 0.45, 0.6, 0.7, 0.8]),  # Table 6, HEEL and TN3K
        ((0.10, 0.05, 0.05), (0.55, 0.75), [0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8]),
        ((0.10, 0.05, 0.05), (0.50, 0.75), [0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8]),
        ((0.20, 0.15, 0.05), (0.60, 0.75), [0.3, 0.5, 0.7, 0.8]),
        ((0.25, 0.20, 0.05), (0.60, 0.75), [0.3, 0.55, 0.8]),
    ],
)
def test_piecewise_ladders(step_sizes, boundaries, want):
    options = dataclasses.replace(PAPER, step_sizes=step_sizes, boundaries=boundaries)
    assert ladder("piecewise", options) == want  # exactly: 0.45 is not 0.44999999999999996


def test_linear_never_arrives():
    want = [0.2, 0.4, 0.533, 0.622, 0.681, 0.721, 0.747, 0.765, 0.777, 0.784]
    got = ladder("linear", FROM_02, updates=20)
    assert [round(threshold, 3) for threshold in got[:10]] == want
    assert got[-1] < 0.8


def test_cosine_never_arrives():
    want = [0.2, 0.4, 0.55, 0.624, 0.664, 0.688, 0.705, 0.717, 0.726]
    got = ladder("cosine", FROM_02, updates=30)
    assert [round(threshold, 3) for threshold in got[:9]] == want
    assert got[30] == pytest.approx(0.778, abs=5e-4)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_snap_arrives_when_the_gap_is_small(name):
    snapped = ladder(name, dataclasses.replace(FROM_02, snap_eps=0.05))
    assert snapped[-1] == 0.8
    assert snapped[-2] <= 0.75
    assert snapped[:-1] == ladder(name, FROM_02)[: len(snapped) - 1]


def test_constant_takes_the_same_step_and_ends_at_the_target():
    options = dataclasses.replace(PAPER, step_size_start=0.15, snap_eps=0.5)
    assert ladder("constant", options) == [0.3, 0.45, 0.6, 0.75, 0.8]


def test_within_rounding_of_the_target_is_the_target():
    options = dataclasses.replace(PAPER, step_size_start=0.499999)
    assert ladder("constant", options) == [0.3, 0.8]


@pytest.mark.parametrize("name", step_size.STEP_SIZES)
def test_never_falls_however_small_the_step(name):
    options = dataclasses.replace(
        PAPER, threshold_start=0.12345678, step_size_start=1e-9, step_sizes=(1e-9,) * 3
    )
    assert step_size.next_threshold(0.12345678, name, options) >= 0.12345678
