# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The parity checks can fail: with one feature switched off on our side each of them goes red.

Everything is switched through the inputs or the config, so that the code under test is the code
that the parity tests run.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="the parity tier compares with transformers on torch")

import parity_jax

pytestmark = pytest.mark.parity

NAME = "tied"
RED = 100  # times the tolerance of the parity test


def mrope_off(model, inputs):
    """Plain positions 0, 1, 2, ... on all three axes."""
    plain = jnp.arange(inputs.input_ids.shape[1], dtype=jnp.int32)
    positions = jnp.broadcast_to(plain, inputs.mrope_positions.shape)
    delta = jnp.zeros_like(inputs.rope_delta)
    return model, inputs._replace(mrope_positions=positions, rope_delta=delta)


def windows_off(model, inputs):
    """Every vision block attends to the whole image."""
    vision = model.config.vision
    vision = dataclasses.replace(vision, fullatt_block_indexes=tuple(range(vision.depth)))
    config = dataclasses.replace(model.config, vision=vision)
    return dataclasses.replace(model, config=config), inputs


def merge_order_shuffled(model, inputs):
    """Merged tokens in the order in which they are stored, the window order not undone."""
    index = np.array(inputs.image_index)
    for row in index:
        row[row >= 0] = np.sort(row[row >= 0])
    assert (index != np.asarray(inputs.image_index)).any(), "the images have one window each"
    return model, inputs._replace(image_index=jnp.asarray(index))


def one_grid_for_all(model, inputs):
    """Patch rows and columns of the first prompt's image for every image."""
    return model, inputs._replace(
        patch_hw=jnp.broadcast_to(inputs.patch_hw[:1], inputs.patch_hw.shape)
    )


def prompt_not_shared(model, inputs):
    """Completions see their own tokens and of their prompt the first only; positions are right."""
    one = jnp.ones_like(inputs.prompt_lengths)
    delta = inputs.rope_delta + inputs.prompt_lengths - one
    return model, inputs._replace(prompt_lengths=one, rope_delta=delta)


IN_THE_PROMPT = [mrope_off, windows_off, merge_order_shuffled, one_grid_for_all]
ALL = [*IN_THE_PROMPT, prompt_not_shared]


@pytest.fixture(scope="module")
def pair():
    return parity_jax.twin(NAME)


@pytest.mark.parametrize("sabotage", IN_THE_PROMPT)
def test_logits_go_red(pair, sabotage):
    diff = parity_jax.logits_diff(pair, "pair", *sabotage(pair.model, pair.inputs["pair"]))
    print(f"\n{sabotage.__name__} logits: {diff:.1e}")
    assert diff > RED * parity_jax.LOGITS_TOLERANCE


@pytest.mark.parametrize("sabotage", ALL)
def test_group_logprobs_go_red(pair, sabotage):
    # The first token is left out: what is not shared by `prompt_not_shared` moves the position
    # that predicts it, which would be red for another reason.
    diff = parity_jax.logprobs_diff(
        pair,
        "pair",
        parity_jax.THREE_COMPLETIONS,
        *sabotage(pair.model, pair.inputs["pair"]),
        first_token=1,
    )
    print(f"\n{sabotage.__name__} group logprobs: {diff:.1e}")
    assert diff > RED * parity_jax.LOGITS_TOLERANCE


@pytest.mark.parametrize("sabotage", ALL)
def test_generation_goes_red(pair, sabotage):
    altered = sabotage(pair.model, pair.inputs["pair"])
    mismatches = parity_jax.generation_mismatches(pair, "pair", 32, *altered)
    print(f"\n{sabotage.__name__} generation: {mismatches} of 128 tokens differ")
    assert mismatches > 0


@pytest.mark.parametrize("sabotage", ALL)
def test_gradients_go_red(pair, sabotage):
    errors = parity_jax.gradient_errors(
        pair, "pair", parity_jax.THREE_COMPLETIONS, *sabotage(pair.model, pair.inputs["pair"])
    )
    worst = max(errors, key=errors.__getitem__)
    print(f"\n{sabotage.__name__} gradients: {errors[worst]:.1e} in {worst}")
    assert errors[worst] > RED * parity_jax.GRADIENT_TOLERANCE


def test_sabotage_is_the_only_difference(pair):
    """Through the same calls, unaltered: green."""
    untouched = pair.model, pair.inputs["pair"]
    lengths = parity_jax.THREE_COMPLETIONS
    assert parity_jax.logits_diff(pair, "pair", *untouched) < parity_jax.LOGITS_TOLERANCE
    assert parity_jax.generation_mismatches(pair, "pair", 32, *untouched) == 0
    errors = parity_jax.gradient_errors(pair, "pair", lengths, *untouched)
    assert max(errors.values()) < parity_jax.GRADIENT_TOLERANCE
