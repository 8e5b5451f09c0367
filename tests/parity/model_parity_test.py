# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Forward parity with transformers in float32: per block, end to end, and for groups.

Logits have standard deviation 3 (largest 10 to 14), hidden states 1 to 4.
"""

import pytest

pytest.importorskip("torch", reason="the parity tier compares with transformers on torch")

import parity_cases
import parity_jax

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("batch", parity_cases.BATCHES)
@pytest.mark.parametrize("name", parity_cases.SMALL_CASES)
def test_every_block(name, batch):
    diffs = parity_jax.block_diffs(parity_jax.twin(name), batch)
    print(f"\n{name} {batch} blocks:", {key: f"{diff:.1e}" for key, diff in diffs.items()})
    assert max(diffs.values()) < parity_jax.LOGITS_TOLERANCE, diffs


@pytest.mark.parametrize("batch", parity_cases.BATCHES)
@pytest.mark.parametrize("name", parity_cases.SMALL_CASES)
def test_logits(name, batch):
    diff = parity_jax.logits_diff(parity_jax.twin(name), batch)
    print(f"\n{name} {batch} logits: {diff:.1e}")
    assert diff < parity_jax.LOGITS_TOLERANCE


@pytest.mark.parametrize("batch", parity_cases.BATCHES)
@pytest.mark.parametrize("name", parity_cases.SMALL_CASES)
def test_group_logprobs(name, batch):
    """The prompt computed once per group, against the prompt repeated for each completion."""
    pair = parity_jax.twin(name)
    diff = parity_jax.logprobs_diff(pair, batch, parity_jax.THREE_COMPLETIONS)
    print(f"\n{name} {batch} group logprobs: {diff:.1e}")
    assert diff < parity_jax.LOGITS_TOLERANCE


def test_real_3b_widths():
    """Blocks, logits and log-probabilities at 3B's widths and vocabulary, few layers deep."""
    pair = parity_jax.Twin("widths_3b")  # a gigabyte or two: not kept
    diffs = parity_jax.block_diffs(pair, "pair")
    diffs["logits"] = parity_jax.logits_diff(pair, "pair")
    diffs["logprobs"] = parity_jax.logprobs_diff(pair, "mixed", parity_jax.THREE_COMPLETIONS)
    print("\nwidths_3b:", {key: f"{diff:.1e}" for key, diff in diffs.items()})
    assert max(diffs.values()) < parity_jax.LOGITS_TOLERANCE, diffs
