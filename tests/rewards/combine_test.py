# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medloc_jax.curriculum import window
from medloc_jax.rewards import combine

IOU = jnp.array([[0.2, 0.45, 0.9], [0.0, 0.5, 0.4499]], jnp.float32)
FORMAT = jnp.array([[1, 0, 1], [0, 1, 1]], jnp.float32)
SCORES = {"iou": IOU, "format": FORMAT}
WEIGHTS = {"localization": 1.0, "format": 0.5}


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        ("hit", [[0, 1, 1], [0, 1, 0]]),
        ("raw_iou", IOU),
        ("iou_if_hit", [[0, 0.45, 0.9], [0, 0.5, 0]]),
    ],
)
def test_shapes(shape, want):
    reward, terms = combine.combine(SCORES, 0.45, {"localization": 1.0}, shape)
    np.testing.assert_array_equal(reward, np.array(want, np.float32))
    np.testing.assert_array_equal(terms["localization"], reward)


def rewarded(iou, rivals):
    weights = {"localization": 1.0}
    return combine.combine({"iou": jnp.asarray(iou)}, 0.0, weights, "rivals", rivals)[0]


@pytest.mark.parametrize("rivals", [1, 2, 4])
def test_rivals_is_the_chance_to_beat_so_many_siblings(rivals):
    """By counting: all draws of so many siblings, with replacement."""
    iou = np.float32([[0.5, 0.9, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]])
    want = np.zeros_like(iou)
    for b, g in np.ndindex(iou.shape):
        siblings = np.delete(iou[b], g)
        draws = list(itertools.product(siblings, repeat=rivals))
        want[b, g] = np.mean([all(iou[b, g] > rival for rival in draw) for draw in draws])
    np.testing.assert_allclose(rewarded(iou, float(rivals)), want, rtol=1e-6)
    assert want[0, 1] == 1 and want[0, 2] == 0 and not want[1].any()


def test_rivals_sees_the_order_alone():
    iou = np.random.default_rng(0).uniform(0.0, 1.0, (3, 8)).astype(np.float32)
    np.testing.assert_array_equal(rewarded(iou, 3.0), rewarded(iou**3 / 2, 3.0))
    # Every group without ties is spread alike.
    spread = np.std(rewarded(iou, 3.0), axis=1)
    np.testing.assert_allclose(spread, spread[0], rtol=1e-5)


def test_weights_and_terms():
    reward, terms = combine.combine(SCORES, 0.45, WEIGHTS, "hit")
    np.testing.assert_array_equal(reward, [[0.5, 1, 1.5], [0, 1.5, 0.5]])
    assert set(terms) == {"localization", "format"}
    np.testing.assert_array_equal(terms["format"], FORMAT)  # as scored, so that weight 0 shows it
    reward, terms = combine.combine(SCORES, 0.45, {"localization": 2.0, "format": 0.0}, "hit")
    np.testing.assert_array_equal(reward, 2 * terms["localization"])
    np.testing.assert_array_equal(terms["format"], FORMAT)


def test_one_threshold_a_prompt():
    reward, _ = combine.combine(SCORES, jnp.array([0.9, 0.4]), {"localization": 1.0}, "hit")
    np.testing.assert_array_equal(reward, [[0, 0, 1], [0, 1, 1]])


def test_moving_the_threshold_compiles_nothing():
    traces = []

    @functools.partial(jax.jit, static_argnames="shape")
    def reward(iou, threshold, shape):
        traces.append(shape)
        return combine.combine({"iou": iou}, threshold, {"localization": 1.0}, shape)[0]

    hits = [int(reward(IOU, jnp.float32(t), "hit").sum()) for t in (0.1, 0.3, 0.45, 0.6, 0.95)]
    assert hits == [5, 4, 3, 1, 0]
    assert traces == ["hit"]


@pytest.mark.parametrize("threshold", [0.3, 0.45, 0.6, 0.7, 0.8, 1 / 3])
def test_the_window_counts_the_hits_that_are_rewarded(threshold):
    near = threshold + np.array([-1e-6, -1e-9, 0.0, 1e-9, 1e-6])
    for ious in (near, near.astype(np.float32).astype(np.float64)):
        reward, _ = combine.combine(
            {"iou": jnp.asarray(ious[None], jnp.float32)}, threshold, {"localization": 1.0}, "hit"
        )
        np.testing.assert_array_equal(reward[0] == 1, window.hits(ious, threshold))


def test_a_weight_of_zero_needs_no_score():
    reward, terms = combine.combine(SCORES, 0.45, WEIGHTS | {"semantic": 0.0}, "hit")
    np.testing.assert_array_equal(reward, [[0.5, 1, 1.5], [0, 1.5, 0.5]])
    assert "semantic" not in terms
    with pytest.raises(ValueError, match=r"\['semantic'\]"):
        combine.combine(SCORES, 0.45, WEIGHTS | {"semantic": 0.5}, "hit")


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"\['lenght'\].*format.*localization"):
        combine.combine(SCORES, 0.5, {"lenght": 1.0}, "hit")
    with pytest.raises(ValueError, match="none of"):
        combine.combine(SCORES, 0.5, WEIGHTS, "giou")
