# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medloc_jax.rl import advantages


def _hits(k, group_size=8):
    return np.array([[1.0] * k + [0.0] * (group_size - k)], np.float32)


@pytest.mark.parametrize(
    ("std", "k", "hit", "miss"),
    [
        ("sample", 1, 2.4742, -0.3535),
        ("sample", 2, 1.6198, -0.5399),
        ("sample", 3, 1.2074, -0.7244),
        ("sample", 4, 0.9352, -0.9352),
        ("population_inside", 1, 2.6458, -0.3780),
        ("population_inside", 4, 1.0, -1.0),
        ("none", 1, 0.875, -0.125),
        ("none", 4, 0.5, -0.5),
    ],
)
def test_binary_groups_of_eight(std, k, hit, miss):
    got = advantages.group_advantages(_hits(k), std=std)
    np.testing.assert_allclose(got[0], [hit] * k + [miss] * (8 - k), atol=5.1e-5)


def test_sample_divides_by_unbiased_std_plus_epsilon():
    # mean 0.4, deviations -.4 -.1 .5, unbiased variance .42 / 2
    got = advantages.group_advantages(np.array([[0.0, 0.3, 0.9]], np.float32))
    want = np.array([-0.4, -0.1, 0.5]) / (np.sqrt(0.21) + 1e-4)
    np.testing.assert_allclose(got[0], want, rtol=1e-6)


@pytest.mark.parametrize("std", advantages.NORMALISERS)
@pytest.mark.parametrize("group_size", [2, 10])
def test_equal_rewards_give_exact_zeros(std, group_size):
    rewards = np.array([[0.0], [1.0], [0.1], [1 / 3], [1.1]], np.float32)
    got = advantages.group_advantages(rewards.repeat(group_size, axis=1), std=std)
    assert (np.asarray(got) == 0).all()


def test_rounding_is_why_equal_rewards_need_a_special_case():
    rewards = jnp.full((1, 10), 0.1, jnp.float32)
    centred = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    assert (np.asarray(centred) != 0).any()


def test_has_signal_per_group():
    rewards = np.array([[0, 0, 0], [1, 1, 1], [0, 1, 0], [0.5, 0.5, 0.5000001]], np.float32)
    assert advantages.has_signal(rewards).tolist() == [False, False, True, True]


def test_groups_do_not_touch_each_other():
    rewards = np.array([[0, 1, 0, 0], [0.2, 0.9, 0.4, 0.4]], np.float32)
    both = advantages.group_advantages(rewards)
    for row in range(2):
        alone = advantages.group_advantages(rewards[row : row + 1])
        np.testing.assert_array_equal(both[row], alone[0])


def test_nan_reward_is_not_hidden():
    rewards = np.array([[0, np.nan], [0, 1]], np.float32)
    got = np.asarray(advantages.group_advantages(rewards))
    assert np.isnan(got[0]).all() and np.isfinite(got[1]).all()


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.float32, (3, 4), elements=st.integers(0, 8).map(lambda eighths: np.float32(eighths / 8))
    ),
    st.sampled_from(sorted(advantages.NORMALISERS)),
)
def test_advantages_are_centred_ordered_and_follow_a_permutation(rewards, std):
    got = np.asarray(advantages.group_advantages(rewards, std=std))
    np.testing.assert_allclose(got.sum(axis=1), 0, atol=1e-5)
    greater = rewards[:, :, None] > rewards[:, None, :]
    assert (got[:, :, None] > got[:, None, :])[greater].all()
    turned = advantages.group_advantages(rewards[:, [2, 0, 3, 1]], std=std)
    np.testing.assert_allclose(turned, got[:, [2, 0, 3, 1]], atol=1e-6)


def test_group_of_one_names_the_knob():
    with pytest.raises(ValueError, match="rl.group_size is 1"):
        advantages.group_advantages(np.zeros((3, 1), np.float32))


def test_unknown_std_lists_the_choices():
    with pytest.raises(ValueError, match="population_inside"):
        advantages.group_advantages(np.zeros((3, 2), np.float32), std="population")
