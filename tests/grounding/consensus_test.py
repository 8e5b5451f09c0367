# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How far a group of answers agrees, and on which box."""

import numpy as np
import pytest

from medloc_jax.grounding import consensus

NONE = [np.nan] * 4


def test_agreement_is_the_mean_over_pairs():
    same = np.array([[0.0, 0, 10, 10]] * 3)
    assert consensus.agreement(same) == 1.0
    half = np.array([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
    assert consensus.agreement(half) == pytest.approx((0.5 + 0 + 0) / 3)


def test_an_answer_without_a_box_agrees_with_none():
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10], NONE])
    assert consensus.agreement(boxes) == pytest.approx(1 / 3)
    assert consensus.agreement(np.array([NONE, NONE])) == 0.0


def test_one_answer_has_no_agreement():
    with pytest.raises(ValueError, match="two or more"):
        consensus.agreement(np.array([[0.0, 0, 1, 1]]))


def test_the_consensus_is_the_median_of_the_majority_not_of_all():
    here = [[10.0, 10, 30, 30], [11, 10, 31, 30], [12, 10, 32, 30]]
    there = [[70.0, 70, 90, 90], [71, 70, 91, 90]]
    box, members = consensus.consensus(np.array([there[0], *here, there[1], NONE]))
    np.testing.assert_allclose(box, [11, 10, 31, 30])
    assert members.tolist() == [False, True, True, True, False, False]


def test_no_box_no_consensus():
    assert consensus.consensus(np.array([NONE, NONE])) is None


def test_a_single_empty_box_stands_for_itself():
    box, members = consensus.consensus(np.array([NONE, [5.0, 5, 5, 9]]))
    assert box.tolist() == [5, 5, 5, 9] and members.tolist() == [False, True]
