# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where arrays live: the mesh, and the one table from logical axis to mesh axis.

Layers name logical axes only. A batch is split over `data` and `fsdp` along its prompts; every
process holds a contiguous slice of the prompts of a global batch.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical axis of a parameter -> mesh axis. What is not named here is replicated.
RULES: dict[str | None, str | None] = {
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    None: None,
}


def make_mesh(*, data: int, fsdp: int, tensor: int) -> Mesh:
    """Arranges all devices of all processes.

    Args:
        data: devices along this axis; -1 (for at most one axis) = all that are left.
        fsdp: as data.
        tensor: as data.

    Returns:
        A mesh whose devices are in process order, so that a process's rows are contiguous, with
        automatic axes (newer JAX would make them explicit).

    Raises:
        ValueError: if the sizes do not multiply to the number of devices, or the tensor axis would
            cross processes (they hold different rows of a batch).
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"mesh {sizes}: give positive sizes, and -1 at most once")
    known = int(np.prod([size for size in sizes if size > 0]))
    sizes = [size if size > 0 else max(1, len(devices) // known) for size in sizes]
    if int(np.prod(sizes)) != len(devices):
        named = " x ".join(f"{n}={s}" for n, s in zip(MESH_AXES, sizes, strict=True))
        raise ValueError(
            f"mesh {named} needs {np.prod(sizes)} devices, there are {len(devices)}: "
            "set mesh.data, mesh.fsdp and mesh.tensor to multiply to that"
        )
    if jax.local_device_count() % sizes[2]:
        raise ValueError(
            f"mesh.tensor={sizes[2]} would cross processes, which have {jax.local_device_count()} "
            "devices each: make it a divisor of that"
        )
    grid = np.asarray(devices).reshape(sizes)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch(mesh: Mesh, rows: int, what: str) -> None:
    """Refuses a batch that the mesh cannot split.

    Raises:
        ValueError: naming the config field to change.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows < 1 or rows % ways:
        raise ValueError(
            f"{what}={rows} does not divide over data x fsdp = {ways} devices: "
            f"make it a positive multiple of {ways}"
        )


def of_params(mesh: Mesh, shapes: Any, logical_axes: Any) -> Any:
    """Shardings of a parameter tree, by the table.

    Args:
        mesh: the mesh.
        shapes: nested dict of anything with a shape.
        logical_axes: nested dict of tuples, as `Model.logical_axes` gives it.

    Returns:
        A tree of NamedSharding. A dimension that its mesh axis does not divide stays whole.
    """

    def one(axes: tuple[str | None, ...], leaf: Any) -> NamedSharding:
        spec = []
        for name, size in zip(axes, leaf.shape, strict=True):
            axis = RULES[name]
            spec.append(axis if axis and size % mesh.shape[axis] == 0 else None)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(one, logical_axes, shapes, is_leaf=lambda x: isinstance(x, tuple))


def param_structs(
    mesh: Mesh, shapes: Any, logical_axes: Any, dtype: DTypeLike | None = None
) -> Any:
    """Shapes, dtypes and shardings of a parameter tree, as readers of checkpoints want them.

    Args:
        mesh: the mesh.
        shapes: nested dict of anything with a shape and a dtype.
        logical_axes: as for `of_params`.
        dtype: of every leaf; None: the one it has.

    Returns:
        A tree of jax.ShapeDtypeStruct.
    """
    layout = of_params(mesh, shapes, logical_axes)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=where),
        shapes,
        layout,
    )


def of_state(mesh: Mesh, state: Any, params: Any, param_shardings: Any) -> Any:
    """Shardings of an optimizer state: a moment lies like its parameter, the rest is replicated.

    `jax.jit(optimizer.init)` alone would replicate the moments.

    Args:
        mesh: the mesh.
        state: abstract optimizer state.
        params: the (abstract) trainable parameters.
        param_shardings: their shardings.

    Returns:
        A tree like state.
    """
    paths = jax.tree_util.tree_leaves_with_path(params)
    by_path = {
        tuple(key.key for key in path): sharding
        for (path, _), sharding in zip(paths, jax.tree.leaves(param_shardings), strict=True)
    }

    def one(path: tuple, _: Any) -> NamedSharding:
        # A moment sits under its parameter's own path, below the optimizer's field names.
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        return by_path.get(names, replicated(mesh))

    return jax.tree_util.tree_map_with_path(one, state)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Split along the leading (prompt) axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def shard_batch(mesh: Mesh, local: Any) -> Any:
    """Makes global arrays of this process's rows.

    Args:
        mesh: the mesh.
        local: tree of numpy arrays, prompts of this process leading.

    Returns:
        The same tree of arrays over all processes' rows.
    """
    where, processes = over_batch(mesh), jax.process_count()

    def one(x: np.ndarray) -> jax.Array:
        shape = (x.shape[0] * processes, *x.shape[1:])
        return jax.make_array_from_process_local_data(where, x, shape)

    return jax.tree.map(one, local)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split along its leading axis."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    starts = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
    return np.concatenate([np.asarray(starts[start].data) for start in sorted(starts)])
