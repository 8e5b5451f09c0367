# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters from wherever they lie, straight onto a mesh: training and prediction start here.

Of a Hugging Face folder each process reads what its own devices hold, a block of rows at a time.
A process that holds some columns of a matrix maps the block and touches only the pages of these
columns.

Orbax has a reader of such folders too (`SafetensorsLayout`). It gives one array per layer, as
published, so that stacking and transposing hold everything twice. Measured on the 3B's shapes in
bfloat16 (7.0 GiB, 2 cores, benchmarks/load_parameters.py): on one device ours takes 13 s and 0.05
GiB above the parameters themselves, orbax's 47 s and 9.4 GiB; on eight, 15 s and 0.07 GiB against
141 s and 12.8 GiB.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medloc_jax import checkpoint
from medloc_jax.convert import hf_folder, mapping
from medloc_jax.convert.hf_folder import is_hf_folder as is_hf_folder
from medloc_jax.model import config as model_config

# A shard larger than this is built on its device, block by block, instead of in host memory.
STAGED_BYTES = 256 << 20

Box = tuple[tuple[int, int], ...]  # (start, stop) along each axis of one of our arrays


def load(
    source: str | Path,
    config: model_config.ModelConfig,
    like: Mapping[str, Any],
) -> dict[str, Any]:
    """Reads a model's parameters. Every process calls it.

    Args:
        source: a Hugging Face folder, or what `checkpoint.load_item` reads: a workdir, its
            checkpoints folder, a step, a converted folder.
        config: of the model.
        like: nested tree of jax.ShapeDtypeStruct, our names. Each leaf comes back with its dtype
            (converted where the source has another) and sharding.

    Returns:
        The parameters, nested like `like`.

    Raises:
        ValueError: neither kind of folder, unreadable, or of another model; names the tensor.
    """
    if checkpoint.is_checkpoint(source):
        return checkpoint.load_item(source, "params", like)
    if not is_hf_folder(source):
        raise ValueError(
            f"{source} holds no parameters: give a Hugging Face folder with safetensors files, a "
            "converted folder, the workdir of a run, its checkpoints folder, or one of its steps"
        )
    tensors = hf_folder.open_folder(source, config)
    hf_folder.check_tied_head(tensors, config)
    wanted, shapes = mapping.flatten(like), mapping.expected_shapes(config)
    if {path: tuple(leaf.shape) for path, leaf in wanted.items()} != shapes:
        raise ValueError(f"{source}: the parameters asked for are not those of the model's config")
    flat = {row.path: _leaf(row, tensors, config, wanted[row.path]) for row in mapping.rows(config)}
    return mapping.nest({path: flat[path] for path in wanted})


def _leaf(
    row: mapping.Row,
    tensors: Mapping[str, hf_folder.Tensor],
    config: model_config.ModelConfig,
    like: Any,
) -> jax.Array:
    """One of our arrays, with the devices of this process holding their parts of it."""
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    holders: dict[Box, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(tuple(like.shape)).items():
        box = tuple(s.indices(size)[:2] for s, size in zip(index or (), like.shape, strict=True))
        holders.setdefault(box, []).append(device)
    shards = {box: _Shard(box, like.dtype, devices) for box, devices in holders.items()}
    for start, block in _blocks(row, tensors, config, tuple(shards)):
        for shard in shards.values():
            shard.write(start, block)
    arrays = [array for shard in shards.values() for array in shard.arrays()]
    return jax.make_array_from_single_device_arrays(tuple(like.shape), sharding, arrays)


def _blocks(
    row: mapping.Row,
    tensors: Mapping[str, hf_folder.Tensor],
    config: model_config.ModelConfig,
    boxes: tuple[Box, ...],
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """What covers the boxes, in order: (first index, array), both in the axes of our array."""
    # The box around them all: every block is read once, however many devices of this process
    # hold a part of it.
    hull = [
        (min(b[axis][0] for b in boxes), max(b[axis][1] for b in boxes))
        for axis in range(len(boxes[0]))
    ]
    first_layer, last_layer = hull.pop(0) if row.num_layers(config) is not None else (0, 1)
    rows_axis = row.transform.rows_axis
    plain = len(row.hf_sizes) == 2  # a matrix, of which columns can be left out
    columns = hull[1 - rows_axis] if plain else None
    for layer, name in mapping.places(row, config)[first_layer:last_layer]:
        tensor = tensors[name]
        for start, stop in tensor.blocks(*hull[rows_axis]):
            block = row.transform.to_ours(tensor.read(start, stop, columns))
            begin = [0] * block.ndim
            begin[rows_axis] = start
            if columns is not None:
                begin[1 - rows_axis] = columns[0]
            if layer is None:
                yield tuple(begin), block
            else:
                yield (layer, *begin), block[None]


class _Shard:
    """What some devices hold of one array, while it is being read.

    In host memory where that is also the device's, or where it is small. Otherwise on the device:
    a stack of layers may be larger than the memory of the host.
    """

    def __init__(self, box: Box, dtype: Any, devices: list[Any]):
        self._box, self._dtype, self._devices = box, np.dtype(dtype), devices
        shape = tuple(stop - start for start, stop in box)
        self._staged: np.ndarray | None = None
        self._placed: list[jax.Array] = []
        if _on_host(devices[0], int(np.prod(shape)) * self._dtype.itemsize):
            self._staged = _aligned(shape, self._dtype)
        else:
            self._placed = [_zeros(shape, self._dtype, device) for device in devices]

    def write(self, start: tuple[int, ...], block: np.ndarray) -> None:
        """Writes the part of the block that lies in this shard."""
        inside, target = [], []
        for first, size, (low, high) in zip(start, block.shape, self._box, strict=True):
            begin, end = max(first, low), min(first + size, high)
            if begin >= end:
                return
            inside.append(slice(begin - first, end - first))
            target.append(slice(begin - low, end - low))
        part = block[tuple(inside)]
        if self._staged is not None:
            mapping.copy_into(self._staged[tuple(target)], part)
            return
        ready = np.empty(part.shape, self._dtype)
        mapping.copy_into(ready, part)
        at = tuple(np.int32(s.start) for s in target)
        for i, (array, device) in enumerate(zip(self._placed, self._devices, strict=True)):
            self._placed[i] = _update(array, jax.device_put(ready, device), at)
            self._placed[i].block_until_ready()  # or the host would run ahead, holding blocks

    def arrays(self) -> list[jax.Array]:
        """The finished part, on each device that holds it."""
        if self._staged is None:
            return self._placed
        return [jax.device_put(self._staged, device) for device in self._devices]


def _on_host(device: Any, num_bytes: int) -> bool:
    return device.platform == "cpu" or num_bytes <= STAGED_BYTES


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that JAX on CPU takes over as it is: a copy would double the largest array."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + size].view(dtype).reshape(shape)


def _zeros(shape: tuple[int, ...], dtype: np.dtype, device: Any) -> jax.Array:
    return jnp.zeros(shape, dtype, device=device)


@functools.partial(jax.jit, donate_argnums=0)
def _update(array: jax.Array, block: jax.Array, start: tuple[Any, ...]) -> jax.Array:
    return jax.lax.dynamic_update_slice(array, block, start)
