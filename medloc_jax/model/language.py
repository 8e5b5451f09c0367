# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL's language model: a decoder over prompts, alone or with groups of completions.

A layer has two faces over the same weights: `prompt` (causal, gives the keys and values that the
group shares) and `group` (prompts and G completions of each). `decoding.py` has the third, one
token more, for which weights are laid out otherwise.

Reference: Qwen2.5 (arXiv 2412.15115) section 2, Qwen2.5-VL (arXiv 2502.13923) section 2.1.
The shared prompt: Prefix Grouper (arXiv 2506.05433) shows the same for training in PyTorch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from medloc_jax import sharding
from medloc_jax.model import attention, layers, rope
from medloc_jax.model.config import TextConfig

KeysValues = tuple[Array, Array]


class SelfAttention(nnx.Module):
    """Grouped-query attention with biases on q, k and v."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        size, head = config.hidden_size, config.head_dim
        wide, narrow = config.num_attention_heads * head, config.num_key_value_heads * head
        heads = ("heads", config.num_attention_heads)
        kv_heads = ("kv_heads", config.num_key_value_heads)
        # Random biases make scores depend on positions alone from the start: without them, a model
        # that starts from nothing takes long to find out where in the image a token is.
        make = functools.partial(layers.Linear, use_bias=True, rngs=rngs)
        self.q_proj = make(size, wide, axes=("embed", heads), bias_std=1.0)
        self.k_proj = make(size, narrow, axes=("embed", kv_heads), bias_std=1.0)
        self.v_proj = make(size, narrow, axes=("embed", kv_heads))
        self.o_proj = layers.Linear(wide, size, axes=(heads, "embed"), use_bias=False, rngs=rngs)
        self.head_dim = head

    def project(self, x: Array, rotary: rope.Rotary) -> tuple[Array, Array, Array]:
        """Queries, keys and values split into heads, positions turned in: [..., n | k, h]."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(x).reshape(*x.shape[:-1], -1, self.head_dim) for p in projections)
        return rope.rotate(q, rotary), rope.rotate(k, rotary), v

    def output(self, heads: Array) -> Array:
        """Joins the heads and projects back to the model's width."""
        return self.o_proj(heads.reshape(*heads.shape[:-2], -1))


class DecoderLayer(nnx.Module):
    """Norm, attention, norm, SwiGLU, each with its residual."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = layers.RMSNorm(size, eps=eps, rngs=rngs)
        self.post_attention_layernorm = layers.RMSNorm(size, eps=eps, rngs=rngs)
        self.self_attn = SelfAttention(config, rngs=rngs)
        self.mlp = layers.SwiGLU(
            size, config.intermediate_size, axes=("embed", "mlp"), use_bias=False, rngs=rngs
        )

    def _finish(self, x: Array, heads: Array) -> Array:
        x = x + self.self_attn.output(heads)
        return x + self.mlp(self.post_attention_layernorm(x))

    def prompt(
        self,
        x: Float[Array, "b p d"],
        rotary: rope.Rotary,
        seen: attention.Seen,
        implementation: str,
    ) -> tuple[Float[Array, "b p d"], KeysValues]:
        """One layer over the prompts; also gives their keys and values."""
        q, k, v = self.self_attn.project(self.input_layernorm(x), rotary)
        heads = attention.attend(q, k, v, seen, implementation=implementation)
        return self._finish(x, heads), (k, v)

    def group(
        self,
        x: Float[Array, "b t d"],
        rotary: rope.Rotary,
        seen: attention.Seen,
        prompt_mask: Bool[Array, "b p"],
        group_size: int,
        implementation: str,
    ) -> Float[Array, "b t d"]:
        """One layer over p prompt tokens and, after them, the g * c tokens of the completions.

        Prompt and completions part for attention alone: a completion looks at its prompt and,
        causally, at itself. Each weight is read (and gathered, and given its gradient) once.
        """
        q, k, v = self.self_attn.project(self.input_layernorm(x), rotary)
        heads = attention.attend_joined(
            q, k, v, seen, prompt_mask, group_size, implementation=implementation
        )
        return self._finish(x, heads)


class Embedding(nnx.Module):
    """Token vectors; with a tied head also the vocabulary projection."""

    def __init__(self, vocab_size: int, size: int, *, rngs: nnx.Rngs):
        values = jax.random.normal(rngs.params(), (vocab_size, size), jnp.float32) * size**-0.5
        self.axes: sharding.Axes = ("vocab", "embed")
        self.embedding = nnx.Param(values, axes=self.axes)

    def __call__(
        self, ids: Int[Array, "*b"], dtype: DTypeLike, table: Float[Array, "v d"] | None = None
    ) -> Float[Array, "*b d"]:
        table = self.table(dtype) if table is None else table
        x = sharding.looked_up(jnp.take(table, ids, axis=0)).astype(dtype)
        return sharding.constrain(x, "batch", *(None,) * ids.ndim)

    def table(self, dtype: DTypeLike) -> Float[Array, "v d"]:
        """The vectors as they are read: gathered, in dtype, if they are stored in pieces."""
        values = self.embedding[...]
        if sharding.ways("embed", values.shape[1]) == 1:
            return values  # only the rows that are read need be cast
        return sharding.cast_and_gathered(values, dtype, self.axes)


class PromptPass(NamedTuple):
    """A prompt's last layer, and the keys and values of every layer."""

    hidden: Float[Array, "b p d"]
    kv: KeysValues
    layers: Float[Array, "l b p d"] | None


class LanguageModel(nnx.Module):
    """Embedding, decoder layers, final norm. The vocabulary projection is the caller's."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rngs=rngs)
        self.layers = layers.stack(
            lambda r: DecoderLayer(config, rngs=r), config.num_hidden_layers, rngs
        )
        self.norm = layers.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, rngs=rngs)

    def rotary(self, positions: Int[Array, "b 3 t"]) -> rope.Rotary:
        """M-RoPE's cosines and sines, [b, t, h/2]."""
        config = self.config
        return rope.mrope(positions, config.head_dim, config.rope_theta, config.mrope_section)

    def completion_rotary(self, next_position: Int[Array, " b"], steps: Int[Array, " c"]):
        """Rotary of completion tokens, [b, 1, c, h/2], at next_position + t."""
        config, positions = self.config, next_position[:, None] + steps
        rotary = rope.text(positions, config.head_dim, config.rope_theta, config.mrope_section)
        return tuple(part[:, None] for part in rotary)

    def prompt(
        self,
        x: Float[Array, "b p d"],
        positions: Int[Array, "b 3 p"],
        prompt_mask: Bool[Array, "b p"],
        *,
        remat: str,
        implementation: str,
        unroll: bool = False,
        keep_hidden: bool = False,
    ) -> PromptPass:
        """Runs the prompts alone.

        Args:
            x: embedded prompts, image tokens merged in.
            positions: M-RoPE (time, height, width) of each token.
            prompt_mask: true = real token; padding is on the right.
            remat: see `layers.remat`.
            implementation: see `attention.attend`.
            unroll: see `layers.repeat`.
            keep_hidden: also return every layer's output.

        Returns:
            The last layer's output before the final norm, and keys and values [l, b, p, k, h].
        """
        rotary, seen = self.rotary(positions), attention.causal(prompt_mask)
        graph, weights = nnx.split(self.layers)

        def layer(x: Array, one: nnx.State):
            x, kv = nnx.merge(graph, one).prompt(x, rotary, seen, implementation)
            return x, (kv, x if keep_hidden else None)

        x, (kv, hidden) = layers.repeat(
            layers.remat(layer, remat, unroll=unroll), x, weights, unroll=unroll
        )
        return PromptPass(hidden=x, kv=kv, layers=hidden)

    def group(
        self,
        x: Float[Array, "b p d"],
        positions: Int[Array, "b 3 p"],
        prompt_mask: Bool[Array, "b p"],
        completions: Float[Array, "b g c d"],
        next_position: Int[Array, " b"],
        *,
        remat: str,
        implementation: str,
        unroll: bool = False,
    ) -> tuple[Float[Array, "b p d"], Float[Array, "b g c d"]]:
        """Runs each prompt once and its G completions on the prompt's keys and values.

        Args:
            x: embedded prompts.
            positions: M-RoPE positions of the prompts.
            prompt_mask: true = real token.
            completions: embedded completion tokens.
            next_position: position of the first completion token.
            remat: see `layers.remat`.
            implementation: see `attention.attend`.
            unroll: see `layers.repeat`.

        Returns:
            The last layer's outputs for the prompts and for the completions, before the final norm.
        """
        b, g, c, d = completions.shape
        seen, length = attention.causal(prompt_mask), x.shape[1]
        own = self.completion_rotary(next_position, jnp.arange(c))  # [b, 1, c, h/2] twice
        rotary = tuple(
            jnp.concatenate([part, jnp.tile(mine[:, 0], (1, g, 1))], axis=1)
            for part, mine in zip(self.rotary(positions), own, strict=True)
        )
        graph, weights = nnx.split(self.layers)

        def layer(x: Array, one: nnx.State):
            module = nnx.merge(graph, one)
            return module.group(x, rotary, seen, prompt_mask, g, implementation), None

        joined = jnp.concatenate([x, completions.reshape(b, g * c, d)], axis=1)
        joined = sharding.constrain(joined, "batch", None, None)
        joined, _ = layers.repeat(
            layers.remat(layer, remat, unroll=unroll), joined, weights, unroll=unroll
        )
        return joined[:, :length], joined[:, length:].reshape(b, g, c, d)
