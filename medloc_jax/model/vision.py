# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL's vision tower: patches in window order in, merged image tokens out.

The host packs all images of a row one after another, in window order (`geometry.py`), so nothing is
permuted here. Window attention is a padded batch of windows: linear cost, plain matrix products.
Only the few full-attention blocks look at segment ids, so that images of a row do not mix.

Reference: Qwen2.5-VL (arXiv 2502.13923) section 2.1.1.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from medloc_jax import sharding
from medloc_jax.model import attention, geometry, layers, rope
from medloc_jax.model.config import VisionConfig

NORM_EPS = 1e-6


@jax.custom_vjp
def permute(
    x: Float[Array, "b n f"], index: Int[Array, "b m"], inverse: Int[Array, "b n"]
) -> Float[Array, "b m f"]:
    """Rows of x by index, zeros where it is -1; `inverse` is the same map seen from x's rows.

    Each row of x is used at most once, so that the gradient is a gather by `inverse` too. (What
    autodiff makes of a gather is a scatter-add, which CPUs and TPUs run row after row.)
    """
    rows = jnp.take_along_axis(x, jnp.maximum(index, 0)[..., None], axis=1)
    return jnp.where((index >= 0)[..., None], rows, 0)


def _permute_forward(x: Array, index: Array, inverse: Array) -> tuple[Array, tuple[Array, Array]]:
    return permute(x, index, inverse), (index, inverse)


def _permute_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, None, None]:
    index, inverse = saved
    return permute(grad, inverse, index), None, None


permute.defvjp(_permute_forward, _permute_backward)


class VisionAttention(nnx.Module):
    """Attention among the patches of a window, or of a whole image."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        size = config.hidden_size
        self.heads = ("vision_heads", config.num_heads)
        make = functools.partial(layers.Linear, use_bias=True, rngs=rngs)
        self.qkv = make(size, 3 * size, axes=("vision_embed", "vision_qkv"))
        self.proj = make(size, size, axes=(self.heads, "vision_embed"))
        self.num_heads = config.num_heads

    def __call__(
        self, x: Float[Array, "b p d"], patches: "PatchLayout", *, full: bool, implementation: str
    ) -> Float[Array, "b p d"]:
        b, p, d = x.shape
        qkv = self.qkv(x).reshape(b, p, 3, self.num_heads, -1)
        qkv = sharding.constrain(qkv, "batch", None, None, self.heads, None)
        q, k, v = (qkv[:, :, part] for part in range(3))  # [b, p, n, h]
        q, k = rope.rotate(q, patches.rotary), rope.rotate(k, patches.rotary)
        if full:
            seen = attention.within_images(patches.segment_ids)
            out = attention.attend(q, k, v, seen, implementation=implementation)
        else:
            b, windows, slots = patches.window_index.shape
            index = patches.window_index.reshape(b, -1)
            # Moved together, a head's three side by side: so the heads may lie on several devices.
            packed = jnp.stack([q, k, v], axis=3).reshape(b, p, 3 * d)
            packed = permute(packed, index, patches.window_slot)
            packed = packed.reshape(b * windows, slots, self.num_heads, 3, -1)
            q, k, v = (packed[:, :, :, part] for part in range(3))
            seen = attention.first_ones((index >= 0).reshape(b * windows, slots))
            out = attention.attend(q, k, v, seen, implementation=implementation)
            out = permute(out.reshape(b, windows * slots, d), patches.window_slot, index)
        return self.proj(out.reshape(b, p, d))


class VisionBlock(nnx.Module):
    """Norm, attention, norm, SwiGLU, each with its residual."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.norm1 = layers.RMSNorm(config.hidden_size, eps=NORM_EPS, rngs=rngs)
        self.norm2 = layers.RMSNorm(config.hidden_size, eps=NORM_EPS, rngs=rngs)
        self.attn = VisionAttention(config, rngs=rngs)
        self.mlp = layers.SwiGLU(
            config.hidden_size,
            config.intermediate_size,
            axes=("vision_embed", "vision_mlp"),
            use_bias=True,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "b p d"], patches: "PatchLayout", *, full: bool, implementation: str
    ) -> Float[Array, "b p d"]:
        x = x + self.attn(self.norm1(x), patches, full=full, implementation=implementation)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nnx.Module):
    """A patch's pixels to a vector: the original's 3-D convolution, whose stride is its size."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.proj = layers.Linear(
            config.patch_dim,
            config.hidden_size,
            axes=(None, "vision_embed"),
            use_bias=False,
            rngs=rngs,
        )

    def __call__(self, pixel_values: Float[Array, "b p c"]) -> Float[Array, "b p d"]:
        return self.proj(pixel_values)


class PatchMerger(nnx.Module):
    """Joins each 2 x 2 patches (neighbours in the packed order) into one image token."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        wide = config.hidden_size * config.merge_unit
        self.ln_q = layers.RMSNorm(config.hidden_size, eps=NORM_EPS, rngs=rngs)
        axes: sharding.Axes = ("vision_embed", "vision_mlp")
        make = functools.partial(layers.Linear, use_bias=True, rngs=rngs)
        self.mlp_0 = make(wide, wide, axes=axes)
        self.mlp_2 = make(wide, config.out_hidden_size, axes=axes[::-1])

    def __call__(self, x: Float[Array, "b p d"]) -> Float[Array, "b m e"]:
        b = x.shape[0]
        merged = self.ln_q(x).reshape(b, -1, self.mlp_0.kernel.shape[0])
        return self.mlp_2(jax.nn.gelu(self.mlp_0(merged), approximate=False))


class PatchLayout:
    """What every block needs to know of the packed patches, computed once."""

    def __init__(self, inputs: geometry.ModelInputs, head_dim: int):
        self.segment_ids: Int[Array, "b p"] = inputs.segment_ids  # type: ignore
        self.mask: Bool[Array, "b p"] = self.segment_ids > 0
        self.window_index: Int[Array, "b w s"] = inputs.window_index  # type: ignore
        # Padding patches have no slot; -1 keeps their gradient out of slot 0.
        self.window_slot = jnp.where(self.mask, jnp.asarray(inputs.window_slot), -1)
        self.rotary = rope.vision_rotary(jnp.asarray(inputs.patch_hw), head_dim)


def repeating_unit(depth: int, fullatt_block_indexes: tuple[int, ...]) -> tuple[int, list[bool]]:
    """The shortest run of blocks whose repetition gives the whole tower, and which of it are full.

    Qwen2.5-VL's 32 blocks are 4 times (7 windowed, 1 full): a scan over 4 units, each a scan over
    7 blocks and one more, compiles two blocks whatever the depth.
    """
    full = [i in fullatt_block_indexes for i in range(depth)]
    for unit in range(1, depth + 1):
        if depth % unit == 0 and full == full[:unit] * (depth // unit):
            return unit, full[:unit]
    raise AssertionError("unreachable: the whole tower repeats once")


class VisionTower(nnx.Module):
    """Patch embedding, blocks, merger."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = PatchEmbed(config, rngs=rngs)
        self.blocks = layers.stack(lambda r: VisionBlock(config, rngs=r), config.depth, rngs)
        self.merger = PatchMerger(config, rngs=rngs)

    def __call__(
        self,
        inputs: geometry.ModelInputs,
        *,
        dtype: DTypeLike,
        remat: str,
        implementation: str,
        unroll: bool = False,
        keep_hidden: bool = False,
    ) -> tuple[Float[Array, "b m e"], Float[Array, "l b p d"] | None]:
        """Encodes all images of all rows.

        Args:
            inputs: a batch; only its patch fields are read.
            dtype: of the activations.
            remat: see `layers.remat`.
            implementation: see `attention.attend`.
            unroll: see `layers.repeat`.
            keep_hidden: also return every block's output.

        Returns:
            Merged image tokens in packed (window) order, rows of padding included, finite and
            unused; and every block's output, or None.
        """
        patches = PatchLayout(inputs, self.config.head_dim)
        x = self.patch_embed(jnp.asarray(inputs.pixel_values).astype(dtype))
        graph, weights = nnx.split(self.blocks)
        unit, full = repeating_unit(self.config.depth, self.config.fullatt_block_indexes)
        starts = [i for i in range(unit) if i == 0 or full[i] != full[i - 1]] + [unit]

        def run_blocks(x: Array, weights: nnx.State, is_full: bool) -> tuple[Array, Array | None]:
            def block(x: Array, one: nnx.State) -> tuple[Array, Array | None]:
                module = nnx.merge(graph, one)
                x = module(x, patches, full=is_full, implementation=implementation)
                return x, x if keep_hidden else None

            return layers.repeat(
                layers.remat(block, remat, unroll=unroll), x, weights, unroll=unroll
            )

        def run_unit(x: Array, weights: nnx.State) -> tuple[Array, Array | None]:
            outputs = []
            for start, end in zip(starts[:-1], starts[1:], strict=True):
                part = jax.tree.map(lambda w, s=start, e=end: w[s:e], weights)
                x, hidden = run_blocks(x, part, full[start])
                outputs.append(hidden)
            return x, jnp.concatenate(outputs) if keep_hidden else None

        repeats = self.config.depth // unit
        units = jax.tree.map(lambda w: w.reshape(repeats, unit, *w.shape[1:]), weights)
        x, hidden = layers.repeat(run_unit, x, units, unroll=unroll)
        return self.merger(x), None if hidden is None else hidden.reshape(-1, *x.shape)
