# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Attention by splash, the TPU's kernel: no matrix of scores in memory.

Which keys count is told by segment numbers and a mask of whole blocks: blocks in which nothing
counts are skipped. So a group is one call over its prompt and its completions, in which nothing is
repeated and nothing has to be merged. Off a TPU, where only tests run it, it is interpreted (slow).

Reference: jax.experimental.pallas.ops.tpu.splash_attention.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jaxtyping import Array, Float, Int

from medloc_jax import sharding

LANES = 128  # splash wants whole multiples of this many positions
BLOCK = 512  # positions of a block, where there are as many
GROUP_BLOCK = 256  # likewise in a group: shorter, so that more of the mask's blocks are empty

Heads = Float[Array, "b t n h"]


def attend(
    q: Heads,
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    segments: Int[Array, "b s"],
    query_segments: Int[Array, "b t"],
    *,
    causal: bool,
) -> Heads:
    """Attention by splash.

    Args:
        q: queries.
        k: keys.
        v: values.
        segments: a query looks at the keys of its own number, here of the keys.
        query_segments: likewise of the queries; each of them is among the keys'.
        causal: a query looks at no key behind its own place; needs as many keys as queries.
    """
    t, s = q.shape[1], k.shape[1]
    block = min(BLOCK, _rounded(max(t, s), LANES))
    padded = (_rounded(t, block), _rounded(s, block))
    mask = splash_mask.CausalMask(padded) if causal else splash_mask.FullMask(padded)
    return _splash(q, k, v, query_segments, segments, mask, block)


def attend_group(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t k h"],
    v: Float[Array, "b t k h"],
    lengths: Int[Array, " b"],
    *,
    prompt_length: int,
    group_size: int,
) -> Float[Array, "b t n h"]:
    """Prompts and, after them, the completions of each, in one call of splash.

    Args:
        q: queries of p prompt tokens and g * c completion tokens.
        k: keys of the same.
        v: values of the same.
        lengths: real tokens of each prompt, at least 1.
        prompt_length: p.
        group_size: g.
    """
    t = q.shape[1]
    block = min(GROUP_BLOCK, _rounded(t, LANES))
    places = jnp.arange(t)
    counts = (places < lengths[:, None]) | (places >= prompt_length)
    mask = _group_mask(_rounded(t, block), t, prompt_length, group_size)
    queries = jnp.ones(q.shape[:2], jnp.int32)  # padding too: it looks at the real tokens before it
    return _splash(q, k, v, queries, counts.astype(jnp.int32), mask, block)


@functools.lru_cache(maxsize=16)
def _group_mask(padded: int, t: int, prompt_length: int, group_size: int) -> splash_mask.Mask:
    """True = may look; queries of padding look at themselves, so that no row is empty."""
    length = max(1, (t - prompt_length) // group_size)
    place = np.arange(padded)
    # 0 = the prompt, then the number of the completion.
    part = np.where(place < prompt_length, 0, 1 + (place - prompt_length) // length)
    mask = (place[:, None] >= place) & ((part == 0) | (part[:, None] == part))
    mask[t:] = place[t:, None] == place
    return splash_mask.NumpyMask(mask)


def _splash(
    q: Array,
    k: Array,
    v: Array,
    query_segments: Array,
    segments: Array,
    mask: splash_mask.Mask,
    block: int,
) -> Array:
    t, size = q.shape[1], q.shape[3]
    interpret = sharding.platform() != "tpu"
    sizes = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), block),
        **dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"), block),
        **dict.fromkeys(("block_q_dq", "block_kv_dq"), block),
    )

    def run(q: Array, k: Array, v: Array, query_segments: Array, segments: Array) -> Array:
        q = q * jnp.asarray(size**-0.5, q.dtype)
        q = _padded(q, mask.shape[0], LANES)
        k, v = (_padded(x, mask.shape[1], LANES) for x in (k, v))
        # What is padded here belongs to no segment that a real key has.
        ids = splash.SegmentIds(
            q=_padded(query_segments, mask.shape[0]),
            kv=_padded(segments, mask.shape[1]),
        )
        kernel = splash.make_splash_mha(
            splash_mask.MultiHeadMask([mask] * q.shape[2]),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # [b, n, t, h]
        out: Any = jax.vmap(kernel)(q, k, v, segment_ids=ids)
        return jnp.swapaxes(out, 1, 2)[:, :t, :, :size].astype(q.dtype)

    heads = ("batch", None, ("kv_heads", k.shape[2]), None)
    ids = ("batch", None)
    arrays = (q, k, v, query_segments, segments)
    return sharding.on_each_device(run, arrays, (heads, heads, heads, ids, ids), heads)


def _padded(x: Array, length: int, width: int = 1) -> Array:
    """Zeros behind the second axis, up to `length`, and the last, up to a multiple of `width`."""
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, length - x.shape[1])
    if width > 1:
        widths[-1] = (0, -x.shape[-1] % width)
    return jnp.pad(x, widths)


def _rounded(count: int, step: int) -> int:
    """The next multiple."""
    return -(-count // step) * step
