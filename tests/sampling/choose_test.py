# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One token from logits: the right distribution, the ban, and whose noise it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from medloc_jax import sharding
from medloc_jax.sampling import choose

KEY = jax.random.PRNGKey(3)
COMPILED = jax.jit(choose.choose, static_argnames="greedy")


def _choose(
    logits, *, temperature=1.0, forbidden=(), step=0, greedy=False, key=KEY, function=COMPILED
):
    batch, group, size = logits.shape
    return function(
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


# ---- one number a row: `_draw` ----

ALMOST_ONE = np.float32(1 - 2**-24)  # no float32 lies between it and 1


def _draw(chances, share):
    """Tokens of one row of chances for many shares, or of a row each."""
    share = np.atleast_1d(np.asarray(share, np.float32))
    chances = np.broadcast_to(np.asarray(chances, np.float32), (len(share), chances.shape[-1]))
    return np.asarray(jax.jit(choose._draw)(jnp.asarray(chances[None]), jnp.asarray(share[None])))[
        0
    ]


@pytest.mark.parametrize("size", [1, 5, 128, 300, 384])
def test_every_token_has_the_share_that_is_its_own(size):
    """Middles of all shares; sizes of less than a block, of whole blocks, and of neither."""
    middles = (np.arange(size) + 0.5) / size
    np.testing.assert_array_equal(_draw(np.ones(size), middles), np.arange(size))


def test_a_share_on_an_edge_is_the_next_tokens():
    """Sums of ones, and shares of 2^-9, are exact."""
    np.testing.assert_array_equal(_draw(np.ones(512), np.arange(512) / 512), np.arange(512))


@pytest.mark.parametrize("size", [151936, 151936 - 77])
def test_blocks_and_edges_of_a_large_vocabulary(size):
    tokens = np.array(
        [0, 1, 126, 127, 128, 129, 255, 256, 75_000, size - 129, size - 128, size - 1]
    )
    np.testing.assert_array_equal(_draw(np.ones(size), (tokens + 0.5) / size), tokens)
    alone = np.zeros((len(tokens), size), np.float32)
    alone[np.arange(len(tokens)), tokens] = 1e-3
    for share in (0.0, 0.5, ALMOST_ONE):
        np.testing.assert_array_equal(_draw(alone, np.full(len(tokens), share)), tokens)


def _rough(count, size):
    """Chances over 60 powers of two, most of them 0: whole blocks, and both ends, too."""
    rng = np.random.default_rng(5)
    chances = np.exp2(-60 * rng.random((count, size))) * (rng.random((count, size)) < 0.1)
    for row in chances:
        first, last = np.sort(rng.integers(0, size + 1, 2))
        row[first:last] = 0
        row[rng.integers(size)] = 1  # the likeliest has exp(0)
    return chances.astype(np.float32)


@pytest.mark.parametrize("size", [300, 1000])
def test_what_has_no_chance_is_never_drawn(size):
    chances = _rough(500, size)
    rows = np.arange(500)
    drawn = np.random.default_rng(6).random(500).astype(np.float32)
    for share in (0.0, 2**-24, 0.5, ALMOST_ONE):
        tokens = _draw(chances, np.full(500, share))
        assert (chances[rows, tokens] > 0).all(), share  # out of range would raise
    found = _draw(chances, drawn)
    assert (chances[rows, found] > 0).all()
    running = np.cumsum(chances, axis=-1, dtype=np.float64)
    want = [
        np.searchsorted(one, s * one[-1], side="right")
        for one, s in zip(running, drawn, strict=True)
    ]
    assert np.mean(found == want) > 0.99  # a share within a rounding of an edge may differ


def test_rounding_that_never_passes_the_target_gives_the_last_that_has_a_chance():
    """As if sums of blocks came out smaller than the sum of all."""
    parts = np.array([[[0.0, 2.0, 0.0, 1.0, 0.0]]], np.float32)
    place, left = choose._pass(jnp.asarray(parts), jnp.full((1, 1), 3.0))
    assert (int(place[0, 0]), float(left[0, 0])) == (3, 1.0)
    place, left = choose._pass(jnp.asarray(parts), jnp.zeros((1, 1)))
    assert (int(place[0, 0]), float(left[0, 0])) == (1, 0.0)


def test_a_sum_that_grows_by_rounding_alone_draws_nothing(monkeypatch):
    """Sums added up as a tree may differ where a part is 0."""
    parts = np.array([[[1.0, 0.0, 2.0]]], np.float32)
    sums = jnp.asarray([[[1.0, 1.0 + 2**-20, 3.0]]])
    monkeypatch.setattr(jnp, "cumsum", lambda *args, **options: sums)
    place, _ = choose._pass(jnp.asarray(parts), jnp.full((1, 1), 1.0))
    assert int(place[0, 0]) == 2


def test_the_extreme_shares_through_the_front_door(monkeypatch):
    """Neither a forbidden token, nor one whose chance is 0, whatever number comes."""
    logits = np.full((2, 3, 300), -500.0, np.float32)  # exp(-500) is 0
    logits[..., [140, 141, 260]] = 0.0
    logits[..., [0, 139, 299]] = 50.0
    for share, want in ((0.0, 140), (ALMOST_ONE, 260)):
        monkeypatch.setattr(jax.random, "uniform", lambda key, share=share: jnp.float32(share))
        tokens, _ = _choose(logits, forbidden=[0, 139, 299], function=choose.choose)
        np.testing.assert_array_equal(tokens, want)


def _chi_square(tokens, chances):
    """Per degree of freedom, over tokens that are expected at least five times."""
    want = chances / chances.sum() * tokens.size
    seen = np.bincount(tokens.ravel(), minlength=len(chances))
    often = want >= 5
    seen, want = (np.append(x[often], x[~often].sum()) for x in (seen, want))
    return float(((seen - want) ** 2 / np.maximum(want, 1)).sum() / (len(want) - 1)), len(want) - 1


def test_frequencies_over_several_blocks_are_those_of_the_softmax():
    count, temperature = 30_000, 0.8
    one = np.random.default_rng(7).normal(size=300).astype(np.float32)
    tokens, _ = _choose(np.broadcast_to(one, (1, count, 300)), temperature=temperature)
    chances = np.exp(one.astype(np.float64) / temperature)
    found, freedom = _chi_square(np.asarray(tokens), chances)
    assert freedom > 200
    limit = 1 + 5 * np.sqrt(2 / freedom)  # five standard deviations
    assert found < limit
    # It tells another temperature, and tokens that are one place off.
    assert _chi_square(np.asarray(tokens), chances**0.9)[0] > limit
    assert _chi_square(np.asarray(tokens), np.roll(chances, 1))[0] > limit


def test_a_temperature_near_0_is_greedy_though_a_forbidden_token_is_likelier():
    logits = _logits(size=300)
    logits[..., 7] = 1e3
    tokens, logprobs = _choose(logits, temperature=1e-3, forbidden=[7])
    want, wanted = _choose(logits, temperature=1e-3, forbidden=[7], greedy=True)
    np.testing.assert_array_equal(tokens, want)
    np.testing.assert_array_equal(logprobs, wanted)
    assert (np.asarray(tokens) != 7).all() and np.isfinite(logprobs).all()


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize(
    ("sizes", "vocabulary", "ways"), [((1, 8), 1024, 8), ((2, 4), 300, 4), ((1, 8), 300, 1)]
)
def test_a_split_vocabulary_gives_the_same_tokens(sizes, vocabulary, ways, greedy):
    """Whole blocks on each device; blocks that the devices' parts cut; and not split at all."""
    fsdp, tensor = sizes
    mesh = sharding.make_mesh(data=1, fsdp=fsdp, tensor=tensor)
    logits = _logits(batch=4, group=16, size=vocabulary)
    want = _choose(logits, forbidden=(3, 200), greedy=greedy)
    # Compiled anew: what has been traced does not ask again on which mesh it is.
    anew = functools.partial(_choose, forbidden=(3, 200), greedy=greedy, function=choose.choose)
    with sharding.on(mesh):
        assert sharding.ways("vocab", vocabulary) == ways
        where = sharding.spec(mesh, logits.shape, ("batch", None, "vocab"))
        split = jax.device_put(logits, NamedSharding(mesh, where))
        compiled = jax.jit(anew).lower(split).compile()
    assert ("all-reduce" in compiled.as_text()) == (ways > 1)
    got = compiled(split)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)
