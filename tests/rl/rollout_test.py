# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest

from medloc_jax.rl import rollout

VALUES = {
    "threshold": 0.3,
    "temperature": 0.9,
    "kl_weight": 0.04,
    "clip_low": 0.2,
    "clip_high": 0.2,
    "learning_rate": 1e-6,
    "rivals": 2.0,
}


def test_every_leaf_is_a_strong_float32_scalar():
    for given in (0.3, 1, np.float64(0.3)):
        leaves = rollout.hyper(**VALUES | {"threshold": given})
        assert [leaf.dtype for leaf in leaves] == [np.float32] * 7
        assert [leaf.shape for leaf in leaves] == [()] * 7


def test_new_values_do_not_trace_again():
    traces = []

    @jax.jit
    def step(hyper):
        traces.append(hyper)
        return sum(hyper)

    step(rollout.hyper(**VALUES))
    changed = {name: i + 1 for i, name in enumerate(VALUES)}  # ints: another type, the same program
    assert float(step(rollout.hyper(**changed))) == sum(changed.values())
    assert len(traces) == 1


def test_threshold_may_be_one_per_example():
    hyper = rollout.hyper(**VALUES | {"threshold": np.array([0.3, 0.5])})
    assert hyper.threshold.shape == (2,) and hyper.threshold.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "value"),
    [("kl_weight", float("nan")), ("clip_low", float("inf")), ("temperature", 0.0)],
)
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        rollout.hyper(**VALUES | {name: value})
