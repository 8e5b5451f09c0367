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

from medloc_jax.model import attention, qwen2_5_vl


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
    scores = jnp.where(allowed, scaled, attention.MASKED)
    if not greedy:
        # Gumbel noise and argmax: a draw from the softmax without computing it.
        at_step = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, step)))(keys)
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, scaled.shape[-1:])))(at_step)
        scores = scores + noise
    tokens = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    chosen = qwen2_5_vl.chosen_logits(scaled, tokens)
    return tokens, chosen - jax.nn.logsumexp(scaled, axis=-1)
