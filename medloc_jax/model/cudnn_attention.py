# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Attention by cuDNN's kernels: no matrix of scores in memory. NVIDIA GPUs, bfloat16.

Which keys count is told by lengths, or, where lengths cannot say it, by a bias.

A group is two blocks, prompt and completion, merged by their log-sum-exps. Their backward pass is
cuDNN's with the merged output and log-sum-exp in place of the block's own: then its
P = exp(S - lse) are the joint weights and its rowsum(dO * O) the joint one, which makes the sum of
both gradients exact. Autodiff of the merge would not do: JAX drops the gradient of what cuDNN gives
as log-sum-exp, and its public function rounds that to the queries' dtype besides. One call over
prompt and completion with a mask would repeat the prompt's keys, and cuDNN would compute a gradient
of the mask.

Off a GPU, where only tests run it, plain operations stand in for the kernels.

Reference: FlashAttention-2 (arXiv 2307.08691) section 3.1.
"""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medloc_jax import sharding

Heads = Float[Array, "b t n h"]
Stats = Float[Array, "b n t"]


def attend(
    q: Heads,
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    *,
    lengths: Int[Array, " b"] | None = None,
    mask: Bool[Array, "b t s"] | None = None,
    causal: bool = False,
) -> Heads:
    """Attention by cuDNN; off a GPU the same call by XLA.

    Args:
        q: queries, bfloat16 on a GPU.
        k: keys.
        v: values.
        lengths: keys that count, from the first on; at least 1.
        mask: true = counts. cuDNN reads it as a bias: for what lengths cannot say.
        causal: a query looks at no key behind its own place.
    """
    on_gpu = _platform_is_gpu()

    def run(q: Array, k: Array, v: Array, *rest: Array) -> Array:
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=rest[0][:, None] if mask is not None else None,
            key_value_seq_lengths=rest[0] if lengths is not None else None,
            is_causal=causal,
            implementation="cudnn" if on_gpu else "xla",
        )

    heads = ("batch", None, ("kv_heads", k.shape[2]), None)
    rest = [x for x in (mask, lengths) if x is not None]
    axes = [("batch", *(None,) * (x.ndim - 1)) for x in rest]
    return sharding.on_each_device(run, (q, k, v, *rest), (heads, heads, heads, *axes), heads)


def attend_group(
    q: Float[Array, "b g c n h"],
    prompt_k: Float[Array, "b p k h"],
    prompt_v: Float[Array, "b p k h"],
    lengths: Int[Array, " b"],
    k: Float[Array, "b g c k h"],
    v: Float[Array, "b g c k h"],
) -> Float[Array, "b g c n h"]:
    """Completions attend to their prompt and, causally, to themselves: see the module's docstring.

    Args:
        q: queries of the completions.
        prompt_k: keys of the prompts.
        prompt_v: values of the prompts.
        lengths: real tokens of each prompt, at least 1.
        k: keys of the completions.
        v: values of the completions.
    """
    run = functools.partial(_merged, _platform_is_gpu())
    prompt = ("batch", None, ("kv_heads", k.shape[3]), None)
    own = ("batch", None, None, ("kv_heads", k.shape[3]), None)
    arrays = (q, prompt_k, prompt_v, lengths, k, v)
    return sharding.on_each_device(run, arrays, (own, prompt, prompt, ("batch",), own, own), own)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _merged(
    on_gpu: bool, q: Array, prompt_k: Array, prompt_v: Array, lengths: Array, k: Array, v: Array
) -> Array:
    return _merged_forward(on_gpu, q, prompt_k, prompt_v, lengths, k, v)[0]


def _merged_forward(
    on_gpu: bool, q: Array, prompt_k: Array, prompt_v: Array, lengths: Array, k: Array, v: Array
) -> tuple[Array, tuple]:
    forward = _cudnn_forward if on_gpu else _plain_forward
    b, g, c, n, h = q.shape
    # All of a group's queries meet the prompt's keys as one long row: they are read once.
    out_prompt, lse_prompt = forward(q.reshape(b, g * c, n, h), prompt_k, prompt_v, lengths, False)
    out_own, lse_own = forward(_rows(q), _rows(k), _rows(v), None, True)
    lse_prompt = jnp.moveaxis(lse_prompt.reshape(b, n, g, c), 1, 2)  # [b, g, n, c]
    lse_own = lse_own.reshape(b, g, n, c)
    lse = jnp.logaddexp(lse_prompt, lse_own)

    def weighted(out: Array, own: Array) -> Array:
        weight = jnp.exp(jnp.swapaxes(own - lse, 2, 3))[..., None]  # [b, g, c, n, 1]
        return out.reshape(q.shape).astype(jnp.float32) * weight

    out = (weighted(out_prompt, lse_prompt) + weighted(out_own, lse_own)).astype(q.dtype)
    return out, (q, prompt_k, prompt_v, lengths, k, v, out, lse)


def _merged_backward(on_gpu: bool, saved: tuple, grad: Array) -> tuple:
    backward = _cudnn_backward if on_gpu else _plain_backward
    q, prompt_k, prompt_v, lengths, k, v, out, lse = saved
    b, g, c, n, h = q.shape
    folded = (b, g * c, n, h)
    dq_prompt, dk_prompt, dv_prompt = backward(
        *(q.reshape(folded), prompt_k, prompt_v, lengths, False),
        *(out.reshape(folded), jnp.moveaxis(lse, 2, 1).reshape(b, n, g * c), grad.reshape(folded)),
    )
    dq_own, dk, dv = backward(
        *(_rows(q), _rows(k), _rows(v), None, True),
        *(_rows(out), lse.reshape(b * g, n, c), _rows(grad)),
    )
    dq = dq_prompt.reshape(q.shape).astype(jnp.float32) + dq_own.reshape(q.shape)
    return dq.astype(q.dtype), dk_prompt, dv_prompt, None, dk.reshape(k.shape), dv.reshape(v.shape)


_merged.defvjp(_merged_forward, _merged_backward)


def _rows(x: Array) -> Array:
    """[b, g, ...] to [b * g, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _cudnn_forward(
    q: Array, k: Array, v: Array, lengths: Array | None, causal: bool
) -> tuple[Array, Stats]:
    """One block by cuDNN: output, and float32 log-sum-exp of the scaled scores."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn  # jax.nn rounds the log-sum-exp

    found: Any = cudnn.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=None if lengths is None else jnp.full_like(lengths, q.shape[1]),
        kv_seqlen=lengths,
        scale=q.shape[-1] ** -0.5,
        mask_type=_mask_type(cudnn, lengths, causal),
        return_residual=True,
    )
    return found


def _cudnn_backward(
    q: Array,
    k: Array,
    v: Array,
    lengths: Array | None,
    causal: bool,
    out: Array,
    lse: Stats,
    grad: Array,
) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v of one block, given the output and log-sum-exp of all blocks."""
    from jax._src.cudnn import (
        fused_attention_stablehlo as cudnn,
    )  # nothing public takes a given lse

    none = jnp.zeros(0, q.dtype)
    query_lengths = none if lengths is None else jnp.full_like(lengths, q.shape[1])
    lengths_of_keys = none if lengths is None else lengths
    inputs = (q, k, v, none, query_lengths, lengths_of_keys, none, none, none, none)
    rule = cudnn._dot_product_attention_bwd_rule
    wanted = inspect.signature(rule).parameters
    more = ((),) if "score_mod" in wanted else ()  # jax 0.12: arguments of a function of scores
    known = {
        "scale": q.shape[-1] ** -0.5,
        "seed": 42,  # of the dropout, which is 0
        "dropout_rate": 0.0,
        "variadic_args": (False, False),  # no bias, and no gradient of one
        "mask_type": _mask_type(cudnn, lengths, causal),
        "layout": cudnn.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
        "is_training": True,
        "score_mod": None,
        "cudnn_version": 0,  # not read there
        "return_residual": False,
        "res": (*inputs, *more, lse, out),
        "grad_output": grad,
    }
    return rule(*(known[name] for name in wanted))[:3]


def _mask_type(cudnn: Any, lengths: Array | None, causal: bool) -> Any:
    kinds = cudnn.MaskType
    if lengths is None:
        return kinds.CAUSAL if causal else kinds.NO_MASK
    return kinds.PADDING_CAUSAL if causal else kinds.PADDING


def _plain_scores(q: Array, k: Array, lengths: Array | None, causal: bool) -> Array:
    """Scaled float32 scores of a block, [b, k, r, t, s]; -inf where a key does not count."""
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1]).astype(jnp.float32)
    scores = jnp.einsum("btkrh,bskh->bkrts", grouped, k.astype(jnp.float32)) * q.shape[-1] ** -0.5
    t, s = scores.shape[-2:]
    seen = jnp.tril(jnp.ones((t, s), bool)) if causal else jnp.ones((t, s), bool)
    if lengths is not None:
        seen = seen & (jnp.arange(s) < lengths[:, None, None, None, None])
    return jnp.where(seen, scores, -jnp.inf)


def _plain_forward(
    q: Array, k: Array, v: Array, lengths: Array | None, causal: bool
) -> tuple[Array, Stats]:
    """What `_cudnn_forward` gives, in plain operations: for a CPU."""
    scores = _plain_scores(q, k, lengths, causal)
    lse = jax.nn.logsumexp(scores, axis=-1)  # [b, k, r, t]
    out = jnp.einsum("bkrts,bskh->btkrh", jnp.exp(scores - lse[..., None]), v.astype(jnp.float32))
    return out.reshape(q.shape).astype(q.dtype), lse.reshape(lse.shape[0], -1, lse.shape[-1])


def _plain_backward(
    q: Array,
    k: Array,
    v: Array,
    lengths: Array | None,
    causal: bool,
    out: Array,
    lse: Stats,
    grad: Array,
) -> tuple[Array, Array, Array]:
    """What `_cudnn_backward` gives, in plain operations: for a CPU."""
    heads = (*q.shape[:2], k.shape[2], -1, q.shape[-1])
    q32, out32, grad32 = (x.reshape(heads).astype(jnp.float32) for x in (q, out, grad))
    k32, v32, scale = k.astype(jnp.float32), v.astype(jnp.float32), q.shape[-1] ** -0.5
    scores = _plain_scores(q, k, lengths, causal)
    weights = jnp.exp(scores - lse.reshape(scores.shape[:-1])[..., None])
    along = jnp.einsum("btkrh,bskh->bkrts", grad32, v32)
    total = jnp.einsum("btkrh,btkrh->bkrt", grad32, out32)[..., None]
    to_scores = weights * (along - total) * scale
    dq = jnp.einsum("bkrts,bskh->btkrh", to_scores, k32).reshape(q.shape)
    dk = jnp.einsum("bkrts,btkrh->bskh", to_scores, q32)
    dv = jnp.einsum("bkrts,btkrh->bskh", weights, grad32)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _platform_is_gpu() -> bool:
    return sharding.platform() in ("gpu", "cuda")
