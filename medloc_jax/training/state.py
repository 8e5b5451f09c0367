# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What an optimizer step changes, and what it leaves alone.

Parameters are split once into trainable and frozen ones. Gradient and optimizer see the trainable
ones only; the frozen ones are stored once and serve policy and reference alike.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from medloc_jax import sharding
from medloc_jax.model import qwen2_5_vl

Params = dict[str, Any]
Path = tuple[str, ...]


class TrainState(NamedTuple):
    """What an update changes.

    Attributes:
        trainable: float32 master weights.
        opt_state: of the optimizer, float32.
    """

    trainable: Params
    opt_state: Any


def is_trainable(path: Path, *, freeze_vision: bool) -> bool:
    """Whether a parameter is trained; the merger is part of the tower."""
    return not (freeze_vision and path[0] == "visual")


def split(params: Params, chosen: Callable[[Path], bool]) -> tuple[Params, Params]:
    """Parts a nested dict in two by path: (chosen, the others). `merge` undoes it."""

    def walk(tree: Params, path: Path, keep: bool) -> Params:
        out = {}
        for name, value in tree.items():
            if isinstance(value, dict):
                below = walk(value, (*path, name), keep)
                if below:
                    out[name] = below
            elif chosen((*path, name)) == keep:
                out[name] = value
        return out

    return walk(params, (), True), walk(params, (), False)


def merge(first: Params, second: Params) -> Params:
    """Joins two nested dicts whose leaves do not overlap."""
    out = dict(first)
    for name, value in second.items():
        out[name] = merge(out[name], value) if name in out else value
    return out


class Placement(NamedTuple):
    """Shapes and shardings of a run's arrays, from which they are made, saved and restored."""

    trainable: Params
    frozen: Params
    opt_state: Any

    def abstract(self) -> dict[str, Any]:
        """What a checkpoint holds, as the checkpointer wants it."""
        return {"params": merge(self.trainable, self.frozen), "optimizer": self.opt_state}


def place(
    model: qwen2_5_vl.Model,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    *,
    freeze_vision: bool,
    frozen_dtype: str,
) -> Placement:
    """Plans every array of a run without making any.

    Args:
        model: the model.
        mesh: the mesh.
        optimizer: its state is planned too; a moment lies like its parameter.
        freeze_vision: see `is_trainable`.
        frozen_dtype: storage of frozen weights.

    Returns:
        Trees of ShapeDtypeStruct with shardings.
    """
    shapes = model.abstract_params()
    layout = sharding.of_params(mesh, shapes, model.logical_axes())
    chosen = lambda path: is_trainable(path, freeze_vision=freeze_vision)  # noqa: E731
    (trainable, frozen), (train_layout, frozen_layout) = (
        split(shapes, chosen),
        split(layout, chosen),
    )
    opt_state = jax.eval_shape(optimizer.init, trainable)
    opt_layout = sharding.of_state(mesh, opt_state, trainable, train_layout)

    def struct(dtype: str | None):
        return lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, jnp.dtype(dtype or leaf.dtype), sharding=where
        )

    return Placement(
        trainable=jax.tree.map(struct("float32"), trainable, train_layout),
        frozen=jax.tree.map(struct(frozen_dtype), frozen, frozen_layout),
        opt_state=jax.tree.map(struct(None), opt_state, opt_layout),
    )


def shardings(structs: Any) -> Any:
    """The shardings of a tree of ShapeDtypeStruct."""
    return jax.tree.map(lambda struct: struct.sharding, structs)


def put(params: Params, structs: Params) -> Params:
    """Casts and lays out parameters as planned.

    Raises:
        ValueError: naming a parameter of another shape.
    """

    def one(path: tuple, value: Any, struct: jax.ShapeDtypeStruct) -> jax.Array:
        if value.shape != struct.shape:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"{name} has shape {value.shape}, the model wants {struct.shape}")
        # A process hands over its copy of the whole; each device takes its part.
        host = value.astype(struct.dtype)
        return jax.device_put(host, struct.sharding)

    return jax.tree_util.tree_map_with_path(one, params, structs)


def fresh(model: qwen2_5_vl.Model, mesh: Mesh, seed: int) -> Params:
    """Draws initial parameters straight onto the mesh: no device holds the whole model."""
    layout = sharding.of_params(mesh, model.abstract_params(), model.logical_axes())
    return jax.jit(model.init, out_shardings=layout)(jax.random.key(seed))


def start(
    params: Params, placement: Placement, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Params]:
    """Splits and lays out parameters, and makes an empty optimizer state.

    Returns:
        The state, and the frozen parameters.
    """
    trainable, frozen = split_like(params, placement)
    init = jax.jit(optimizer.init, out_shardings=shardings(placement.opt_state))
    return TrainState(trainable, init(trainable)), frozen


def split_like(params: Params, placement: Placement) -> tuple[Params, Params]:
    """Parts and lays out a whole parameter tree as planned: (trainable, frozen)."""
    known = {
        tuple(key.key for key in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(placement.trainable)
    }
    trainable, frozen = split(params, lambda path: path in known)
    return put(trainable, placement.trainable), put(frozen, placement.frozen)


def copy(params: Params, dtype: str) -> Params:
    """A copy of its own memory: the original is given up to the next update."""
    layout = jax.tree.map(lambda x: x.sharding, params)
    cast = jax.jit(
        lambda tree: jax.tree.map(lambda x: jnp.copy(x.astype(dtype)), tree), out_shardings=layout
    )
    return cast(params)


def fingerprint(params: Params) -> int:
    """A checksum of every bit of a parameter tree, the same on any mesh.

    Integer sums wrap around and do not depend on their order; each value is weighted by its place,
    so that two that change places are noticed.
    """

    def one(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
        weights = jnp.uint32(1)
        for axis in range(leaf.ndim):  # not one index over all: a flattened leaf would be gathered
            place = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            weights = weights * jnp.uint32(31) + place
        return jnp.sum(bits * (2 * weights + 1), dtype=jnp.uint32)

    sums = jax.jit(lambda leaves: [one(leaf) for leaf in leaves])(jax.tree.leaves(params))
    return zlib.crc32(np.array([int(total) for total in sums], np.uint32).tobytes())
