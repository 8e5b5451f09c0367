# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Is a card right: bfloat16 and the attention kernels against float32 and plain operations."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medloc_jax.model import config as model_config
from medloc_jax.model import geometry, qwen2_5_vl

SLACK = 1.5  # so many times plain bfloat16's own error may a kernel's be


def batch(sizes: model_config.ModelConfig, rows: list[list[tuple[int, int]]], length: int) -> list:
    """Packed rows with pictures of those (width, height) and random text up to `length` tokens."""
    rng, packed = np.random.default_rng(0), []
    for pictures in rows:
        ids, images = [], []
        for width, height in pictures:
            grid = (1, height // sizes.vision.patch_size, width // sizes.vision.patch_size)
            pixels = rng.normal(size=(grid[1] * grid[2], sizes.vision.patch_dim))
            images.append((pixels.astype(np.float32), grid))
            count = geometry.merged_tokens(grid, sizes.vision)
            ids += [sizes.vision_start_token_id, *[sizes.image_token_id] * count]
            ids.append(sizes.vision_end_token_id)
        ids += rng.integers(0, 256, length - len(ids)).tolist()
        packed.append(geometry.pack_row(ids, images, sizes))
    return packed


def shallow(sizes: model_config.ModelConfig) -> model_config.ModelConfig:
    """The same widths, two layers, and a tower of one windowed block and a full one."""
    return dataclasses.replace(
        sizes,
        text=dataclasses.replace(sizes.text, num_hidden_layers=2),
        vision=dataclasses.replace(sizes.vision, depth=2, fullatt_block_indexes=(1,)),
    )


def check(preset: str, kernel: str) -> list[dict[str, Any]]:
    """Errors against float32 of plain bfloat16 and of the kernels, one row each."""
    sizes = shallow(model_config.preset(preset))
    cells = sizes.vision.patch_size * 2
    # Two pictures in a row, one, and one that fills no window; prompts of unequal lengths.
    rows = [[(4 * cells, 6 * cells), (5 * cells, 3 * cells)], [(7 * cells, 7 * cells)]]
    packed = [batch(sizes, [row], 70 + 9 * i)[0] for i, row in enumerate(rows)]
    (bucket,) = geometry.plan_buckets([row.shape for row in packed], 1)
    inputs = jax.tree.map(jnp.asarray, geometry.collate(packed, bucket, sizes))
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 3, 40)))
    mask = jnp.arange(40) < jnp.array([[40, 7, 1], [13, 40, 30]])[..., None]
    model = qwen2_5_vl.Model(sizes, remat="layer")
    params = jax.jit(model.init)(jax.random.key(0))

    def run(dtype: Any, implementation: str, precision: str) -> tuple[Any, Any]:
        one = dataclasses.replace(model, compute_dtype=dtype, attention=implementation)

        def loss(params: Any) -> tuple[Any, Any]:
            features = one.encode_images(params, inputs)
            found = one.group_logprobs(params, inputs, features, tokens, mask, 0.9)
            return jnp.sum(found * jnp.cos(jnp.arange(found.size)).reshape(found.shape)), found

        with jax.default_matmul_precision(precision):
            (_, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return jax.device_get((found, grads))

    wanted, gradient = run(jnp.float32, "xla", "highest")
    size = sum(float(np.sum(np.square(g, dtype=np.float64))) for g in jax.tree.leaves(gradient))
    found = []
    for implementation in ("xla", kernel):
        logprobs, grads = run(jnp.bfloat16, implementation, "default")
        apart = jax.tree.map(
            lambda a, b: float(np.sum(np.square(np.float64(a) - b))), grads, gradient
        )
        found.append(
            {
                "widths": preset,
                "attention": implementation,
                "logprob": float(np.abs(logprobs - wanted)[np.asarray(mask)].mean()),
                "gradient": (sum(jax.tree.leaves(apart)) / size) ** 0.5,
            }
        )
    plain, ours = found
    for name in ("logprob", "gradient"):
        ours["passed"] = ours.get("passed", True) and ours[name] <= SLACK * plain[name] + 1e-4
    plain["passed"] = plain["gradient"] < 0.2 and plain["logprob"] < 0.1
    return found
