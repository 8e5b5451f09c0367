# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Supervised steps: the mean over target tokens, however the batch is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from medloc_jax.model import geometry
from medloc_jax.training import optimizer, sft, state

B, C = 4, 5
CHAIN = optimizer.make_optimizer(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=0.0)
LENGTHS = np.array([5, 1, 3, 2])


@functools.cache
def _start():
    params = jax.tree.map(jnp.asarray, small_runs.params())
    return state.TrainState(params, CHAIN.init(params))


def _rows():
    return small_runs.prompts() + small_runs.prompts(seed=1)[:1]


def _targets():
    ids = np.random.default_rng(5).integers(0, 256, (B, 1, C)).astype(np.int32)
    return sft.Targets(ids, np.arange(C) < LENGTHS[:, None, None])  # type: ignore


def _update(open_job, parts):
    job = open_job(
        model__freeze_vision=False,
        model__remat="none",  # compiles faster
        sft__micro_batch=8 // parts,
        rl__max_completion_tokens=C,
    )
    return jax.jit(sft.make_update(job, CHAIN))


@pytest.fixture(scope="module")
def update(open_job):
    return _update(open_job, 1)


def _step(update, start=None, targets=None, rate=1e-2):
    inputs = small_runs.collate(_rows())
    start = _start() if start is None else start
    return update(start, {}, inputs, targets or _targets(), np.float32(rate))


def _named(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_the_loss_is_the_mean_over_all_target_tokens(update):
    model, targets = small_runs.MODEL, _targets()
    rows = [
        (ids + targets.completions[b, 0, : LENGTHS[b]].tolist(), images)
        for b, (ids, images) in enumerate(_rows())
    ]
    inputs = small_runs.collate(
        rows, geometry.Bucket(num_patches=32, num_windows=4, prompt_length=32)
    )
    params = _start().trainable
    logits = jax.jit(lambda p, x: model.logits(p, x, model.encode_images(p, x)))(params, inputs)
    logprobs = jax.nn.log_softmax(np.asarray(logits, np.float64))
    picked = [
        logprobs[b, len(ids) - 1 + t, targets.completions[b, 0, t]]
        for b, (ids, _) in enumerate(_rows())
        for t in range(LENGTHS[b])
    ]
    _, metrics = _step(update)
    assert len(picked) == LENGTHS.sum()
    assert float(metrics["sft/loss"]) == pytest.approx(-np.mean(picked), abs=1e-5)


def test_micro_batches_give_loss_and_gradient_of_the_whole_batch(open_job, update):
    whole, metrics = _step(update)
    split, split_metrics = _step(_update(open_job, 2))
    assert float(split_metrics["sft/loss"]) == pytest.approx(float(metrics["sft/loss"]), abs=1e-6)
    want, got = _named(whole.opt_state), _named(split.opt_state)
    floor = 1e-6 * max(np.linalg.norm(leaf) for leaf in want.values())
    for name in [name for name in want if ".mu" in name]:
        difference = np.linalg.norm(got[name] - want[name])
        assert difference < 1e-5 * max(np.linalg.norm(want[name]), floor), name


def test_masked_targets_do_not_matter_and_real_ones_do(update):
    completions, mask = _targets()
    other = completions.copy()
    other[1, 0, 1:] = 7  # past the end
    loss = float(_step(update)[1]["sft/loss"])
    assert float(_step(update, targets=sft.Targets(other, mask))[1]["sft/loss"]) == loss
    other[0, 0, 2] = 7
    assert float(_step(update, targets=sft.Targets(other, mask))[1]["sft/loss"]) != loss


def test_steps_learn_and_every_parameter_moves(update):
    current, losses = _start(), []
    for _ in range(10):
        current, metrics = _step(update, current)
        losses.append(float(metrics["sft/loss"]))
    assert losses[-1] < 0.5 * losses[0], losses
    before = _named(_start().trainable)
    for name, leaf in _named(current.trainable).items():
        assert not np.array_equal(leaf, before[name]), name


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(update):
    # A tiny final norm, as an overflow would leave it.
    broken = jax.tree.map(lambda x: x, _start().trainable)
    broken["language_model"]["norm"]["scale"] = jnp.full(32, jnp.inf)
    start = state.TrainState(broken, _start().opt_state)
    after, metrics = _step(update, start)
    assert metrics["optimizer/skipped_nonfinite"] == 1
    for got, want in zip(_named(after).values(), _named(start).values(), strict=True):
        np.testing.assert_array_equal(got, want)
