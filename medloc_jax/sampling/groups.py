# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One prompt, G completions: a single prefill, then one decoding loop for all groups of a step.

The loop ends as soon as every row has ended. Peers' native JAX samplers repeat the prompt G times
and reuse one key at every step; here the prompt is computed once, and the noise of a row is a
function of (seed, step, row), the caller folding seed and step into `key`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from medloc_jax import sharding
from medloc_jax.model import cache, qwen2_5_vl
from medloc_jax.model.geometry import ModelInputs
from medloc_jax.sampling import choose


@dataclasses.dataclass(frozen=True)
class SamplingRules:
    """What is fixed when the sampler compiles.

    Attributes:
        group_size: completions per prompt (G).
        max_completion_tokens: longest completion (C), end token included.
        stop_ids: tokens that end a completion; the first one is kept.
        forbidden_ids: tokens that are never chosen.
        pad_id: fills a row after its end.
        greedy: take the likeliest token.
        gather_weights: see `Model.decoding_weights`; False gathers for every token.
    """

    group_size: int
    max_completion_tokens: int
    stop_ids: tuple[int, ...]
    forbidden_ids: tuple[int, ...]
    pad_id: int
    greedy: bool = False
    gather_weights: bool = True


class Sampled(NamedTuple):
    """Groups of completions.

    Attributes:
        completions: token ids, [b, g, c]; `pad_id` after the end.
        completion_mask: true = real token, the end token included.
        logprobs: under the sampling temperature, full vocabulary; 0 where masked.
    """

    completions: Int[Array, "b g c"]
    completion_mask: Bool[Array, "b g c"]
    logprobs: Float[Array, "b g c"]


class _Loop(NamedTuple):
    """Before step t: tokens 0 to t - 1 are in `sampled`, the first t - 1 of them in the caches."""

    step: Array
    ended: Array
    caches: cache.CompletionCache
    sampled: Sampled


def sample_groups(
    model: qwen2_5_vl.Model,
    params: qwen2_5_vl.Params,
    inputs: ModelInputs,
    features: Float[Array, "b m d"],
    key: Array,
    temperature: Float[Array, ""],
    rules: SamplingRules,
) -> Sampled:
    """Draws G completions for each prompt of a batch.

    Args:
        model: static under `jax.jit`, as `rules` is.
        params: parameters to sample from.
        inputs: the prompts.
        features: of `model.encode_images`.
        key: of this step; rows fold their number into it.
        temperature: traced, above 0.
        rules: see `SamplingRules`.

    Returns:
        The completions, with C = rules.max_completion_tokens columns.
    """
    text = model.config.text
    batch, group, length = inputs.input_ids.shape[0], rules.group_size, rules.max_completion_tokens
    allowed = jnp.asarray(choose.allowed_tokens(text.vocab_size, rules.forbidden_ids))
    stops = jnp.asarray(np.asarray(rules.stop_ids, np.int32))
    keys = choose.row_keys(key, batch, group)
    weights = model.decoding_weights(params, gather=rules.gather_weights)
    logits, prompts = model.prefill(params, inputs, features)

    def write_token(loop: _Loop, logits: Array) -> _Loop:
        with sharding.on(model.mesh):
            tokens, logprobs = choose.choose(
                logits, keys, loop.step, temperature, allowed, greedy=rules.greedy
            )
        live = ~loop.ended
        tokens = jnp.where(live, tokens, rules.pad_id)
        new = Sampled(tokens, live, jnp.where(live, logprobs, 0.0))
        columns = (
            jax.lax.dynamic_update_slice_in_dim(old, part[..., None], loop.step, axis=2)
            for old, part in zip(loop.sampled, new, strict=True)
        )
        ended = loop.ended | jnp.isin(tokens, stops)
        return loop._replace(step=loop.step + 1, ended=ended, sampled=Sampled(*columns))

    def unfinished(loop: _Loop) -> Array:
        return (loop.step < length) & ~jnp.all(loop.ended)

    def one_token(loop: _Loop) -> _Loop:
        last = loop.step - 1
        tokens = jax.lax.dynamic_index_in_dim(loop.sampled.completions, last, 2, keepdims=False)
        logits, caches = model.decode_step(weights, tokens, last, prompts, loop.caches)
        return write_token(loop._replace(caches=caches), logits)

    shape = (batch, group, length)
    start = _Loop(
        step=jnp.zeros((), jnp.int32),
        ended=jnp.zeros((batch, group), bool),
        # The last token is never fed back, so the cache is one shorter than the completion.
        caches=model.empty_cache(batch, group, max(1, length - 1)),
        sampled=Sampled(
            completions=jnp.full(shape, rules.pad_id, jnp.int32),
            completion_mask=jnp.zeros(shape, bool),
            logprobs=jnp.zeros(shape, jnp.float32),
        ),
    )
    first = write_token(start, jnp.broadcast_to(logits[:, None], (batch, group, logits.shape[-1])))
    return jax.lax.while_loop(unfinished, one_token, first).sampled
