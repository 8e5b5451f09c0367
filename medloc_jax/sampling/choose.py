# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Choosing the next token from logits.

Vision and padding tokens are never chosen (a generated image placeholder breaks the prompt of
whoever reads the text next). Log-probabilities are of the full vocabulary at the sampling
temperature, not of what is left after the ban: the loss computes the same quantity.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from medloc_jax import sharding
from medloc_jax.model import attention, vocabulary


def allowed_tokens(vocab_size: int, forbidden_ids: Sequence[int]) -> np.ndarray:
    """Returns bool[vocab_size]: true = may be sampled.

    Raises:
        ValueError: if nothing is left to sample.
    """
    allowed = np.ones((vocab_size,), bool)
    allowed[np.asarray(forbidden_ids, np.int64)] = False
    if not allowed.any():
        raise ValueError(f"all {vocab_size} tokens are forbidden: nothing is left to sample")
    return allowed


def row_keys(key: Array, batch: int, group_size: int) -> UInt32[Array, "b g 2"]:
    """A key for each completion, by its row in the global batch: the same on any mesh."""
    rows = jnp.arange(batch * group_size).reshape(batch, group_size)
    return jax.vmap(jax.vmap(lambda row: jax.random.fold_in(key, row)))(rows)


def choose(
    logits: Float[Array, "b g v"],
    keys: UInt32[Array, "b g 2"],
    step: Int[Array, ""],
    temperature: Float[Array, ""],
    allowed: Bool[Array, " v"],
    *,
    greedy: bool,
) -> tuple[Int[Array, "b g"], Float[Array, "b g"]]:
    """Draws one token a row.

    Args:
        logits: of the next token.
        keys: one a row.
        step: place in the completion; folded into the keys.
        temperature: above 0; in greedy mode it only scales the log-probabilities.
        allowed: true = may be chosen.
        greedy: take the likeliest instead of drawing.

    Returns:
        Token ids, and their float32 log-probabilities under logits / temperature.
    """
    scaled = logits / temperature
    choices = jnp.where(allowed, scaled, attention.MASKED)
    if greedy:
        tokens = jnp.argmax(choices, axis=-1)
    else:
        at_step = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, step)))(keys)
        share = jax.vmap(jax.vmap(jax.random.uniform))(at_step)
        # Against the best that is allowed: at a low temperature a better one leaves nothing else.
        tokens = _draw(jnp.exp(choices - jnp.max(choices, axis=-1, keepdims=True)), share)
    tokens = tokens.astype(jnp.int32)
    return tokens, vocabulary.chosen_logits(scaled, tokens) - jax.nn.logsumexp(scaled, axis=-1)


# Tokens added up at a time: the first search is over sums of so many, the second within one.
BLOCK = 128


def _draw(chances: Float[Array, "b g v"], share: Float[Array, "b g"]) -> Int[Array, "b g"]:
    """The token at which the running sum of chances passes a share of all: one number a row.

    (Noise for every token, as in Gumbel's way to draw, costs more than all else of a small model's
    step.) What has no chance is never drawn, however the sums round.
    """
    short = -chances.shape[-1] % (BLOCK * sharding.ways("vocab", chances.shape[-1]))
    blocks = jnp.pad(chances, ((0, 0), (0, 0), (0, short)))
    blocks = blocks.reshape(*chances.shape[:-1], -1, BLOCK)
    blocks = sharding.constrain(blocks, "batch", None, "vocab", None)
    sums = jnp.sum(blocks, axis=-1)
    block, rest = _pass(sums, share * jnp.sum(sums, axis=-1))
    of_block = jax.lax.broadcasted_iota(block.dtype, sums.shape, 2) == block[..., None]
    # A sum, not a look-up: blocks may lie on several devices.
    within, _ = _pass(jnp.sum(jnp.where(of_block[..., None], blocks, 0.0), axis=-2), rest)
    # Not a number, as logits of a model that has diverged are, is nowhere passed.
    return jnp.minimum(block * BLOCK + within, chances.shape[-1] - 1)


def _pass(
    parts: Float[Array, "b g n"], target: Float[Array, "b g"]
) -> tuple[Int[Array, "b g"], Float[Array, "b g"]]:
    """Where the running sum of parts passes the target, and how much is left there.

    Rounding may leave a target that is never passed: then it is the last part that is not 0.
    """
    running = jnp.cumsum(parts, axis=-1)
    passed = (running > target[..., None]) & (parts > 0)
    last = parts.shape[-1] - 1 - jnp.argmax((parts > 0)[..., ::-1], axis=-1)
    place = jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last)
    before = jnp.where(place > 0, _at(running, place - 1), 0.0)
    return place, jnp.maximum(0.0, target - before)


def _at(values: Float[Array, "b g n"], place: Int[Array, "b g"]) -> Float[Array, "b g"]:
    return jnp.take_along_axis(values, jnp.maximum(place, 0)[..., None], axis=-1)[..., 0]
