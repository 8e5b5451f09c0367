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


def product(x: Float[Array, "*b i"], weight: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """The product x @ weight, over rows: see `_product`."""
    return _product(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], weight.shape[-1])


@jax.custom_vjp
def _product(x: Float[Array, "b i"], weight: Float[Array, "i o"]) -> Float[Array, "b o"]:
    """A product whose gradients are stated as two products of matrices.

    What autodiff makes of it contracts the gradient of the weight transposed, for which XLA's CPU
    compiler writes the activations down transposed: a fifth of a train step on a CPU.
    """
    return x @ weight


def _product_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ weight, (x, weight)


def _product_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, weight = saved
    return jnp.einsum("bo,io->bi", grad, weight), jnp.einsum("bi,bo->io", x, grad)


_product.defvjp(_product_forward, _product_backward)


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
        y = product(x, sharding.gathered(self.kernel[...].astype(x.dtype), self.axes))
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
        return rms_norm(x, self.scale[...], self.eps)


def rms_norm(x: Float[Array, "*b d"], scale: Float[Array, " d"], eps: float) -> Array:
    """Scales x / rms(x), in x's dtype; the mean square is float32."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return scale.astype(x.dtype) * x32.astype(x.dtype)


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
    "layer": lambda body, unroll: jax.checkpoint(body, prevent_cse=unroll),
    "dots": lambda body, unroll: jax.checkpoint(
        body, prevent_cse=unroll, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
    "none": lambda body, unroll: body,
}


def remat(body: Callable, policy: str, *, unroll: bool = False) -> Callable:
    """Wraps a scanned layer, by what the backward pass finds of it.

    "layer": its input, and it is recomputed; "dots": also the outputs of products with weights, so
    that attention, norms and activations alone are recomputed; "none": everything.

    Raises:
        ValueError: for another policy.
    """
    if policy not in REMAT_POLICIES:
        raise ValueError(f"model.remat={policy!r}: choose one of {sorted(REMAT_POLICIES)}")
    return REMAT_POLICIES[policy](body, unroll)


def repeat(
    body: Callable[[Any, Any], tuple[Any, Any]], x: Any, weights: Any, *, unroll: bool
) -> tuple[Any, Any]:
    """Runs a layer's body over stacked weights, each on what the one before gave.

    Args:
        body: (x, one layer's weights) -> (x, what it shows).
        x: what the first layer gets.
        weights: tree of arrays, layers leading.
        unroll: write the layers out instead of looping over them. What each keeps for the backward
            pass then stays where it is made; in a loop it is copied into a stack and back. Compile
            time grows with the depth.

    Returns:
        As `jax.lax.scan`: what the last layer gave, and what each showed, stacked.
    """
    if not unroll:
        return jax.lax.scan(body, x, weights)
    leaves, tree = jax.tree.flatten(weights)
    shown = []
    for one in zip(*(_unstack(leaf) for leaf in leaves), strict=True):
        x, show = body(x, jax.tree.unflatten(tree, one))
        shown.append(show)
    return x, jax.tree.map(lambda *parts: jnp.stack(parts), *shown)


@jax.custom_vjp
def _unstack(leaf: Array) -> tuple[Array, ...]:
    """Layers of a stacked weight. Their gradients are stacked; autodiff would pad and add them."""
    return tuple(leaf[i] for i in range(leaf.shape[0]))


def _unstack_forward(leaf: Array) -> tuple[tuple[Array, ...], None]:
    return _unstack(leaf), None


def _unstack_backward(_: None, grads: tuple[Array, ...]) -> tuple[Array]:
    return (jnp.stack(grads),)


_unstack.defvjp(_unstack_forward, _unstack_backward)
