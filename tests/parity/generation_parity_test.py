# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding equals transformers' `generate`, id for id."""

import pytest

pytest.importorskip("torch", reason="the parity tier compares with transformers on torch")

import parity_cases
import parity_jax

pytestmark = pytest.mark.parity

NUM_TOKENS = 32


@pytest.mark.parametrize("batch", parity_cases.BATCHES)
@pytest.mark.parametrize("name", parity_cases.SMALL_CASES)
def test_greedy_tokens(name, batch):
    pair = parity_jax.twin(name)
    expected = pair.expected(pair.torch_greedy, batch, NUM_TOKENS)
    variety = min(len(set(ids)) for ids, _ in expected)
    lead = min(lead for _, lead in expected)
    print(f"\n{name} {batch}: at least {variety} distinct tokens, smallest lead {lead:.1e}")
    # Repeating one token proves nothing; a tie would make the comparison a matter of rounding.
    assert variety >= 4 and lead > 2e-4
    assert parity_jax.generation_mismatches(pair, batch, NUM_TOKENS) == 0
