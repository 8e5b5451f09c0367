# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The weights that the vision tower and the language model share in kind: linear, norm, SwiGLU.

Modules hold weights and nothing else. Each weight names the logical axes of its last dimensions
(`sharding.py` maps them to the mesh); stacked layers have one more axis in front. Activations lead
with the batch, and are split along their last axis where the weight that made them is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from medloc_jax import sharding
from medloc_jax.sharding import Axes

# Logical axes of a weight's side towards the model's width.
_WIDTHS = ("embed", "vision_embed")


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    return jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5


class Linear(nnx.Module):
    """y = x @ kernel + bias, with the kernel laid out [in, out] (the transpose of torch's)."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        axes: Axes,
        use_bias: bool,
        rngs: nnx.Rngs,
        bias_std: float = 0.0,
    ):
        """Draws the kernel with variance 1 / d_in, the bias with standard deviation bias_std."""
        self.kernel = nnx.Param(_normal(rngs, (d_in, d_out), d_in), axes=axes)
        bias = jax.random.normal(rngs.params(), (d_out,), jnp.float32) * bias_std
        # The width of an activation lies whole on a device, and so does what is added to it.
        self.split = None if axes[1] in _WIDTHS else axes[1]
        self.bias = nnx.Param(bias, axes=(self.split,)) if use_bias else None
        self.axes = axes

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = x @ sharding.gathered(self.kernel[...].astype(x.dtype), self.axes)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        return sharding.constrain(y, "batch", *(None,) * (y.ndim - 2), self.split)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale. The mean square is float32 whatever x is: bf16 has 8 bits for it."""

    def __init__(self, size: int, *, eps: float, rngs: nnx.Rngs):
        del rngs  # ones need no randomness; taken so that all modules are made alike
        self.scale = nnx.Param(jnp.ones((size,)), axes=(None,))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return self.scale[...].astype(x.dtype) * x32.astype(x.dtype)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)); with biases in the vision tower, without in the text model."""

    def __init__(self, size: int, hidden: int, *, axes: Axes, use_bias: bool, rngs: nnx.Rngs):
        self.gate_proj = Linear(size, hidden, axes=axes, use_bias=use_bias, rngs=rngs)
        self.up_proj = Linear(size, hidden, axes=axes, use_bias=use_bias, rngs=rngs)
        self.down_proj = Linear(hidden, size, axes=axes[::-1], use_bias=use_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> Any:
    """Makes `depth` layers as one module; weights have a leading layer axis, for `lax.scan`."""
    build = nnx.vmap(make, in_axes=(0,), out_axes=0)
    return nnx.split_rngs(splits=depth)(build)(rngs)


REMAT_POLICIES = {
    "layer": lambda body: jax.checkpoint(body, prevent_cse=False),
    "none": lambda body: body,
}


def remat(body: Callable, policy: str) -> Callable:
    """Wraps a scanned layer: "layer" recomputes it in the backward pass, "none" keeps everything.

    Raises:
        ValueError: for another policy.
    """
    if policy not in REMAT_POLICIES:
        raise ValueError(f"model.remat={policy!r}: choose one of {sorted(REMAT_POLICIES)}")
    return REMAT_POLICIES[policy](body)
