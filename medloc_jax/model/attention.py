# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Attention over one or several blocks of keys under one softmax.

The group forward and decoding need two blocks: the prompt's keys, shared by the group, and the
completion's own. All have grouped queries: n query heads, k key heads, r = n / k. Scores and
softmax are float32.

Masks say which keys count (true = attend) and become a large finite negative, not -inf, so that a
row in which nothing counts (a padded window, a row without an image) stays finite.

Prompts, images and groups have several implementations (`IMPLEMENTATIONS`), of which "xla", plain
operations, is the reference; `cudnn_attention` and `splash_attention` have the others. Decoding has
one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from medloc_jax.model import cudnn_attention

MASKED = np.float32(-1e30)


def _weigh(scores: list[Array], masks: list[Array]) -> tuple[list[Array], Array]:
    """Softmax over the last axes of several blocks as if they were joined, without joining them.

    Returns:
        exp(score - greatest score) of each block, 0 where masked, and the sum over all of them, by
        which the weighted values are to be divided.
    """
    masked = [jnp.where(m, s, MASKED) for s, m in zip(scores, masks, strict=True)]
    peaks = [jnp.max(s, axis=-1, keepdims=True) for s in masked]
    peak = jax.lax.stop_gradient(functools.reduce(jnp.maximum, peaks))
    weights = [jnp.exp(s - peak) for s in masked]
    totals = [jnp.sum(w, axis=-1, keepdims=True) for w in weights]
    return weights, functools.reduce(jnp.add, totals)


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
    # Queries and values are turned around here, not the scores, of which there are more.
    grouped = jnp.einsum("btkrh->bkrth", _split_queries(q, k.shape[2]))
    scores = _dot("bkrth,bskh->bkrts", grouped, k)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1)
    out = _dot("bkrts,bskh->bkrth", weights.astype(v.dtype), v)
    return jnp.einsum("bkrth->btkrh", out).reshape(q.shape).astype(q.dtype)


class Seen(NamedTuple):
    """Which keys a query may look at, in the words of each implementation.

    What an implementation does not read is not computed: the compiler drops it.

    Attributes:
        mask: true = may look.
        lengths: keys that count, from the first on; None where images lie side by side.
        segments: number of each place's image, 0 = padding; None where lengths tell all.
        causal: a query looks at no key behind its own place.
    """

    mask: Bool[Array, "#b #t s"]
    lengths: Int[Array, " b"] | None = None
    segments: Int[Array, "b s"] | None = None
    causal: bool = False


def causal(prompt_mask: Bool[Array, "b p"]) -> Seen:
    """A token sees the real tokens up to itself; padding is on the right."""
    length = prompt_mask.shape[1]
    mask = jnp.tril(jnp.ones((length, length), bool)) & prompt_mask[:, None, :]
    return Seen(mask, lengths=_count(prompt_mask), causal=True)


def within_images(segments: Int[Array, "b p"]) -> Seen:
    """A patch sees those of its image; segments number the images of a row, 0 = padding."""
    mask = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
    return Seen(mask, segments=segments)


def first_ones(used: Bool[Array, "b s"]) -> Seen:
    """All see the same: the places that are used, which come first."""
    return Seen(used[:, None, :], lengths=_count(used))


def _count(mask: Bool[Array, "b s"]) -> Int[Array, " b"]:
    """How many are true; at least 1, which is all that kernels can do (nobody reads the others)."""
    return jnp.maximum(1, jnp.sum(mask, axis=1, dtype=jnp.int32))


def _xla(q: Array, k: Array, v: Array, seen: Seen) -> Array:
    return attend_xla(q, k, v, seen.mask)


def _cudnn(q: Array, k: Array, v: Array, seen: Seen) -> Array:
    if seen.lengths is None:
        return cudnn_attention.attend(q, k, v, mask=seen.mask)
    return cudnn_attention.attend(q, k, v, lengths=seen.lengths, causal=seen.causal)


def _splash(q: Array, k: Array, v: Array, seen: Seen) -> Array:
    from medloc_jax.model import splash_attention  # brings Pallas along, which few need

    if seen.segments is not None:
        return splash_attention.attend(q, k, v, seen.segments, seen.segments, causal=False)
    if not seen.causal or seen.lengths is None:
        return attend_xla(q, k, v, seen.mask)  # windows: 64 places, half a block of splash
    real = (jnp.arange(k.shape[1]) < seen.lengths[:, None]).astype(jnp.int32)
    return splash_attention.attend(q, k, v, real, jnp.ones_like(real), causal=True)


IMPLEMENTATIONS: dict[str, Callable[[Array, Array, Array, Seen], Array]] = {
    "xla": _xla,
    "cudnn": _cudnn,
    "splash": _splash,
}
CHOICES = ("auto", *IMPLEMENTATIONS)
# What they need: platforms by JAX's names, and the dtype of activations.
_NEEDS = {"cudnn": (("gpu", "cuda"), "an NVIDIA GPU"), "splash": (("tpu",), "a TPU")}


def check(name: str, dtype: DTypeLike) -> None:
    """Refuses what no device can do.

    Raises:
        ValueError: cuDNN's kernels have no float32.
    """
    if name == "cudnn" and jnp.dtype(dtype) != jnp.bfloat16:
        raise ValueError(
            f"model.attention='cudnn' computes in bfloat16, not model.compute_dtype={dtype}: set "
            "model.compute_dtype='bfloat16', or model.attention='auto'"
        )


def choose(name: str, device: Any, dtype: DTypeLike) -> str:
    """The implementation for a device.

    Args:
        name: one of CHOICES. "auto": cuDNN in bfloat16 on NVIDIA GPUs from Ampere on, splash on a
            TPU, else plain XLA.
        device: that it will run on; one to compile for will do.
        dtype: of the activations.

    Raises:
        ValueError: the device cannot do what was named.
    """
    check(name, dtype)
    if name == "auto":
        if device.platform == "tpu":
            return "splash"
        capable = float(getattr(device, "compute_capability", 0) or 0) >= 8.0
        on_gpu = device.platform in _NEEDS["cudnn"][0] and capable
        return "cudnn" if on_gpu and jnp.dtype(dtype) == jnp.bfloat16 else "xla"
    platforms, who = _NEEDS.get(name, ((device.platform,), ""))
    if device.platform not in platforms:
        raise ValueError(
            f"model.attention={name!r} needs {who}, and this is a {device.platform}: set "
            "model.attention='auto'"
        )
    return name


def attend(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    seen: Seen,
    *,
    implementation: str,
) -> Float[Array, "b t n h"]:
    """Attention of t queries over s keys by the named implementation.

    Args:
        q: queries, n heads.
        k: keys, k heads; n is a multiple of it.
        v: values.
        seen: where a query may look.
        implementation: a name of `IMPLEMENTATIONS`.

    Returns:
        The weighted values, in q's dtype. Rows in which nothing counts are finite.

    Raises:
        ValueError: for an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        known = sorted(IMPLEMENTATIONS)
        raise ValueError(f"model.attention={implementation!r}: choose one of {known}")
    return IMPLEMENTATIONS[implementation](q, k, v, seen)


def attend_joined(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t k h"],
    v: Float[Array, "b t k h"],
    seen: Seen,
    prompt_mask: Bool[Array, "b p"],
    group_size: int,
    *,
    implementation: str,
) -> Float[Array, "b t n h"]:
    """Attention of p prompt tokens and, after them, of the g * c tokens of their completions.

    A completion looks at its prompt and, causally, at itself.

    Args:
        q: queries.
        k: keys.
        v: values.
        seen: of `causal`, for the prompts.
        prompt_mask: true = real prompt token.
        group_size: g.
        implementation: see `attend`.

    Returns:
        The weighted values. Gradients reach the prompt through its keys and values.
    """
    length = prompt_mask.shape[1]
    b, t, _, _ = q.shape
    if implementation == "splash":
        from medloc_jax.model import splash_attention

        return splash_attention.attend_group(
            q, k, v, _count(prompt_mask), prompt_length=length, group_size=group_size
        )
    own = (b, group_size, (t - length) // group_size)
    prompt_q, prompt_k, prompt_v = (part[:, :length] for part in (q, k, v))
    q, k, v = (part[:, length:].reshape(*own, *part.shape[2:]) for part in (q, k, v))
    to_prompt = attend(prompt_q, prompt_k, prompt_v, seen, implementation=implementation)
    if implementation == "cudnn":
        to_both = cudnn_attention.attend_group(q, prompt_k, prompt_v, _count(prompt_mask), k, v)
    else:
        to_both = attend_group(q, prompt_k, prompt_v, prompt_mask, k, v)
    to_both = to_both.reshape(b, t - length, *to_both.shape[3:])
    return jnp.concatenate([to_prompt, to_both], axis=1)


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
    # [b, k, g, r, c, h]: what is contracted with the prompt is then one matrix for each key head.
    grouped = jnp.einsum("bgckrh->bkgrch", _split_queries(q, k.shape[3]))
    to_prompt = _dot("bkgrch,bpkh->bkgrcp", grouped, prompt_k)
    to_own = _dot("bkgrch,bgskh->bkgrcs", grouped, k)
    causal = jnp.tril(jnp.ones((length, length), bool))
    (w_prompt, w_own), total = _weigh(
        [to_prompt, to_own], [prompt_mask[:, None, None, None, None], causal]
    )
    out = _dot("bkgrcp,bpkh->bkgrch", w_prompt.astype(v.dtype), prompt_v)
    out += _dot("bkgrcs,bgskh->bkgrch", w_own.astype(v.dtype), v)
    out = jnp.einsum("bkgrch->bgckrh", out / total)
    return out.reshape(q.shape).astype(q.dtype)


def attend_token(
    q: Float[Array, "b k g r h"],
    prompt_kv: tuple[Float[Array, "b k p h"], Float[Array, "b k p h"]],
    prompt_mask: Bool[Array, "b p"],
    cache_kv: tuple[Float[Array, "b k g c h"], Float[Array, "b k g c h"]],
    cache_mask: Bool[Array, " c"],
) -> Float[Array, "b g nh"]:
    """One new token of each completion attends to the prompt, the tokens before it, and itself.

    Args:
        q: queries of the new tokens, by key head.
        prompt_kv: keys and values of the prompts.
        prompt_mask: true = real prompt token.
        cache_kv: keys and values of the completions, the new token's included.
        cache_mask: true = written.

    Returns:
        The weighted values, heads joined, in q's dtype.
    """
    (prompt_k, prompt_v), (cache_k, cache_v) = prompt_kv, cache_kv
    b, k, g, r, h = q.shape
    q = q * jnp.asarray(h**-0.5, q.dtype)
    to_prompt = _dot("bkgrh,bkph->bkgrp", q, prompt_k)
    to_cache = _dot("bkgrh,bkgch->bkgrc", q, cache_k)
    masks = [prompt_mask[:, None, None, None], cache_mask]
    (w_prompt, w_cache), total = _weigh([to_prompt, to_cache], masks)
    out = _dot("bkgrp,bkph->bkgrh", w_prompt.astype(prompt_v.dtype), prompt_v)
    out += _dot("bkgrc,bkgch->bkgrh", w_cache.astype(cache_v.dtype), cache_v)
    return jnp.transpose(out / total, (0, 2, 1, 3, 4)).reshape(b, g, k * r * h).astype(q.dtype)
