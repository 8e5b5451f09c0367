# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Attention over one or several blocks of keys under one softmax.

The group forward needs two blocks (the prompt's keys, shared by the group, and the completion's
own), decoding three (the token itself is not in the cache yet). All have grouped queries: n query
heads, k key heads, r = n / k. Scores and softmax are float32.

Masks say which keys count (true = attend) and become a large finite negative, not -inf, so that a
row in which nothing counts (a padded window, a row without an image) stays finite.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

MASKED = np.float32(-1e30)


def _softmax_blocks(scores: list[Array], masks: list[Array]) -> list[Array]:
    """Softmax over the last axes of several blocks as if they were joined."""
    masked = [jnp.where(m, s, MASKED) for s, m in zip(scores, masks, strict=True)]
    weights = jax.nn.softmax(jnp.concatenate(masked, axis=-1), axis=-1)
    ends = np.cumsum([s.shape[-1] for s in scores])[:-1]
    return jnp.split(weights, ends, axis=-1)


def _split_queries(q: Array, num_kv: int) -> Array:
    """Splits [..., n, h] into [..., k, r, h], scaled by h ** -1/2 as the scores need it."""
    *lead, n, h = q.shape
    return q.reshape(*lead, num_kv, n // num_kv, h) * jnp.asarray(h**-0.5, q.dtype)


def _dot(spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def attend_xla(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    mask: Bool[Array, "#b #t s"],
) -> Float[Array, "b t n h"]:
    """Plain attention: the reference that other implementations are checked against."""
    grouped = _split_queries(q, k.shape[2])
    scores = _dot("btkrh,bskh->bkrts", grouped, k)
    (weights,) = _softmax_blocks([scores], [mask[:, None, None]])
    out = _dot("bkrts,bskh->btkrh", weights.astype(v.dtype), v)
    return out.reshape(q.shape).astype(q.dtype)


IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"xla": attend_xla}


def attend(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    mask: Bool[Array, "#b #t s"],
    *,
    implementation: str,
) -> Float[Array, "b t n h"]:
    """Attention of t queries over s keys by the named implementation.

    Args:
        q: queries, n heads.
        k: keys, k heads; n is a multiple of it.
        v: values.
        mask: true where a query may look.
        implementation: a name of `IMPLEMENTATIONS`.

    Returns:
        The weighted values, in q's dtype.

    Raises:
        ValueError: for an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        known = sorted(IMPLEMENTATIONS)
        raise ValueError(f"model.attention={implementation!r}: choose one of {known}")
    return IMPLEMENTATIONS[implementation](q, k, v, mask)


def attend_group(
    q: Float[Array, "b g c n h"],
    prompt_k: Float[Array, "b p k h"],
    prompt_v: Float[Array, "b p k h"],
    prompt_mask: Bool[Array, "b p"],
    k: Float[Array, "b g c k h"],
    v: Float[Array, "b g c k h"],
) -> Float[Array, "b g c n h"]:
    """Completions attend to their prompt (shared by the group) and, causally, to themselves.

    Args:
        q: queries of the G completions of each prompt.
        prompt_k: keys of the prompt, computed once.
        prompt_v: values of the prompt.
        prompt_mask: true = real prompt token.
        k: keys of the completions.
        v: values of the completions.

    Returns:
        The weighted values. Gradients reach the prompt through its keys and values.
    """
    length = q.shape[2]
    grouped = _split_queries(q, k.shape[3])
    to_prompt = _dot("bgckrh,bpkh->bgkrcp", grouped, prompt_k)
    to_own = _dot("bgckrh,bgskh->bgkrcs", grouped, k)
    causal = jnp.tril(jnp.ones((length, length), bool))
    shared = jnp.broadcast_to(prompt_mask[:, None, None, None, None], to_prompt.shape)
    w_prompt, w_own = _softmax_blocks([to_prompt, to_own], [shared, causal])
    out = _dot("bgkrcp,bpkh->bgckrh", w_prompt.astype(v.dtype), prompt_v)
    out += _dot("bgkrcs,bgskh->bgckrh", w_own.astype(v.dtype), v)
    return out.reshape(q.shape).astype(q.dtype)


def attend_token(
    q: Float[Array, "b g n h"],
    prompt_kv: tuple[Float[Array, "b p k h"], Float[Array, "b p k h"]],
    prompt_mask: Bool[Array, "b p"],
    cache_kv: tuple[Float[Array, "b g c k h"], Float[Array, "b g c k h"]],
    cache_mask: Bool[Array, " c"],
    own_kv: tuple[Float[Array, "b g k h"], Float[Array, "b g k h"]],
) -> Float[Array, "b g n h"]:
    """One new token of each completion attends to the prompt, the tokens before it, and itself.

    Args:
        q: queries of the new tokens.
        prompt_kv: keys and values of the prompts.
        prompt_mask: true = real prompt token.
        cache_kv: keys and values of the completions so far.
        cache_mask: true = written.
        own_kv: key and value of the new token, which the cache does not hold yet.

    Returns:
        The weighted values, in q's dtype.
    """
    (prompt_k, prompt_v), (cache_k, cache_v), (own_k, own_v) = prompt_kv, cache_kv, own_kv
    grouped = _split_queries(q, own_k.shape[2])
    to_prompt = _dot("bgkrh,bpkh->bgkrp", grouped, prompt_k)
    to_cache = _dot("bgkrh,bgckh->bgkrc", grouped, cache_k)
    to_self = _dot("bgkrh,bgkh->bgkr", grouped, own_k)[..., None]
    masks = [prompt_mask[:, None, None, None], cache_mask, jnp.ones((1,), bool)]
    weights = _softmax_blocks([to_prompt, to_cache, to_self], masks)
    w_prompt, w_cache, w_self = (w.astype(own_v.dtype) for w in weights)
    out = _dot("bgkrp,bpkh->bgkrh", w_prompt, prompt_v)
    out += _dot("bgkrc,bgckh->bgkrh", w_cache, cache_v)
    out += w_self.astype(jnp.float32) * own_v[..., None, :].astype(jnp.float32)
    return out.reshape(q.shape).astype(q.dtype)
