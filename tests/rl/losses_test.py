# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medloc_jax.rl import losses, rollout

LEVELS = losses.RATIO_LEVELS
AGGREGATIONS = tuple(losses.AGGREGATIONS)
VARIANTS = list(itertools.product(LEVELS, AGGREGATIONS))


def _hyper(**changes):
    values = {
        "threshold": 0.5,
        "temperature": 1.0,
        "kl_weight": 0.3,
        "clip_low": 0.2,
        "clip_high": 0.28,
        "learning_rate": 1e-6,
    }
    return rollout.hyper(**values | changes)


def _batch(seed=0, shape=(4, 3, 5), spread=0.2):
    """Random arrays; lengths 0 to C, the second completion empty, the third full."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, shape[2] + 1, shape[:2])
    lengths[0, 1], lengths[0, 2] = 0, shape[2]
    mask = np.arange(shape[2]) < lengths[..., None]
    new = rng.uniform(-3, -0.5, shape).astype(np.float32)
    old = (new + rng.normal(0, spread, shape)).astype(np.float32)
    reference = (new + rng.normal(0, spread, shape)).astype(np.float32)
    advantages = rng.normal(0, 1, shape[:2]).astype(np.float32)
    arrays = (new, old, reference, advantages, mask)
    return tuple(jnp.asarray(array) for array in arrays)


def _loop_loss(
    new, old, reference, advantages, mask, hyper, ratio_level, loss_aggregation, max_tokens
):
    """The definitions, one token at a time in float64."""
    low, high = 1 - float(hyper.clip_low), 1 + float(hyper.clip_high)

    def gain(log_ratio, advantage):
        ratio = math.exp(log_ratio)
        return min(ratio * advantage, min(max(ratio, low), high) * advantage)

    completions = []  # of each completion with tokens: (list of token gains, list of token KLs)
    sequence_gains = []
    for b, g in np.ndindex(*advantages.shape):
        ids = [t for t in range(mask.shape[2]) if mask[b, g, t]]
        if not ids:
            continue
        steps = [new[b, g, t] - old[b, g, t] for t in ids]
        kls = []
        for t in ids:
            x = reference[b, g, t] - new[b, g, t]
            kls.append(math.exp(x) - x - 1)
        completions.append(([gain(step, advantages[b, g]) for step in steps], kls))
        sequence_gains.append(gain(sum(steps), advantages[b, g]))

    def aggregate(lists):
        if loss_aggregation == "seq_mean":
            return sum(sum(one) / len(one) for one in lists) / len(lists)
        if loss_aggregation == "token_mean":
            return sum(map(sum, lists)) / sum(map(len, lists))
        return sum(map(sum, lists)) / (len(lists) * max_tokens)

    if ratio_level == "token":
        policy = aggregate([gains for gains, _ in completions])
    else:
        policy = sum(sequence_gains) / len(sequence_gains)
    return -policy + float(hyper.kl_weight) * aggregate([kls for _, kls in completions])


def _loss_and_grad(batch, hyper, level, aggregation, counts=None, max_tokens=7):
    # A tuple always: a list would be another program to compile.
    return _jitted(tuple(batch), hyper, level, aggregation, counts, max_tokens)


@functools.partial(jax.jit, static_argnums=(2, 3, 5))
def _jitted(batch, hyper, level, aggregation, counts, max_tokens):
    def loss(new):
        return losses.grpo_loss(
            new,
            *batch[1:],
            hyper,
            ratio_level=level,
            loss_aggregation=aggregation,
            denominators=counts,
            max_completion_tokens=max_tokens,
        )

    (value, stats), grad = jax.value_and_grad(loss, has_aux=True)(batch[0])
    return value, stats, grad


@pytest.mark.parametrize(("level", "aggregation"), VARIANTS)
def test_loss_and_gradient_equal_the_loop(level, aggregation):
    batch, hyper = _batch(), _hyper()
    value, stats, grad = _loss_and_grad(batch, hyper, level, aggregation)
    exact = [np.asarray(array, np.float64) for array in batch]
    rest = (*exact[1:], hyper, level, aggregation, 7)
    np.testing.assert_allclose(value, _loop_loss(exact[0], *rest), rtol=1e-5)
    assert 0 < stats.clip_rate.total < stats.clip_rate.count  # both sides of the clip are exercised

    numeric = np.zeros_like(exact[0])
    for index in np.ndindex(*numeric.shape):
        shifted = [exact[0].copy(), exact[0].copy()]
        shifted[0][index] += 1e-6
        shifted[1][index] -= 1e-6
        numeric[index] = (_loop_loss(shifted[0], *rest) - _loop_loss(shifted[1], *rest)) / 2e-6
    np.testing.assert_allclose(grad, numeric, atol=1e-6)


def test_hand_values_of_the_aggregations():
    # On-policy, without KL: the gain of every token is its advantage. Lengths 1 and 3.
    new = jnp.full((1, 2, 4), -1.0)
    mask = jnp.array([[[1, 0, 0, 0], [1, 1, 1, 0]]], bool)
    advantages = jnp.array([[2.0, -1.0]])
    batch = (new, None, None, advantages, mask)
    want = {"seq_mean": -0.5, "token_mean": 0.25, "dr_grpo": 1 / 8}  # (2 - 3) over 2, 4, 2 * 4
    for aggregation, loss in want.items():
        value, _, _ = _loss_and_grad(batch, _hyper(), "token", aggregation, None, 4)
        np.testing.assert_allclose(value, loss, rtol=1e-6)
    # One ratio per completion: lengths do not matter.
    value, _, _ = _loss_and_grad(batch, _hyper(), "sequence", "dr_grpo", None, 4)
    np.testing.assert_allclose(value, -0.5, rtol=1e-6)


def test_sequence_ratio_is_the_product_of_token_ratios():
    old = jnp.full((1, 2, 3), -1.0)
    new = old + jnp.log(jnp.array([[[1.1, 1.05, 1.0], [0.5, 1.0, 1.0]]]))
    mask = jnp.ones((1, 2, 3), bool)
    batch = (new, old, None, jnp.array([[1.0, -1.0]]), mask)
    _, stats, _ = _loss_and_grad(batch, _hyper(), "sequence", "seq_mean")
    np.testing.assert_allclose(stats.ratio_max, 1.155, rtol=1e-6)
    assert (float(stats.clip_rate.total), float(stats.clip_rate.count)) == (1.0, 2.0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("ratio", "advantage", "bound"),
    [(2.0, 1.0, True), (2.0, -1.0, False), (0.5, 1.0, False), (0.5, -1.0, True)],
)
def test_clip_stops_the_gradient_only_where_it_bounds_the_gain(level, ratio, advantage, bound):
    old = jnp.full((1, 1, 1), -2.0)
    batch = (
        old + math.log(ratio),
        old,
        None,
        jnp.full((1, 1), advantage),
        jnp.ones((1, 1, 1), bool),
    )
    value, stats, grad = _loss_and_grad(batch, _hyper(), level, "seq_mean")
    limit = 1.28 if ratio > 1 else 0.8
    np.testing.assert_allclose(value, -advantage * (limit if bound else ratio), rtol=1e-6)
    np.testing.assert_allclose(grad[0, 0, 0], 0 if bound else -advantage * ratio, rtol=1e-6)
    assert bool(stats.clip_rate.total) is bound


@pytest.mark.parametrize("level", LEVELS)
def test_on_policy_ratio_is_exactly_one_and_carries_the_gradient(level):
    new, _, _, advantages, mask = _batch()
    batch = (new, None, None, advantages, mask)
    _, stats, grad = _loss_and_grad(batch, _hyper(), level, "seq_mean")
    assert float(stats.ratio_max) == 1.0 and float(stats.clip_rate.total) == 0.0
    # d/dlp of ratio * A at ratio 1 is A.
    lengths = np.maximum(np.asarray(mask).sum(2, keepdims=True), 1) if level == "token" else 1
    sequences = int(np.asarray(mask).any(2).sum())
    want = -np.asarray(advantages)[..., None] * np.asarray(mask) / lengths / sequences
    np.testing.assert_allclose(grad, want, rtol=1e-6, atol=1e-9)
    # The log-probabilities that sampled, given explicitly, are the same case.
    same = _loss_and_grad((new, new, *batch[2:]), _hyper(), level, "seq_mean")
    np.testing.assert_array_equal(same[2], grad)


def test_second_update_of_a_rollout_is_clipped():
    new, _, _, advantages, mask = _batch()
    batch = (new, new, None, advantages, mask)
    _, first, grad = _loss_and_grad(batch, _hyper(), "token", "token_mean")
    moved = new - 30.0 * grad
    _, second, _ = _loss_and_grad((moved, *batch[1:]), _hyper(), "token", "token_mean")
    assert float(first.clip_rate.total) == 0 < float(second.clip_rate.total)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _scanned(batch, hyper, level, aggregation, size):
    counts = losses.denominators(batch[4])

    def body(total, part):
        value, stats, grad = _loss_and_grad(part, hyper, level, aggregation, counts)
        return total + value, (stats, grad)

    parts = [array.reshape(-1, size, *array.shape[1:]) for array in batch]
    value, (stats, grad) = jax.lax.scan(body, jnp.float32(0), parts)
    return value, stats, grad.reshape(batch[0].shape)


@pytest.mark.parametrize(("level", "aggregation"), VARIANTS)
@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_give_the_loss_and_gradient_of_the_batch(level, aggregation, size):
    batch, hyper = _batch(), _hyper()
    whole, whole_stats, whole_grad = _loss_and_grad(batch, hyper, level, aggregation)
    value, stats, grad = _scanned(batch, hyper, level, aggregation, size)
    np.testing.assert_allclose(value, whole, atol=1e-6)
    assert np.linalg.norm(grad - whole_grad) < 1e-6 * np.linalg.norm(whole_grad)
    got, want = losses.summarize(stats), losses.summarize(whole_stats)
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("aggregation", ["seq_mean", "token_mean"])
def test_averaging_micro_batches_would_be_another_loss(aggregation):
    batch, hyper = _batch(), _hyper()
    whole = _loss_and_grad(batch, hyper, "token", aggregation)[0]
    own = [
        _loss_and_grad([array[b : b + 1] for array in batch], hyper, "token", aggregation)[0]
        for b in range(4)
    ]
    assert abs(float(np.mean(own) - whole)) > 1e-3


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=3, max_size=3))
def test_denominators_count_what_is_real(lengths):
    mask = np.arange(4) < np.array(lengths)[..., None]
    counts = losses.denominators(jnp.asarray(mask))
    flat = [length for row in lengths for length in row]
    assert int(counts.tokens) == sum(flat)
    assert int(counts.sequences) == sum(length > 0 for length in flat)
    assert int(counts.groups) == sum(any(row) for row in lengths)


@pytest.mark.parametrize(("level", "aggregation"), VARIANTS)
def test_an_empty_completion_changes_nothing(level, aggregation):
    batch, hyper = _batch(), _hyper()
    empty = [jnp.zeros_like(array[:, :1]) for array in batch[:3]]
    advantage = jnp.full((4, 1), 5.0)  # an empty completion's ratio is 1: this would count in full
    more = [
        jnp.concatenate([array, extra], axis=1)
        for array, extra in zip(batch, [*empty, advantage, jnp.zeros((4, 1, 5), bool)], strict=True)
    ]
    value, _, grad = _loss_and_grad(batch, hyper, level, aggregation)
    more_value, _, more_grad = _loss_and_grad(more, hyper, level, aggregation)
    np.testing.assert_allclose(more_value, value, rtol=1e-6)
    np.testing.assert_allclose(more_grad[:, :3], grad, rtol=1e-5, atol=1e-9)
    assert (np.asarray(more_grad[:, 3]) == 0).all()


@pytest.mark.parametrize(("level", "aggregation"), VARIANTS)
def test_a_batch_of_empty_completions_is_zero(level, aggregation):
    new, old, reference, advantages, mask = _batch()
    batch = (new, old, reference, advantages, jnp.zeros_like(mask))
    value, stats, grad = _loss_and_grad(batch, _hyper(), level, aggregation)
    assert float(value) == 0 and (np.asarray(grad) == 0).all()
    assert all(float(metric) == 0 for metric in losses.summarize(stats).values())


@pytest.mark.parametrize(("level", "aggregation"), VARIANTS)
@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_extreme_log_probabilities_stay_finite(level, aggregation, shift):
    new, old, reference, advantages, mask = _batch()
    for pushed in ((new + shift, old, reference), (new, old + shift, reference + shift)):
        value, stats, grad = _loss_and_grad(
            (*pushed, advantages, mask), _hyper(), level, aggregation
        )
        assert np.isfinite(value) and np.isfinite(grad).all()
        assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(stats))
        assert float(stats.ratio_max) <= math.exp(20) * 1.001


@pytest.mark.parametrize("rubbish", [-1e4, -np.inf, np.inf, np.nan])
@pytest.mark.parametrize("level", LEVELS)
def test_masked_positions_are_never_read(level, rubbish):
    batch = _batch()
    mask = batch[4]
    value, _, grad = _loss_and_grad(batch, _hyper(), level, "seq_mean")
    for which in range(3):
        dirty = list(batch)
        dirty[which] = jnp.where(mask, batch[which], rubbish)
        dirty_value, _, dirty_grad = _loss_and_grad(dirty, _hyper(), level, "seq_mean")
        np.testing.assert_array_equal(dirty_value, value)
        np.testing.assert_array_equal(dirty_grad, grad)


def test_no_gradient_flows_into_anything_but_the_policy():
    new, old, reference, advantages, mask = _batch()

    def loss(old, reference, advantages):
        return losses.grpo_loss(
            new, old, reference, advantages, mask, _hyper(), max_completion_tokens=5
        )[0]

    for grad in jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(old, reference, advantages):
        assert (np.asarray(grad) == 0).all()


def test_kl_pulls_towards_the_reference_and_is_reported():
    new, _, _, advantages, mask = _batch()
    nothing = jnp.zeros_like(advantages)
    batch = (new, None, new - 0.5, nothing, mask)
    value, stats, grad = _loss_and_grad(batch, _hyper(kl_weight=0.1), "token", "token_mean")
    k3 = math.exp(-0.5) + 0.5 - 1
    np.testing.assert_allclose(losses.summarize(stats)["grpo/kl"], k3, rtol=1e-5)
    np.testing.assert_allclose(value, 0.1 * k3, rtol=1e-5)
    assert (np.asarray(grad)[np.asarray(mask)] > 0).all()  # descending lowers the log-probability


def test_without_a_reference_there_is_no_kl():
    new, old, _, advantages, mask = _batch()
    batch = (new, old, None, advantages, mask)
    heavy = _loss_and_grad(batch, _hyper(kl_weight=1e6), "token", "seq_mean")
    free = _loss_and_grad(batch, _hyper(kl_weight=0.0), "token", "seq_mean")
    np.testing.assert_array_equal(heavy[2], free[2])
    assert "grpo/kl" not in losses.summarize(heavy[1])


def test_low_precision_inputs_are_computed_in_float32():
    batch = [array.astype(jnp.bfloat16) for array in _batch()[:4]] + [_batch()[4]]
    value, stats, _ = _loss_and_grad(batch, _hyper(), "token", "seq_mean")
    assert value.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(stats))


def test_changing_every_number_compiles_once():
    batch = _batch()
    traces = []

    @jax.jit
    def step(hyper, counts):
        traces.append(hyper)
        return losses.grpo_loss(*batch, hyper, denominators=counts, max_completion_tokens=5)[0]

    counts = losses.denominators(batch[4])
    first = step(_hyper(), counts)
    second = step(_hyper(kl_weight=0.4, clip_low=0.01, clip_high=1, threshold=0.8), counts)
    assert len(traces) == 1 and float(first) != float(second)


def test_unknown_variants_list_the_choices():
    with pytest.raises(ValueError, match="rl.ratio_level is 'word': choose one of token, sequence"):
        losses.grpo_loss(*_batch(), _hyper(), ratio_level="word", max_completion_tokens=5)
    with pytest.raises(ValueError, match="rl.loss_aggregation is 'sum'.*dr_grpo"):
        losses.grpo_loss(*_batch(), _hyper(), loss_aggregation="sum", max_completion_tokens=5)


CAP = 1.1


def _weighted(batch, sampler, hyper, level, aggregation="seq_mean", cap=CAP):
    def loss(new, sampler):
        return losses.grpo_loss(
            new,
            *batch[1:],
            hyper,
            ratio_level=level,
            loss_aggregation=aggregation,
            max_completion_tokens=7,
            sampler_logprobs=sampler,
            importance_cap=cap,
        )

    made = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, stats), (grad, other) = made(batch[0], sampler)
    assert (np.asarray(other) == 0).all()
    return value, stats, grad


def _sampler(batch, seed=5, spread=0.3):
    noise = np.random.default_rng(seed).normal(0, spread, batch[0].shape)
    return batch[1] + noise.astype(np.float32)


@pytest.mark.parametrize("level", LEVELS)
def test_importance_weights_multiply_the_clipped_surrogate_and_nothing_else(level):
    """Against the definition, token by token: the clip binds new / old, the cap old / sampler."""
    batch, hyper = _batch(), _hyper(kl_weight=0.0)
    sampler = _sampler(batch)
    value, stats, _ = _weighted(batch, sampler, hyper, level)
    new, old, _, advantages, mask = (np.asarray(x, np.float64) for x in batch)
    gains, weights = [], []
    for b, g in np.ndindex(*advantages.shape):
        ids = np.flatnonzero(mask[b, g])
        if not ids.size:
            continue
        steps = new[b, g, ids] - old[b, g, ids]
        drifts = old[b, g, ids] - np.asarray(sampler, np.float64)[b, g, ids]
        if level == "sequence":
            steps, drifts = steps.sum(keepdims=True), drifts.sum(keepdims=True)
        ratio, weight = np.exp(steps), np.minimum(np.exp(drifts), CAP)
        clipped = np.clip(ratio, 0.8, 1.28)
        gain = np.minimum(ratio * advantages[b, g], clipped * advantages[b, g])
        gains.append(np.mean(weight * gain))
        weights += weight.tolist()
    np.testing.assert_allclose(value, -np.mean(gains), rtol=1e-5)
    seen = losses.summarize(stats)
    np.testing.assert_allclose(seen["grpo/importance_mean"], np.mean(weights), rtol=1e-5)
    capped = np.mean(np.asarray(weights) == CAP)
    np.testing.assert_allclose(seen["grpo/importance_capped_rate"], capped, rtol=1e-5)
    assert 0 < capped < 1
    # Both differ from what they would be without: the test can fail.
    assert abs(float(value) - float(_loss_and_grad(batch, hyper, level, "seq_mean")[0])) > 1e-3


def test_with_one_update_the_weight_is_policy_over_sampler():
    batch = _batch()
    batch = (batch[0], None, *batch[2:])
    sampler = batch[0] + jnp.float32(0.25)
    plain = _loss_and_grad(batch, _hyper(kl_weight=0.0), "token", "token_mean")
    value, stats, grad = _weighted(batch, sampler, _hyper(kl_weight=0.0), "token", "token_mean")
    np.testing.assert_allclose(value, plain[0] * math.exp(-0.25), rtol=1e-5)
    np.testing.assert_allclose(grad, plain[2] * math.exp(-0.25), rtol=1e-5, atol=1e-8)
    assert stats.clip_rate.total == 0 and stats.ratio_max == 1  # however far the sampler is


def test_the_cap_bounds_and_the_kl_term_is_left_alone():
    new, _, reference, advantages, mask = _batch()
    far = new - 15  # the policy gives them e^15 times the probability
    batch = (new, None, reference, advantages, mask)
    hyper = _hyper(kl_weight=0.0)
    plain = _loss_and_grad(batch, hyper, "token", "seq_mean")
    value, stats, _ = _weighted(batch, far, hyper, "token", cap=2.0)
    np.testing.assert_allclose(value, 2 * plain[0], rtol=1e-5)
    assert losses.summarize(stats)["grpo/importance_capped_rate"] == 1
    nothing = (new, None, reference, jnp.zeros_like(advantages), mask)
    want = _loss_and_grad(nothing, _hyper(), "token", "seq_mean")
    got = _weighted(nothing, far, _hyper(), "token", cap=2.0)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    np.testing.assert_allclose(got[2], want[2], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("level", LEVELS)
def test_a_sampler_that_is_the_old_policy_changes_nothing(level):
    batch = _batch()
    sampler = jnp.where(batch[4], batch[1], jnp.nan)  # what is masked is never read
    want = _loss_and_grad(batch, _hyper(), level, "seq_mean")
    got = _weighted(batch, sampler, _hyper(), level)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    np.testing.assert_allclose(got[2], want[2], rtol=1e-5, atol=1e-8)
