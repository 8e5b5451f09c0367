# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Gradients of the mean cross-entropy over completion tokens, every tensor of every layer.

Ours go through the group forward (each prompt once), transformers' through the repeated batch.
"""

import pytest

pytest.importorskip("torch", reason="the parity tier compares with transformers on torch")

import parity_cases
import parity_jax

pytestmark = pytest.mark.parity


ONE = parity_jax.ONE_COMPLETION
THREE = parity_jax.THREE_COMPLETIONS
# A group of one is checked where the language models differ; the vision tower is the same program.
RUNS = [(name, THREE) for name in parity_cases.SMALL_CASES]
RUNS += [(name, ONE) for name in ("tied", "untied", "ratio_7b")]


@pytest.mark.parametrize("batch", parity_cases.BATCHES)
@pytest.mark.parametrize(
    ("name", "lengths"), RUNS, ids=[f"{name}-{len(lengths[0])}" for name, lengths in RUNS]
)
def test_gradients(name, batch, lengths):
    errors = parity_jax.gradient_errors(parity_jax.twin(name), batch, lengths)
    worst = max(errors, key=errors.__getitem__)
    print(f"\n{name} {batch} G={len(lengths[0])} gradients: {errors[worst]:.1e} in {worst}")
    assert errors[worst] < parity_jax.GRADIENT_TOLERANCE, {
        k: e for k, e in errors.items() if e >= parity_jax.GRADIENT_TOLERANCE
    }
