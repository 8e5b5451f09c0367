# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Keys and values kept between programs: the prompt's once a group, the completions' own.

Two parts, because the G completions of a prompt share the first: at 3B, G = 8 and 424 prompt
tokens that is an eighth of the memory and of the bytes read per decoded token.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from medloc_jax import sharding
from medloc_jax.model.config import TextConfig


class PromptCache(NamedTuple):
    """What decoding needs of the prompts; nothing in it changes while completions grow.

    Attributes:
        k: keys of every layer, [l, b, p, k, h].
        v: values of every layer.
        mask: true = real prompt token.
        next_position: M-RoPE position of the first completion token (all three axes alike).
    """

    k: Float[Array, "l b p k h"]
    v: Float[Array, "l b p k h"]
    mask: Bool[Array, "b p"]
    next_position: Int[Array, " b"]


class CompletionCache(NamedTuple):
    """Keys and values of the completion tokens written so far, [l, b, g, c, k, h]."""

    k: Float[Array, "l b g c k h"]
    v: Float[Array, "l b g c k h"]


def empty_completions(
    config: TextConfig, batch: int, group_size: int, length: int, dtype: DTypeLike
) -> CompletionCache:
    """Returns a cache for `length` tokens of `batch` x `group_size` completions."""
    heads, size = config.num_key_value_heads, config.head_dim
    shape = (config.num_hidden_layers, batch, group_size, length, heads, size)
    empty = sharding.constrain(
        jnp.zeros(shape, dtype), "layers", "batch", None, None, "kv_heads", None
    )
    return CompletionCache(k=empty, v=empty)
