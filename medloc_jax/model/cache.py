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
        k: keys, an array [b, k, p, h] for each layer: of a key head, one matrix.
        v: values.
        mask: true = real prompt token.
        next_position: M-RoPE position of the first completion token (all three axes alike).
    """

    k: tuple[Float[Array, "b k p h"], ...]
    v: tuple[Float[Array, "b k p h"], ...]
    mask: Bool[Array, "b p"]
    next_position: Int[Array, " b"]


class CompletionCache(NamedTuple):
    """Keys and values of the completion tokens written so far, [b, k, g, c, h] for each layer.

    Arrays of their own, so that a token is written in place and a layer's cache is read where it
    lies.
    """

    k: tuple[Float[Array, "b k g c h"], ...]
    v: tuple[Float[Array, "b k g c h"], ...]


def empty_completions(
    config: TextConfig, batch: int, group_size: int, length: int, dtype: DTypeLike
) -> CompletionCache:
    """Returns a cache for `length` tokens of `batch` x `group_size` completions."""
    shape = (batch, config.num_key_value_heads, group_size, length, config.head_dim)

    def empty() -> tuple[Array, ...]:
        each = (jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers))
        return tuple(sharding.constrain(x, "batch", "kv_heads", None, None, None) for x in each)

    return CompletionCache(k=empty(), v=empty())


def of_prompts(
    kv: tuple[Float[Array, "l b p k h"], Float[Array, "l b p k h"]],
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Keys and values of a pass over the prompts, as decoding reads them."""

    def by_layer(stacked: Array) -> tuple[Array, ...]:
        each = (jnp.swapaxes(one, 1, 2) for one in stacked)
        return tuple(sharding.constrain(x, "batch", "kv_heads", None, None) for x in each)

    return by_layer(kv[0]), by_layer(kv[1])
