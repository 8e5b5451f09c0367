# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where arrays live: the mesh, and the one table from logical axis to mesh axis.

Layers name logical axes only, of their weights and of their activations. A batch is split over
`data` and `fsdp` along its prompts; a weight is stored in pieces over `fsdp` and gathered where a
layer uses it; heads, MLP and vocabulary are split over `tensor`.

Layout of activations is told to the compiler, not left to it: given weights that are split along
the model's width, it would rather split the activations so, and move those.

Reference: ZeRO (arXiv 1910.02054) for `fsdp`, Megatron-LM (arXiv 1909.08053) for `tensor`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical axis -> mesh axis, of parameters, optimizer moments, activations and caches alike. None is
# a dimension that is never split, such as the width of an activation.
RULES: dict[str | None, str | tuple[str, ...] | None] = {
    "batch": BATCH_AXES,  # prompts
    "layers": None,  # the scan runs along it
    "embed": "fsdp",  # a weight's side towards the model's width
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "vision_embed": "fsdp",
    "vision_heads": "tensor",
    "vision_qkv": None,  # three times the heads, side by side: cut, a part would hold parts of each
    "vision_mlp": "tensor",
    None: None,
}

# The name of a dimension; (name, parts) for one that may only be cut between its parts, as heads.
Axis = str | tuple[str, int] | None
Axes = tuple[Axis, ...]

_mesh: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


@contextlib.contextmanager
def on(mesh: Mesh | None) -> Iterator[None]:
    """While a model's function is traced: the mesh that `constrain` and `gathered` speak of."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def constrain(x: jax.Array, *axes: Axis) -> jax.Array:
    """Tells the compiler where an activation lies; without a mesh, or on one device, nothing.

    Args:
        x: any array.
        axes: the logical axis of each of its dimensions.
    """
    mesh = _mesh.get()
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(mesh, x.shape, axes)))


def gathered(weight: jax.Array, axes: Axes) -> jax.Array:
    """A weight as a layer uses it: whole along `fsdp`, still split along `tensor`.

    Cast it before, so that the compute dtype travels. Its gradient is summed into the pieces in
    which the weight is stored, and never exists whole on a device longer than one layer.
    """
    mesh = _mesh.get()
    if mesh is None or mesh.shape["fsdp"] == 1:
        return weight
    stored = spec(mesh, weight.shape, axes)
    used = PartitionSpec(*(None if axis == "fsdp" else axis for axis in stored))
    return _gather(weight, NamedSharding(mesh, used), NamedSharding(mesh, stored))


def cast_and_gathered(weight: jax.Array, dtype: DTypeLike, axes: Axes) -> jax.Array:
    """`gathered`, of a weight outside the layers' loop, in another dtype.

    Without a fence XLA's GPU compiler gathers the float32 weight and casts the whole of it.
    """
    mesh = _mesh.get()
    weight = weight.astype(dtype)
    if mesh is None or mesh.shape["fsdp"] == 1:
        return weight
    return gathered(jax.lax.optimization_barrier(weight), axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(weight: jax.Array, used: NamedSharding, stored: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(weight, used)


def _gather_forward(weight: jax.Array, used: NamedSharding, stored: NamedSharding):
    return _gather(weight, used, stored), None


def _gather_backward(used: NamedSharding, stored: NamedSharding, _: None, grad: jax.Array):
    return (jax.lax.with_sharding_constraint(grad, stored),)


_gather.defvjp(_gather_forward, _gather_backward)


def looked_up(x: jax.Array) -> jax.Array:
    """Vectors read from a table whose columns are stored in pieces: for the gradient's sake.

    Each device adds up the columns that it stores, of its `data` group's tokens: their gradients
    are turned from rows to columns among the group. Left alone, with a `data` axis too, the
    compiler gathers all gradients of all tokens on every device.

    Args:
        x: [batch, ..., width].
    """
    mesh = _mesh.get()
    if mesh is None or num_parts(mesh, "embed", x.shape[-1]) == 1:
        return x
    rows = "data" if x.shape[0] % mesh.shape["data"] == 0 else None
    columns = PartitionSpec(rows, *(None,) * (x.ndim - 2), RULES["embed"])
    return _turn(x, NamedSharding(mesh, columns))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _turn(x: jax.Array, columns: NamedSharding) -> jax.Array:
    return x


def _turn_forward(x: jax.Array, columns: NamedSharding):
    return x, None


def _turn_backward(columns: NamedSharding, _: None, grad: jax.Array):
    return (jax.lax.with_sharding_constraint(grad, columns),)


_turn.defvjp(_turn_forward, _turn_backward)


def on_each_device(
    function: Callable[..., jax.Array], arrays: Sequence[jax.Array], axes: Sequence[Axes], out: Axes
) -> jax.Array:
    """Runs a function on each device's own part of some arrays: kernels, which cannot be cut.

    Args:
        function: of the arrays; its result has the shape of the first of them.
        arrays: what it takes.
        axes: the logical axes of each; dimensions that belong together are cut alike.
        out: those of the result.
    """
    mesh = _mesh.get()
    if mesh is None or mesh.size == 1:
        return function(*arrays)
    specs = tuple(spec(mesh, x.shape, names) for x, names in zip(arrays, axes, strict=True))
    # What the kernels vary over is not told, and so cannot be checked.
    cut = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=specs,
        out_specs=spec(mesh, arrays[0].shape, out),
        check_vma=False,
    )
    return cut(*arrays)


def platform() -> str:
    """What the function that is traced will run on: "cpu", "gpu", "cuda" or "tpu"."""
    mesh = _mesh.get()
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def ways(name: str, size: int) -> int:
    """`num_parts` on the mesh of the function that is traced."""
    mesh = _mesh.get()
    return 1 if mesh is None else num_parts(mesh, name, size)


def num_parts(mesh: Mesh, name: str, size: int) -> int:
    """Into how many parts a dimension is cut.

    Args:
        mesh: the mesh.
        name: its logical axis.
        size: of the dimension.
    """
    parts = _ways(mesh, RULES[name])
    return parts if size % parts == 0 else 1


def spec(mesh: Mesh, shape: tuple[int, ...], axes: Axes) -> PartitionSpec:
    """Mesh axes of an array's dimensions, by the table.

    Args:
        mesh: the mesh.
        shape: of the array.
        axes: the logical axis of each dimension; what its mesh axis does not divide stays whole.
    """
    found = []
    for axis, size in zip(axes, shape, strict=True):
        name, parts = axis if isinstance(axis, tuple) else (axis, size)
        rule = RULES[name]
        found.append(rule if rule and parts % _ways(mesh, rule) == 0 else None)
    return PartitionSpec(*found)


def _ways(mesh: Mesh, rule: str | tuple[str, ...] | None) -> int:
    names = () if rule is None else (rule,) if isinstance(rule, str) else rule
    return int(np.prod([mesh.shape[name] for name in names], dtype=int))


def make_mesh(*, data: int, fsdp: int, tensor: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges all devices of all processes.

    Args:
        data: devices along this axis; -1 (for at most one axis) = all that are left.
        fsdp: as data.
        tensor: as data.
        devices: others than this program's own, to compile for.

    Returns:
        A mesh whose devices are in process order, so that a process's rows are contiguous, with
        automatic axes (newer JAX would make them explicit).

    Raises:
        ValueError: if the sizes do not multiply to the number of devices, or the tensor axis would
            cut a process's devices unevenly (which rows it holds would depend on the device).
    """
    devices = sorted(
        jax.devices() if devices is None else devices,
        key=lambda device: (device.process_index, device.id),
    )
    local = len(devices) // len({device.process_index for device in devices})
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
    if local % sizes[2] and sizes[2] % local:
        raise ValueError(
            f"mesh.tensor={sizes[2]} does not fit processes of {local} devices each: make it a "
            "divisor or a multiple of that"
        )
    grid = np.asarray(devices).reshape(sizes)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


class RowShare(NamedTuple):
    """Which rows of a batch a process holds.

    Attributes:
        index: of its part, in the order of the rows.
        count: parts that a batch is cut into.
        copies: processes that hold the same part, because the tensor axis spans them; they are
            neighbours in process order.
        is_first: whether this process is the first of them.
    """

    index: int
    count: int
    copies: int
    is_first: bool


def row_share(mesh: Mesh, process_index: int | None = None) -> RowShare:
    """The rows of a process.

    Args:
        mesh: the mesh.
        process_index: of the process; None: this one.
    """
    process_index = jax.process_index() if process_index is None else process_index
    processes = len({device.process_index for device in mesh.devices.flat})
    copies = max(1, mesh.shape["tensor"] * processes // mesh.size)
    index, copy = divmod(process_index, copies)
    return RowShare(index, processes // copies, copies, copy == 0)


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
    return jax.tree.map(
        lambda axes, leaf: NamedSharding(mesh, spec(mesh, leaf.shape, axes)),
        logical_axes,
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


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
    where, parts = over_batch(mesh), row_share(mesh).count

    def one(x: np.ndarray) -> jax.Array:
        shape = (x.shape[0] * parts, *x.shape[1:])
        return jax.make_array_from_process_local_data(where, x, shape)

    return jax.tree.map(one, local)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split along its leading axis."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    starts = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
    return np.concatenate([np.asarray(starts[start].data) for start in sorted(starts)])
