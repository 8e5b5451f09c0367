# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from medloc_jax.curriculum import window


def filled(*entries, size=3, threshold=0.5):
    result = window.Window(size)
    for entry in entries:
        result.push(np.array(entry), threshold)
    return result


def test_statistics_by_hand():
    got = filled([[0.2, 0.6], [0.8, 1.0]], [[0.1, 0.1], [0.1, 0.5]]).statistics(0.5)
    assert got.reward_mean == pytest.approx((0.75 + 0.25) / 2)
    assert got.reward_std == pytest.approx(0.25)  # over entries (1/N), not over completions
    assert got.iou_margin == pytest.approx(3.4 / 8 - 0.5)


def test_recomputed_or_as_rewarded():
    pushed = filled([0.4, 0.6], threshold=0.3)
    assert pushed.statistics(0.5).reward_mean == 0.5
    as_rewarded = pushed.statistics(0.5, as_rewarded=True)
    assert as_rewarded.reward_mean == 1.0
    assert as_rewarded.iou_margin == pytest.approx(0.0)  # always under the present threshold


def test_the_oldest_go():
    got = filled([0.1], [0.2], [0.3], [0.4])
    assert [entry.ious.tolist() for entry in got.entries] == [[0.2], [0.3], [0.4]]


@pytest.mark.parametrize(
    ("size", "fraction", "left"),
    [(30, 0.5, 15), (30, 0.25, 23), (30, 1.0, 0), (30, 0.0, 30), (5, 0.5, 3), (100, 0.29, 71)],
)
def test_refresh_drops_the_floor_of_the_share(size, fraction, left):
    got = filled(*[[i / size] for i in range(size)], size=size)
    got.refresh(fraction)
    assert [entry.ious[0] for entry in got.entries] == [i / size for i in range(size - left, size)]


def test_refresh_of_a_window_that_is_not_full_keeps_the_newest():
    got = filled([0.1], [0.2], size=10)
    got.refresh(0.5)
    assert len(got.entries) == 2


def test_state_survives_json_exactly():
    got = filled([1 / 3, 0.1 + 0.2], [0.7, np.nextafter(0.5, 0)])
    other = window.Window(3)
    other.load(json.loads(json.dumps(got.state())))
    assert other.statistics(0.5) == got.statistics(0.5)
    assert other.state() == got.state()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "shape"),
        ([[]], "shape"),
        ([0.5, 0.5], "shape"),
        ([[[0.5]]], "shape"),
        ([[0.5], [0.5, 0.5]], "ragged"),
        ([[0.5, float("nan")]], "nan"),
        ([[0.5, float("inf")]], "inf"),
        ([[1.2]], "1.2"),
        ([[-0.1]], "-0.1"),
        ([["a"]], "numbers"),
        ([[None]], "numbers"),
        ([[True]], "numbers"),
    ],
)
def test_bad_ious_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        window.checked_ious(bad)


def test_good_ious_pass():
    assert window.checked_ious([[0, 1]]).dtype == np.float64
    got = window.checked_ious(np.full((2, 3), 0.5, np.float32))
    np.testing.assert_array_equal(got, np.full((2, 3), 0.5))
