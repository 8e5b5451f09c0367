# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One token from logits: the right distribution, the ban, and whose noise it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medloc_jax.sampling import choose

KEY = jax.random.PRNGKey(3)


def _choose(logits, *, temperature=1.0, forbidden=(), step=0, greedy=False, key=KEY):
    batch, group, size = logits.shape
    return choose.choose(
        jnp.asarray(logits),
        choose.row_keys(key, batch, group),
        jnp.int32(step),
        jnp.float32(temperature),
        jnp.asarray(choose.allowed_tokens(size, forbidden)),
        greedy=greedy,
    )


def _logits(batch=3, group=4, size=11):
    return np.random.default_rng(0).normal(size=(batch, group, size)).astype(np.float32) * 3


def test_greedy_takes_the_likeliest_that_is_allowed():
    logits = _logits()
    tokens, _ = _choose(logits, greedy=True)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    favourite = int(logits[0, 0].argmax())
    tokens, _ = _choose(logits, greedy=True, forbidden=[favourite])
    without = logits.copy()
    without[..., favourite] = -np.inf
    np.testing.assert_array_equal(tokens, without.argmax(-1))
    assert not np.array_equal(tokens, logits.argmax(-1))


@pytest.mark.parametrize("greedy", [True, False])
def test_a_forbidden_token_is_never_chosen_however_likely(greedy):
    logits = np.zeros((2, 200, 6), np.float32)
    logits[..., [1, 4]] = 1e4
    tokens, _ = _choose(logits, forbidden=[1, 4], greedy=greedy)
    assert not np.isin(tokens, [1, 4]).any()
    allowed, _ = _choose(logits, greedy=greedy)
    assert np.isin(allowed, [1, 4]).all()  # it would have been


@pytest.mark.parametrize("greedy", [True, False])
def test_logprobs_are_over_the_whole_vocabulary_at_the_temperature(greedy):
    logits = _logits()
    tokens, logprobs = _choose(logits, temperature=0.7, forbidden=[2, 5], greedy=greedy)
    scaled = logits.astype(np.float64) / 0.7
    whole = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))  # forbidden ones included
    want = np.take_along_axis(whole, np.asarray(tokens)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(logprobs, want, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_of_what_is_allowed(temperature):
    count = 20_000
    one = np.array([0.0, 1.0, -1.0, 0.5, 2.0], np.float32)
    tokens, _ = _choose(np.broadcast_to(one, (1, count, 5)), temperature=temperature, forbidden=[4])
    want = np.exp(one / temperature)
    want[4] = 0
    want /= want.sum()
    seen = np.bincount(np.asarray(tokens).ravel(), minlength=5) / count
    # Five standard deviations; a neighbouring temperature of this list is 30 away.
    assert (np.abs(seen - want) <= 5 * np.sqrt(want * (1 - want) / count)).all(), (seen, want)


def test_a_temperature_near_0_is_greedy():
    logits = _logits()
    tokens, _ = _choose(logits, temperature=1e-3)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))


def test_every_row_and_step_has_noise_of_its_own():
    flat = np.zeros((4, 8, 1000), np.float32)
    first, _ = _choose(flat)
    assert len(np.unique(first)) > 25  # of 32 draws from 1000
    again, _ = _choose(flat)
    np.testing.assert_array_equal(first, again)
    other_step, _ = _choose(flat, step=1)
    other_key, _ = _choose(flat, key=jax.random.PRNGKey(4))
    assert np.mean(first == other_step) < 0.2 and np.mean(first == other_key) < 0.2


def test_noise_belongs_to_the_row_of_the_global_batch_not_to_the_batch_shape():
    np.testing.assert_array_equal(
        choose.row_keys(KEY, 4, 3).reshape(12, 2), choose.row_keys(KEY, 2, 6).reshape(12, 2)
    )
    assert len(np.unique(choose.row_keys(KEY, 4, 3).reshape(12, 2), axis=0)) == 12


def test_forbidding_everything_is_refused():
    assert choose.allowed_tokens(3, [0, 2]).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="all 2 tokens are forbidden"):
        choose.allowed_tokens(2, [0, 1])
