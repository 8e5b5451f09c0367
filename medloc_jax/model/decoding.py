# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The language model as it makes one token more: weights laid out once, layers one by one.

Decoding reads every weight and the whole cache for a few rows of work, so all that counts is what
is read, and how often something is started. Therefore, before the first token: weights are cast;
those that multiply the same vector are joined (q, k and v; gate and up); and each layer's weights
and caches become arrays of their own. (In a scan over stacked ones, each layer is first copied out
of the stack, for every token.)

Reference: Qwen2.5 (arXiv 2412.15115) section 2; the same layer as `language.DecoderLayer`, which
the tests hold it against.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from medloc_jax import sharding
from medloc_jax.model import attention, cache, layers, rope, vocabulary
from medloc_jax.model.config import TextConfig


class LayerWeights(NamedTuple):
    """A decoder layer's weights; biases and scales in the compute dtype, too.

    Attributes:
        input_norm: scale, [d].
        q: None where q is part of kv; else [d, n * h].
        q_bias: [n * h].
        kv: [d, k, m]: of each key head its queries' columns (if q is None), key's and value's.
        kv_bias: [k, m].
        o: [n * h, d].
        post_norm: scale, [d].
        gate_up: [d, 2, f].
        down: [f, d].
    """

    input_norm: Array
    q: Array | None
    q_bias: Array | None
    kv: Array
    kv_bias: Array
    o: Array
    post_norm: Array
    gate_up: Array
    down: Array


class Weights(NamedTuple):
    """What decoding reads.

    Attributes:
        layers: of the decoder.
        norm: scale of the last norm, [d].
        table: token vectors, [v, d].
        head: the vocabulary projection, [d, v]; None: it is the table.
    """

    layers: tuple[LayerWeights, ...]
    norm: Array
    table: Array
    head: Array | None


# The logical axes of `LayerWeights`' products, as they are stored and as `sharding` knows them.
_KV_AXES: sharding.Axes = ("embed", "kv_heads", None)
_GATE_UP_AXES: sharding.Axes = ("embed", None, "mlp")


def _q_axes(config: TextConfig) -> sharding.Axes:
    return ("embed", ("heads", config.num_attention_heads))


def arrange(
    params: Mapping[str, Any], config: TextConfig, dtype: DTypeLike, *, gather: bool
) -> Weights:
    """Lays the weights out for decoding.

    Args:
        params: the model's parameters, layers stacked.
        config: sizes of the language model.
        dtype: of the activations.
        gather: also bring the pieces of each weight together (over `fsdp`), so that this is not
            done for every token.

    Returns:
        Arrays for `token`; a copy of all weights that decoding reads.
    """
    text = params["language_model"]
    stacked = text["layers"]

    def ready(leaf: Array, *axes: sharding.Axis) -> Array:
        return sharding.cast_and_gathered(leaf, dtype, axes) if gather else leaf.astype(dtype)

    wide, narrow = config.num_attention_heads, config.num_key_value_heads
    # Joined by key head, so that the parts of a split over `tensor` hold whole heads of each.
    together = sharding.ways("heads", wide) == sharding.ways("kv_heads", narrow)

    def layer(i: int) -> LayerWeights:
        one = jax.tree.map(lambda leaf: leaf[i], stacked)
        attn, mlp = one["self_attn"], one["mlp"]

        def by_key_head(name: str, part: str) -> Array:
            leaf = attn[name][part]
            return leaf.reshape(*leaf.shape[:-1], narrow, -1)

        names = ("q_proj", "k_proj", "v_proj") if together else ("k_proj", "v_proj")
        kernel = jnp.concatenate([by_key_head(name, "kernel") for name in names], axis=-1)
        bias = jnp.concatenate([by_key_head(name, "bias") for name in names], axis=-1)
        gate_up = jnp.stack([mlp["gate_proj"]["kernel"], mlp["up_proj"]["kernel"]], axis=1)
        return LayerWeights(
            input_norm=one["input_layernorm"]["scale"].astype(dtype),
            q=None if together else ready(attn["q_proj"]["kernel"], *_q_axes(config)),
            q_bias=None if together else attn["q_proj"]["bias"].astype(dtype),
            kv=ready(kernel, *_KV_AXES),
            kv_bias=bias.astype(dtype),
            o=ready(attn["o_proj"]["kernel"], *_q_axes(config)[::-1]),
            post_norm=one["post_attention_layernorm"]["scale"].astype(dtype),
            gate_up=ready(gate_up, *_GATE_UP_AXES),
            down=ready(mlp["down_proj"]["kernel"], "mlp", "embed"),
        )

    return Weights(
        layers=tuple(layer(i) for i in range(config.num_hidden_layers)),
        norm=text["norm"]["scale"].astype(dtype),
        table=ready(text["embed_tokens"]["embedding"], "vocab", "embed"),
        head=ready(params["lm_head"]["kernel"], "embed", "vocab") if "lm_head" in params else None,
    )


def token(
    weights: Weights,
    config: TextConfig,
    tokens: Int[Array, "b g"],
    step: Int[Array, ""],
    prompts: cache.PromptCache,
    completions: cache.CompletionCache,
) -> tuple[Float[Array, "b g v"], cache.CompletionCache]:
    """Feeds token number `step` of each completion.

    Args:
        weights: of `arrange`.
        config: sizes of the language model.
        tokens: the newest token of each completion.
        step: its place in the completion, from 0.
        prompts: keys and values of the prompts.
        completions: keys and values of the tokens before.

    Returns:
        Float32 logits of the token after it, and the cache with its keys and values written.
    """
    dtype = weights.norm.dtype
    table = sharding.gathered(weights.table, ("vocab", "embed"))
    x = sharding.constrain(jnp.take(table, tokens, axis=0), "batch", None, None)
    rotary = rope.text(
        (prompts.next_position + step)[:, None],
        config.head_dim,
        config.rope_theta,
        config.mrope_section,
    )  # [b, 1, h/2]: for all of the group
    keys, values = [], []
    seen = jnp.arange(completions.k[0].shape[3]) <= step
    for number, layer in enumerate(weights.layers):
        normed = layers.rms_norm(x, layer.input_norm, config.rms_norm_eps)
        q, k, v = _project(layer, config, normed, rotary)
        cached = (completions.k[number], completions.v[number])
        k, v = (
            jax.lax.dynamic_update_slice_in_dim(old, part[:, :, :, None], step, axis=3)
            for old, part in zip(cached, (k, v), strict=True)
        )
        keys.append(k)
        values.append(v)
        prompt_kv = (prompts.k[number], prompts.v[number])
        heads = attention.attend_token(q, prompt_kv, prompts.mask, (k, v), seen)
        o = sharding.gathered(layer.o, _q_axes(config)[::-1])
        x = x + sharding.constrain(layers.product(heads, o), "batch", None, None)
        normed = layers.rms_norm(x, layer.post_norm, config.rms_norm_eps)
        gate_up = sharding.gathered(layer.gate_up, _GATE_UP_AXES)
        # Not as one matrix: the halves of each lie side by side, and would be brought together.
        joined = jnp.einsum("bgd,dtf->bgtf", normed, gate_up)
        joined = sharding.constrain(joined, "batch", None, None, "mlp")
        hidden = jax.nn.silu(joined[..., 0, :]) * joined[..., 1, :]
        down = sharding.gathered(layer.down, ("mlp", "embed"))
        x = x + sharding.constrain(layers.product(hidden, down), "batch", None, None)
    x = layers.rms_norm(x, weights.norm, config.rms_norm_eps).astype(dtype)
    head = table if weights.head is None else sharding.gathered(weights.head, ("embed", "vocab"))
    logits = vocabulary.logits(x, head, tied=weights.head is None)
    return logits, cache.CompletionCache(k=tuple(keys), v=tuple(values))


def _project(
    layer: LayerWeights, config: TextConfig, x: Float[Array, "b g d"], rotary: rope.Rotary
) -> tuple[Array, Array, Array]:
    """Queries [b, k, g, r, h], keys and values [b, k, g, h], positions turned in."""
    size, narrow = config.head_dim, config.num_key_value_heads
    kernel = sharding.gathered(layer.kv, _KV_AXES)
    joined = jnp.einsum("bgd,dkm->bgkm", x, kernel) + layer.kv_bias
    joined = sharding.constrain(joined, "batch", None, "kv_heads", None)
    if layer.q is not None and layer.q_bias is not None:
        q = layers.product(x, sharding.gathered(layer.q, _q_axes(config))) + layer.q_bias
        joined = jnp.concatenate([q.reshape(*x.shape[:-1], narrow, -1), joined], axis=-1)
    heads = joined.reshape(*x.shape[:-1], narrow, -1, size)  # [b, g, k, r + 2, h]
    cos, sin = rotary
    turned = rope.rotate(heads[..., :-1, :], (cos[..., None, :], sin[..., None, :]))
    order = (0, 2, 1, 3)
    q = jnp.transpose(turned[..., :-1, :], (*order, 4))
    return q, jnp.transpose(turned[..., -1, :], order), jnp.transpose(heads[..., -1, :], order)
