# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL as pure functions of its parameters.

NNX defines the weights; everything above this file sees `model.f(params, ...)` with params a nested
dict of arrays (stacked by layer), so that policy and reference are one program with different
parameters, and `jax.jit` runs over plain arrays.

Reference: Qwen2.5-VL (arXiv 2502.13923). Checked against transformers'
Qwen2_5_VLForConditionalGeneration in tests/parity.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from medloc_jax import sharding
from medloc_jax.model import cache, decoding, language, layers, vision, vocabulary
from medloc_jax.model.config import ModelConfig
from medloc_jax.model.geometry import ModelInputs

Params = dict[str, Any]


class Qwen2_5_VL(nnx.Module):  # noqa: N801 (the model's own name)
    """The weights: `visual`, `language_model`, and `lm_head` where the head is not tied."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        text = config.text
        self.visual = vision.VisionTower(config.vision, rngs=rngs)
        self.language_model = language.LanguageModel(text, rngs=rngs)
        # Assigned once: an attribute that starts as None stays static for NNX.
        self.lm_head = (
            None
            if text.tie_word_embeddings
            else layers.Linear(
                text.hidden_size,
                text.vocab_size,
                axes=("embed", "vocab"),
                use_bias=False,
                rngs=rngs,
            )
        )

    def embed(
        self,
        inputs: ModelInputs,
        features: Float[Array, "b m d"],
        dtype: DTypeLike,
        table: Float[Array, "v d"] | None = None,
    ) -> Float[Array, "b p d"]:
        """Token vectors, with each image placeholder replaced by its image token."""
        index = jnp.asarray(inputs.image_index)[..., None]
        images = jnp.take_along_axis(features.astype(dtype), jnp.maximum(index, 0), axis=1)
        tokens = self.language_model.embed_tokens(jnp.asarray(inputs.input_ids), dtype, table)
        return sharding.constrain(jnp.where(index >= 0, images, tokens), "batch", None, None)

    def head(self, dtype: DTypeLike, table: Float[Array, "v d"] | None = None) -> Array:
        """The vocabulary projection's matrix as `vocabulary` takes it: [v, d] tied, [d, v] not."""
        if self.lm_head is None:
            table = self.language_model.embed_tokens.table(dtype) if table is None else table
            return table.astype(dtype)
        return sharding.cast_and_gathered(self.lm_head.kernel[...], dtype, self.lm_head.axes)

    @property
    def head_axes(self) -> layers.Axes:
        """The logical axes of that matrix."""
        return self.language_model.embed_tokens.axes if self.lm_head is None else self.lm_head.axes

    def logits(self, hidden: Float[Array, "*b d"], head: Array) -> Float[Array, "*b v"]:
        """Float32 logits of the last layer's output (before the final norm)."""
        normed = self.language_model.norm(hidden)
        return vocabulary.logits(normed, head, tied=self.lm_head is None)


def _on_its_mesh(method: Callable[..., Any]) -> Callable[..., Any]:
    """Traces a method of `Model` with its mesh known to the layers."""

    @functools.wraps(method)
    def traced(self: "Model", *args: Any, **options: Any) -> Any:
        with sharding.on(self.mesh):
            return method(self, *args, **options)

    return traced


@functools.lru_cache(maxsize=8)
def _skeleton(config: ModelConfig) -> tuple[Any, nnx.State]:
    """Graph and abstract weights of a model: nothing is allocated."""
    return nnx.split(nnx.eval_shape(lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0))))


@dataclasses.dataclass(frozen=True)
class Model:
    """The model's programs. Hashable, so that it can be a static argument of `jax.jit`.

    Attributes:
        config: sizes and token ids.
        compute_dtype: of activations; norms, softmax, angles and log-probabilities are float32.
        remat: see `layers.remat`.
        attention: see `attention.attend`.
        vocab_chunk: completion tokens whose logits exist at one time on a device.
        unroll: see `layers.repeat`.
        mesh: where weights and activations lie; None: on one device.
    """

    config: ModelConfig
    compute_dtype: DTypeLike = jnp.float32
    remat: str = "layer"
    attention: str = "xla"
    vocab_chunk: int = 1024
    unroll: bool = False
    mesh: jax.sharding.Mesh | None = None

    def init(self, key: Array) -> Params:
        """Draws float32 weights: normal, variance 1 / fan-in; zeros for biases, ones for norms."""
        module = Qwen2_5_VL(self.config, rngs=nnx.Rngs(params=key))
        return nnx.to_pure_dict(nnx.state(module, nnx.Param))

    def abstract_params(self) -> Params:
        """The parameters' shapes and dtypes, as init would give them."""
        return nnx.to_pure_dict(_skeleton(self.config)[1])

    def logical_axes(self) -> Params:
        """The logical axis of every dimension of each parameter; "layers" leads stacked ones."""

        def axes(param: Any) -> layers.Axes:
            stacked = param.get_value().ndim - len(param.axes)
            return ("layers",) * stacked + tuple(param.axes)

        state = _skeleton(self.config)[1]
        named = jax.tree.map(axes, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
        return nnx.to_pure_dict(named)

    @_on_its_mesh
    def encode_images(self, params: Params, inputs: ModelInputs) -> Float[Array, "b m d"]:
        """Vision tower over all images of a batch.

        Args:
            params: the model's parameters; only `visual` is read.
            inputs: a batch.

        Returns:
            Merged image tokens of each row in packed order, padding included (finite, never used).
        """
        return self._encode(params, inputs, keep_hidden=False)[0]

    @_on_its_mesh
    def decoding_weights(self, params: Params, *, gather: bool = True) -> decoding.Weights:
        """Weights as decoding reads them for every token, made once: see `decoding.arrange`.

        Args:
            params: the model's parameters.
            gather: bring the pieces of each weight together now; False: for every token.
        """
        return decoding.arrange(params, self.config.text, self.compute_dtype, gather=gather)

    @_on_its_mesh
    def prefill(
        self, params: Params, inputs: ModelInputs, features: Float[Array, "b m d"]
    ) -> tuple[Float[Array, "b v"], cache.PromptCache]:
        """Runs the prompts once for sampling.

        Args:
            params: the model's parameters.
            inputs: a batch.
            features: of `encode_images`.

        Returns:
            Float32 logits after the last real prompt token, and the cache that decoding reads.
        """
        module = self._module(params)
        mask = prompt_mask(inputs)
        x = module.embed(inputs, features, self.compute_dtype)
        out = module.language_model.prompt(
            x,
            inputs.mrope_positions,
            mask,
            remat="none",
            implementation=self.attention,
            unroll=self.unroll,
        )
        last = _last_real(out.hidden, inputs.prompt_lengths)
        logits = module.logits(last, module.head(last.dtype))
        k, v = cache.of_prompts(out.kv)
        return logits, cache.PromptCache(k=k, v=v, mask=mask, next_position=_next_position(inputs))

    @_on_its_mesh
    def empty_cache(self, batch: int, group_size: int, length: int) -> cache.CompletionCache:
        """Room for the keys and values of `length` tokens of batch x group_size completions."""
        return cache.empty_completions(
            self.config.text, batch, group_size, length, self.compute_dtype
        )

    @_on_its_mesh
    def decode_step(
        self,
        weights: decoding.Weights,
        tokens: Int[Array, "b g"],
        step: Int[Array, ""],
        prompts: cache.PromptCache,
        completions: cache.CompletionCache,
    ) -> tuple[Float[Array, "b g v"], cache.CompletionCache]:
        """Feeds completion token number `step` and gives the logits of the one after it.

        Args:
            weights: of `decoding_weights`.
            tokens: the newest token of each completion.
            step: its place in the completion, from 0.
            prompts: of `prefill`.
            completions: keys and values of the tokens before.

        Returns:
            Float32 logits and the cache with this token written.
        """
        return decoding.token(weights, self.config.text, tokens, step, prompts, completions)

    @_on_its_mesh
    def group_logprobs(
        self,
        params: Params,
        inputs: ModelInputs,
        features: Float[Array, "b m d"],
        completions: Int[Array, "b g c"],
        completion_mask: Bool[Array, "b g c"],
        temperature: Float[Array, ""] | float,
    ) -> Float[Array, "b g c"]:
        """Log-probability of every completion token, the prompt computed once per group.

        Equal to running prompt + completion for each of the B * G rows (a test says so), at a
        fraction of the cost; gradients flow through the shared prompt. Logits exist only for
        completion tokens, `vocab_chunk` of them at a time on a device.

        Args:
            params: the model's parameters.
            inputs: the prompts.
            features: of `encode_images`.
            completions: G completions per prompt, end token included.
            completion_mask: true = real token.
            temperature: the logits are divided by it (that of sampling).

        Returns:
            Float32 log-probabilities over the whole vocabulary; 0 where the mask is false.
        """
        module = self._module(params)
        text = module.language_model
        table = text.embed_tokens.table(self.compute_dtype)  # once for prompts, completions, head
        x = module.embed(inputs, features, self.compute_dtype, table)
        # The last token predicts nothing, but whole lengths (256, not 255) are what matrix units,
        # and the tiles that XLA's GPU compiler must find, are made for.
        y = text.embed_tokens(completions, self.compute_dtype, table)
        x, y = text.group(
            x,
            inputs.mrope_positions,
            prompt_mask(inputs),
            y,
            _next_position(inputs),
            remat=self.remat,
            implementation=self.attention,
            unroll=self.unroll,
        )
        # Token 0 is predicted by the prompt's last real position, token t by token t - 1.
        first = _last_real(x, inputs.prompt_lengths)[:, None, None]
        first = jnp.broadcast_to(first, (*y.shape[:2], 1, y.shape[-1]))
        logprobs = self._token_logprobs(
            module, jnp.concatenate([first, y[:, :, :-1]], axis=2), completions, temperature, table
        )
        return jnp.where(completion_mask, logprobs, 0.0)

    @_on_its_mesh
    def logits(
        self, params: Params, inputs: ModelInputs, features: Float[Array, "b m d"]
    ) -> Float[Array, "b p v"]:
        """Logits at every prompt position (for checks at small sizes: p x v floats a row)."""
        module = self._module(params)
        x = module.embed(inputs, features, self.compute_dtype)
        out = module.language_model.prompt(
            x,
            inputs.mrope_positions,
            prompt_mask(inputs),
            remat=self.remat,
            implementation=self.attention,
            unroll=self.unroll,
        )
        return module.logits(out.hidden, module.head(out.hidden.dtype))

    @_on_its_mesh
    def hidden_states(self, params: Params, inputs: ModelInputs) -> dict[str, Array | None]:
        """Every block's output, for checks block by block.

        Returns:
            visual.blocks [l, b, p, d], visual.merger [b, m, d], language_model.layers [l, b, p, d].
        """
        module = self._module(params)
        features, blocks = self._encode(params, inputs, keep_hidden=True)
        out = module.language_model.prompt(
            module.embed(inputs, features, self.compute_dtype),
            inputs.mrope_positions,
            prompt_mask(inputs),
            remat="none",
            implementation=self.attention,
            unroll=self.unroll,
            keep_hidden=True,
        )
        names = ("visual.blocks", "visual.merger", "language_model.layers")
        return dict(zip(names, (blocks, features, out.layers), strict=True))

    def _module(self, params: Params) -> Qwen2_5_VL:
        return nnx.merge(_skeleton(self.config)[0], nnx.State(params))

    def _encode(self, params: Params, inputs: ModelInputs, *, keep_hidden: bool):
        return self._module(params).visual(
            inputs,
            dtype=self.compute_dtype,
            remat=self.remat,
            implementation=self.attention,
            unroll=self.unroll,
            keep_hidden=keep_hidden,
        )

    def _token_logprobs(
        self,
        module: Qwen2_5_VL,
        hidden: Array,
        tokens: Array,
        temperature: Array | float,
        table: Array,
    ) -> Float[Array, "b g c"]:
        """Log-probabilities in chunks of C.

        Their logits are made again in the backward pass, unless remat is "none".
        """
        b, g, c, _ = hidden.shape
        # Of the rows that a device holds: every part adds to the gradient of a whole matrix, which
        # the devices then sum up.
        size = chunk_length(self.vocab_chunk, b * g // sharding.ways("batch", b), c)
        count = -(-c // size)
        pad = count * size - c
        head, head_axes = module.head(hidden.dtype, table), module.head_axes  # for all parts
        hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, pad), (0, 0)))
        tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, pad)))

        temperature = jnp.asarray(temperature, jnp.float32)

        def chunk(_, i):
            rows = jax.lax.dynamic_slice_in_dim(hidden, i * size, size, axis=2)
            ids = jax.lax.dynamic_slice_in_dim(tokens, i * size, size, axis=2)
            # Gathered already: said again so that each part's gradient is stored in pieces.
            part = sharding.gathered(head, head_axes)
            normed = module.language_model.norm(rows)
            tied = module.lm_head is None
            return None, vocabulary.token_logprobs(normed, part, ids, temperature, tied=tied)

        if self.remat != "none":
            chunk = jax.checkpoint(chunk, prevent_cse=False)
        if count == 1:
            return chunk(None, 0)[1]
        _, parts = jax.lax.scan(chunk, None, jnp.arange(count))  # [count, b, g, size]
        return jnp.moveaxis(parts, 0, 2).reshape(b, g, count * size)[..., :c]


def chunk_length(vocab_chunk: int, rows: int, length: int) -> int:
    """Tokens of each completion whose logits exist at one time.

    Args:
        vocab_chunk: tokens of all rows of a device, at most; of every row at least one.
        rows: completions that a device holds.
        length: of a completion.
    """
    return max(1, min(length, vocab_chunk // rows))


def prompt_mask(inputs: ModelInputs) -> Bool[Array, "b p"]:
    """True = real prompt token (padding is on the right)."""
    return jnp.arange(inputs.input_ids.shape[1]) < inputs.prompt_lengths[:, None]


def _next_position(inputs: ModelInputs) -> Int[Array, " b"]:
    """M-RoPE position of the first completion token: an image takes fewer positions than tokens."""
    return inputs.prompt_lengths + inputs.rope_delta


def _last_real(x: Float[Array, "b p d"], lengths: Int[Array, " b"]) -> Float[Array, "b d"]:
    """The vector at each prompt's last real token."""
    return jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
