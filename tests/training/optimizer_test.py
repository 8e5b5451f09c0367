# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medloc_jax.training import optimizer

SETTINGS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0}


def _params(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "layers": {"proj": {"kernel": normal(2, 3, 4), "bias": normal(2, 4)}},
        "norm": {"scale": normal(4)},
        "embed": {"embedding": normal(5, 4)},
    }


def _flat(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _adam_count(state):
    return int(optax.tree_utils.tree_get(state, "count"))


def _assert_equal(got, want):
    got, want = _flat(got), _flat(want)
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_three_steps_equal_adamw_by_hand(weight_decay, clip_norm):
    tool = optimizer.make_optimizer(
        **SETTINGS | {"weight_decay": weight_decay, "clip_norm": clip_norm}
    )
    params = _params()
    state = tool.init(params)
    step_fn = jax.jit(functools.partial(optimizer.apply, tool))
    want = {name: leaf.astype(np.float64) for name, leaf in _flat(params).items()}
    first = {name: 0.0 for name in want}
    second = {name: 0.0 for name in want}
    for step, rate in enumerate([1e-2, 5e-3, 0.0], start=1):
        grads = _params(seed=step)
        params, state, norm = step_fn(grads, state, params, rate, True)
        exact = {name: leaf.astype(np.float64) for name, leaf in _flat(grads).items()}
        length = np.sqrt(sum((leaf**2).sum() for leaf in exact.values()))
        np.testing.assert_allclose(norm, length, rtol=1e-6)
        factor = min(1.0, clip_norm / length) if clip_norm else 1.0
        for name, grad in exact.items():
            grad = grad * factor
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            move = first[name] / (1 - 0.9**step)
            move = move / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
            if "kernel" in name or "embedding" in name:
                move = move + weight_decay * want[name]
            want[name] = want[name] - rate * move
    for name, leaf in _flat(params).items():
        np.testing.assert_allclose(leaf, want[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_small_gradients_are_not_scaled_up():
    grads = {"kernel": jnp.array([0.3, 0.4])}
    params = {"kernel": jnp.zeros(2)}
    tool = optimizer.make_optimizer(**SETTINGS | {"beta1": 0.0, "beta2": 0.0, "eps": 1.0})
    new, _, norm = optimizer.apply(tool, grads, tool.init(params), params, 1.0, True)
    np.testing.assert_allclose(norm, 0.5, rtol=1e-6)
    np.testing.assert_allclose(new["kernel"], [-0.3 / 1.3, -0.4 / 1.4], rtol=1e-6)


def test_decay_is_decided_by_name_not_by_rank():
    mask = optimizer.decay_mask(_params())
    assert mask == {
        "layers": {"proj": {"kernel": True, "bias": False}},
        "norm": {"scale": False},
        "embed": {"embedding": True},
    }
    with pytest.raises(ValueError, match="gamma"):
        optimizer.decay_mask({"norm": {"gamma": jnp.zeros(2)}})


@pytest.mark.parametrize("rubbish", [None, np.nan, np.inf, 1e30])
def test_a_skipped_step_leaves_everything_as_if_it_had_not_been(rubbish):
    # None: finite gradients, keep=False. 1e30: finite, but its square is not.
    tool = optimizer.make_optimizer(**SETTINGS | {"weight_decay": 0.1})
    step = jax.jit(lambda *args: optimizer.apply(tool, *args))
    params = _params()
    params, state, _ = step(_params(1), tool.init(params), params, 1e-2, True)
    bad = _params(2)
    if rubbish is not None:
        bad["norm"]["scale"] = bad["norm"]["scale"].at[1].set(rubbish)
    skipped, skipped_state, norm = step(bad, state, params, 1e-2, False)
    _assert_equal(skipped, params)
    _assert_equal(skipped_state, state)
    assert _adam_count(skipped_state) == 1
    assert bool(np.isfinite(norm)) is (rubbish is None)
    _assert_equal(
        step(_params(3), skipped_state, skipped, 1e-2, True)[0],
        step(_params(3), state, params, 1e-2, True)[0],
    )


@pytest.mark.parametrize("rubbish", [np.nan, -np.inf, 1e30])
def test_a_gradient_that_is_not_finite_is_skipped_even_when_kept(rubbish):
    tool = optimizer.make_optimizer(**SETTINGS)
    params = _params()
    state = tool.init(params)
    bad = _params(2)
    bad["norm"]["scale"] = bad["norm"]["scale"].at[1].set(rubbish)
    new, new_state, norm = optimizer.apply(tool, bad, state, params, 1e-2, True)
    _assert_equal(new, params)
    _assert_equal(new_state, state)
    assert not np.isfinite(norm)


def test_a_step_that_is_kept_moves_every_leaf():
    tool = optimizer.make_optimizer(**SETTINGS)
    params = _params()
    new, state, _ = optimizer.apply(tool, _params(1), tool.init(params), params, 1e-2, True)
    assert all((leaf != _flat(params)[name]).all() for name, leaf in _flat(new).items())
    assert _adam_count(state) == 1


def test_learning_rate_and_keep_are_traced():
    tool = optimizer.make_optimizer(**SETTINGS)
    traces = []

    @jax.jit
    def step(params, state, rate, keep):
        traces.append(rate)
        return optimizer.apply(tool, _params(1), state, params, rate, keep)

    params, state = _params(), tool.init(_params())
    for rate, keep in [(1e-2, True), (3e-3, True), (0.0, False)]:
        params, state, _ = step(params, state, np.float32(rate), keep)
    assert len(traces) == 1 and _adam_count(state) == 2


def test_moments_are_float32_for_low_precision_parameters():
    tool = optimizer.make_optimizer(**SETTINGS | {"weight_decay": 0.1})
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), _params())
    state = tool.init(params)
    new, new_state, norm = optimizer.apply(tool, params, state, params, 1e-2, True)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}
    assert norm.dtype == jnp.float32
    for leaves in (state, new_state):
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(leaves)}
        assert dtypes == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta1", 1.0), ("beta2", -0.1), ("eps", -1.0), ("clip_norm", float("nan"))],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"optim.{name}"):
        optimizer.make_optimizer(**SETTINGS | {name: value})


def _rate(step, **changes):
    options = {
        "learning_rate": 1e-6,
        "warmup_steps": 0,
        "schedule": "linear",
        "total_steps": 40166,
    }
    return optimizer.learning_rate_at(step, **options | changes)


def test_linear_prints_what_hugging_face_logged():
    assert _rate(246) == 9.938754170193695e-07


def test_linear_ends_at_zero_and_stays_there():
    assert [_rate(step, learning_rate=1.0, total_steps=4) for step in range(6)] == [
        1.0,
        0.75,
        0.5,
        0.25,
        0.0,
        0.0,
    ]


@pytest.mark.parametrize(
    ("schedule", "want"),
    [("linear", [0, 0.5, 1, 0.75, 0.5, 0.25, 0]), ("constant", [0, 0.5, 1, 1, 1, 1, 1])],
)
def test_warmup_rises_from_zero(schedule, want):
    got = [
        _rate(step, learning_rate=1.0, warmup_steps=2, schedule=schedule, total_steps=6)
        for step in range(7)
    ]
    assert got == want


def test_constant_needs_no_length():
    assert _rate(10**6, schedule="constant", total_steps=0) == 1e-6


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"schedule": "cosine"}, "optim.schedule is 'cosine': choose one of linear, constant"),
        ({"warmup_steps": 10, "total_steps": 10}, "optim.warmup_steps is 10"),
        ({"total_steps": 0}, "optim.total_steps"),
        ({"learning_rate": float("nan")}, "optim.learning_rate"),
        ({"warmup_steps": -1}, "optim.warmup_steps"),
    ],
)
def test_bad_schedules_are_refused_by_name(changes, match):
    with pytest.raises(ValueError, match=match):
        _rate(0, **changes)
