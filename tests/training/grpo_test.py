# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The GRPO update: what moves, what stays, and what is not allowed to matter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from medloc_jax.rl import rollout
from medloc_jax.training import grpo, optimizer, state

B, G, C = 4, 3, 5
# No clipping and a fresh state: the first moment is then a tenth of the gradient.
CHAIN = optimizer.make_optimizer(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=0.0)
HYPER = {
    "threshold": 0.5,
    "temperature": 0.9,
    "kl_weight": 0.04,
    "clip_low": 0.2,
    "clip_high": 0.2,
    "learning_rate": 1e-2,
}


@functools.cache
def _batch():
    """Four prompts, one of them of text alone, as one batch with its features."""
    rows = small_runs.prompts() + small_runs.prompts(seed=1)[:1]
    inputs = small_runs.collate(rows)
    features = _encode(_whole(), inputs)
    return inputs, features


@functools.cache
def _whole():
    return jax.tree.map(jnp.asarray, small_runs.params())


_encode = jax.jit(small_runs.MODEL.encode_images)
_logprobs = jax.jit(small_runs.MODEL.group_logprobs)


@functools.cache
def _drawn():
    """Completions of unequal lengths, one of them empty; old and reference near the policy."""
    rng = np.random.default_rng(0)
    lengths = np.array([[5, 2, 1], [3, 3, 5], [1, 4, 2], [5, 5, 0]])
    mask = np.arange(C) < lengths[..., None]
    tokens = rng.integers(0, 256, (B, G, C)).astype(np.int32)
    now = np.asarray(_logprobs(_whole(), *_batch(), tokens, mask, np.float32(0.9)))
    old, reference = now + rng.normal(size=(2, B, G, C)).astype(np.float32) * 0.1
    return rollout.Rollout(tokens, mask, old, reference)


IOUS = np.array([[0.9, 0.4, 0.0], [0.6, 0.6, 0.1], [0.2, 0.3, 0.1], [0.8, 0.0, 0.7]], np.float32)


def _scores(ious=IOUS):
    return {"iou": ious, "format": np.ones_like(ious)}


class _Update:
    """A jitted grpo_step with its start; counts its traces."""

    def __init__(self, job, freeze_vision):
        self.traces = 0
        step = grpo.make_update(job, CHAIN, "hit")

        def counted(*args):
            self.traces += 1
            return step(*args)

        self.jitted = jax.jit(counted)
        chosen = functools.partial(state.is_trainable, freeze_vision=freeze_vision)
        trainable, self.frozen = state.split(_whole(), chosen)
        self.start = state.TrainState(trainable, CHAIN.init(trainable))

    def __call__(self, taken=None, ious=IOUS, start=None, **hyper):
        inputs, features = _batch()
        return self.jitted(
            self.start if start is None else start,
            self.frozen,
            inputs,
            features,
            _drawn() if taken is None else taken,
            _scores(ious),
            rollout.hyper(**HYPER | hyper),
        )


SETTINGS = {
    "rl__prompts_per_step": 16,
    "rl__group_size": G,
    "rl__max_completion_tokens": C,
    "model__remat": "none",  # compiles faster
}


def _make(open_job, *, freeze_vision, parts=1, **changes):
    settings = SETTINGS | {"model__freeze_vision": freeze_vision}
    # The mesh of eight devices wants 8 prompts a part; the update itself takes any number.
    micro = {"rl__micro_batch_prompts": 16 // parts}
    return _Update(open_job(**settings | micro | changes), freeze_vision)


@pytest.fixture(scope="module")
def update(open_job):
    """The tower is frozen; updates without signal are skipped."""
    return _make(open_job, freeze_vision=True, rl__skip_no_signal=True)


@pytest.fixture(scope="module")
def whole(open_job):
    """The tower is trained; updates without signal are made."""
    return _make(open_job, freeze_vision=False)


def _named(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _assert_same(got, want):
    got, want = _named(got), _named(want)
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def _gradients(after):
    return {name: leaf * 10 for name, leaf in _named(after.opt_state).items() if ".mu" in name}


def _worst(got, want):
    """Largest difference of two gradients over tensors, in norms of the tensor."""
    floor = 1e-6 * max(np.linalg.norm(leaf) for leaf in want.values())
    return max(
        np.linalg.norm(got[name] - want[name]) / max(np.linalg.norm(want[name]), floor)
        for name in want
    )


def test_a_threshold_that_moves_changes_the_reward_and_traces_nothing(update):
    rewards = {t: np.asarray(update(threshold=t)[2]) for t in (0.05, 0.5, 0.75)}
    for threshold, reward in rewards.items():
        hit = np.greater_equal(IOUS, threshold)
        np.testing.assert_array_equal(reward, hit + 1.0)  # 1 is the format's weight
    update(temperature=1.1, kl_weight=0.4, clip_low=0.1, clip_high=0.3, learning_rate=1e-3)
    assert update.traces == 1


def test_metrics_are_those_of_the_rewards(update):
    _, metrics, reward = update()
    # Groups 0, 1 and 3 hold hits and misses, group 2 only misses.
    assert metrics["group/zero_advantage_rate"] == pytest.approx(0.25)
    assert metrics["reward/localization"] == pytest.approx(np.mean(IOUS >= 0.5))
    assert metrics["reward/total"] == pytest.approx(float(np.mean(reward)))
    assert metrics["group/skipped_updates"] == 0 and metrics["optimizer/skipped_nonfinite"] == 0
    assert np.isfinite(metrics["grpo/loss"]) and metrics["grpo/kl"] > 0


def test_an_update_without_signal_changes_nothing_or_is_made_as_configured(update, whole):
    after, metrics, _ = update(ious=np.zeros((B, G), np.float32))
    _assert_same(after, update.start)
    assert metrics["group/skipped_updates"] == 1
    assert metrics["group/zero_advantage_rate"] == 1
    assert metrics["optimizer/grad_norm"] > 0  # the KL term's, which Adam would have scaled up
    one_hit = np.zeros((B, G), np.float32)
    one_hit[2, 1] = 1
    _, metrics, _ = update(ious=one_hit)
    assert metrics["group/skipped_updates"] == 0
    after, metrics, _ = whole(ious=np.zeros((B, G), np.float32))
    assert metrics["group/skipped_updates"] == 0
    assert int(optimizer.optax.tree_utils.tree_get(after.opt_state, "count")) == 1
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(after.trainable), jax.tree.leaves(whole.start.trainable), strict=True
        )
    ]
    assert all(moved)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(update):
    bad = _drawn().reference_logprobs.copy()
    bad[0, 0, 0] = np.nan
    after, metrics, _ = update(_drawn()._replace(reference_logprobs=bad))
    _assert_same(after, update.start)
    assert metrics["optimizer/skipped_nonfinite"] == 1
    masked = _drawn().reference_logprobs.copy()
    masked[0, 1, 3] = np.nan  # after that completion's end
    after, metrics, _ = update(_drawn()._replace(reference_logprobs=masked))
    assert metrics["optimizer/skipped_nonfinite"] == 0
    _assert_same(after, update()[0])


def test_a_frozen_tower_has_no_moments_and_a_trained_one_moves(update, whole):
    assert not any("visual" in name for name in _named(update.start))
    assert all("visual" in name for name in _named(update.frozen))
    after, _, _ = whole()
    before = _named(whole.start.trainable)
    tower = [name for name in before if "visual" in name]
    assert tower
    for name, leaf in _named(after.trainable).items():
        assert not np.array_equal(leaf, before[name]), name
    # Same completions and features: only the gradient through the features differs.
    grads = _gradients(whole()[0])
    assert all(np.linalg.norm(grads[name]) > 0 for name in grads if "visual" in name)


def test_micro_batches_give_loss_and_gradient_of_the_whole_batch(open_job, whole):
    want, metrics, reward = whole()
    parts = _make(open_job, freeze_vision=False, parts=2)
    got, split, split_reward = parts()
    np.testing.assert_array_equal(split_reward, reward)
    assert float(split["grpo/loss"]) == pytest.approx(float(metrics["grpo/loss"]), abs=1e-6)
    for name in ("grpo/kl", "grpo/clip_rate", "grpo/ratio_max"):
        assert float(split[name]) == pytest.approx(float(metrics[name]), rel=1e-5), name
    assert abs(float(metrics["grpo/loss"])) > 1e-3
    assert _worst(_gradients(got), _gradients(want)) < 1e-5
    # What a denominator of the micro-batch alone would do is far from that.
    longer = _drawn()._replace(completion_mask=np.ones((B, G, C), bool))
    assert _worst(_gradients(whole(longer)[0]), _gradients(want)) > 1e-2


def test_a_second_update_of_a_rollout_is_off_policy(whole):
    inputs, features = _batch()
    taken = _drawn()
    args = (taken.completions, taken.completion_mask, np.float32(0.9))
    taken = taken._replace(old_logprobs=_logprobs(_whole(), inputs, features, *args))
    first, metrics, _ = whole(taken)
    assert float(metrics["grpo/ratio_max"]) == pytest.approx(1, abs=1e-4)
    assert metrics["grpo/clip_rate"] == 0
    _, metrics, _ = whole(taken, start=first)
    assert abs(float(metrics["grpo/ratio_max"]) - 1) > 1e-2


def test_without_a_kl_weight_nothing_asks_for_a_reference(update):
    inputs, features = _batch()
    taken = _drawn()._replace(reference_logprobs=None, old_logprobs=None)
    hyper = rollout.hyper(**HYPER | {"kl_weight": 0.0})
    args = (update.start, update.frozen, inputs, features, taken, _scores(), hyper)
    traces = update.traces
    _, metrics, _ = jax.eval_shape(update.jitted, *args)
    update.traces = traces
    assert "grpo/kl" not in metrics and "grpo/loss" in metrics
