# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rotary positions: two-dimensional in the vision tower, multimodal (M-RoPE) in the language model.

Angles are float32 throughout: in bfloat16 the cosine of a position near 70 is off by 0.1.

Reference: Qwen2-VL (arXiv 2409.12191) section 2.1; Qwen2.5-VL (arXiv 2502.13923) section 2.1.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Broadcasts over the groups of a prompt.
Rotary = tuple[Float[Array, "*#t h2"], Float[Array, "*#t h2"]]

VISION_THETA = 10000.0


def vision_rotary(patch_hw: Int[Array, "b p 2"], head_dim: int) -> Rotary:
    """Cosines and sines of each patch: half of the frequencies turn with its row, half with column.

    Args:
        patch_hw: row and column of each patch in its own image.
        head_dim: size of an attention head (h), a multiple of 4.

    Returns:
        (cos, sin), each f32[b, p, h/2].
    """
    frequencies = VISION_THETA ** (-np.arange(0, head_dim // 2, 2) / (head_dim // 2))
    angles = patch_hw.astype(jnp.float32)[..., None] * frequencies.astype(np.float32)
    angles = angles.reshape(*patch_hw.shape[:-1], head_dim // 2)  # [b, p, h/2]: rows, then columns
    return jnp.cos(angles), jnp.sin(angles)


def mrope(
    positions: Int[Array, "b 3 t"], head_dim: int, theta: float, mrope_section: tuple[int, ...]
) -> Rotary:
    """Cosines and sines of each token: `mrope_section` says how many frequencies each axis turns.

    Args:
        positions: (time, height, width) of each token.
        head_dim: size of an attention head (h).
        theta: base of the frequencies.
        mrope_section: frequencies turned by time, height and width; they add up to h/2.

    Returns:
        (cos, sin), each f32[b, t, h/2].

    Raises:
        ValueError: if the sections do not add up.
    """
    if sum(mrope_section) != head_dim // 2:
        raise ValueError(
            f"mrope_section {mrope_section} must add up to {head_dim // 2} (head size / 2)"
        )
    frequencies = (theta ** (-np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    axis = np.repeat(np.arange(3), mrope_section)  # which of the three turns each frequency
    chosen = positions.astype(jnp.float32)[:, axis, :]  # [b, h/2, t]
    angles = jnp.swapaxes(chosen, 1, 2) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def text(
    positions: Int[Array, "b t"], head_dim: int, theta: float, mrope_section: tuple[int, ...]
) -> Rotary:
    """`mrope` of text, whose time, height and width are the same."""
    axes = jnp.broadcast_to(positions[:, None], (positions.shape[0], 3, positions.shape[1]))
    return mrope(axes, head_dim, theta, mrope_section)


def rotate(x: Float[Array, "*t n h"], rotary: Rotary) -> Float[Array, "*t n h"]:
    """Turns the pairs (x[i], x[i + h/2]) of each head by the token's angles, in float32."""
    cos, sin = (part[..., None, :] for part in rotary)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
