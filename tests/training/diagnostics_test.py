# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What is written down at the end of a run of gradients that are not finite."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from medloc_jax import watchdog
from medloc_jax.training import diagnostics, optimizer


def test_the_tensors_are_named_with_norms_by_group(open_job, tmp_path):
    trainable = {
        "language_model": {"norm": {"scale": jnp.ones(3)}, "q": {"kernel": jnp.ones((2, 2))}},
        "lm_head": {"kernel": jnp.full((2,), jnp.inf)},
    }
    grads = {
        "language_model": {
            "norm": {"scale": jnp.array([3.0, 4.0, 0.0])},
            "q": {"kernel": jnp.array([[1.0, jnp.nan], [0.0, 0.0]])},
        },
        "lm_head": {"kernel": jnp.array([0.0, 2.0])},
    }
    norms = optimizer.leaf_norms(grads)
    metrics = {"grpo/loss": jnp.float32(jnp.nan), "optimizer/grad_norm": jnp.float32(1)}
    record = {"id": "a", "rewards": [0.5, float("nan")]}
    rows = diagnostics.Rows([record], {"rewards": np.ones((1, 2))})
    match = r"7: .* 20 steps in a row.*1 of 3 tensors"
    with pytest.raises(diagnostics.NonFiniteError, match=match) as caught:
        job = dataclasses.replace(open_job(), workdir=tmp_path)
        metrics |= {diagnostics.LEAF_NORMS: norms}
        diagnostics.stop(job, 7, trainable, metrics, rows, 20)
    assert watchdog.exit_code(caught.value) == watchdog.NONFINITE
    told = json.loads((tmp_path / "diagnostics" / "7.json").read_text())
    assert told["nonfinite_gradients"] == ["language_model/q/kernel"]
    assert told["nonfinite_parameters"] == ["lm_head/kernel"]
    assert told["gradient_norm"] == {
        "language_model/norm/scale": 5.0,
        "language_model/q/kernel": None,
        "lm_head/kernel": 2.0,
    }
    assert told["gradient_norm_of_group"] == {
        "language_model/norm": 5.0,
        "language_model/q": None,
        "lm_head/kernel": 2.0,
    }
    assert told["metrics"] == {"grpo/loss": None, "optimizer/grad_norm": 1.0}
    assert told["rows"] == [{"id": "a", "rewards": [0.5, None]}]
    with np.load(tmp_path / "diagnostics" / "7.npz") as arrays:
        assert sorted(arrays) == ["gradient_norm", "rewards"]
