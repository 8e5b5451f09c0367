# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face folder -> an orbax checkpoint, block by block.

Our arrays stack all layers, and one stack of the 32B model is 18 GB. So no array is ever whole: a
block of rows of one layer is read, transposed as a view and handed to TensorStore.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from medloc_jax import checkpoint
from medloc_jax.convert import hf_folder, mapping
from medloc_jax.model import config as model_config

# A matrix is stored in up to this many parts along each of its two axes, so that a device that
# holds a slice of it reads little else; parts smaller than this many bytes are not worth it.
_PARTS, _LEAST_CHUNK = 8, 512 << 10


def write(
    tensors: Mapping[str, hf_folder.Tensor],
    config: model_config.ModelConfig,
    folder: Path,
    *,
    dtype: np.dtype | None,
    progress: Callable[[int], object],
    host_state: Mapping[str, object],
) -> None:
    """Writes the item "params" of a checkpoint.

    Args:
        tensors: of `hf_folder.open_folder`.
        config: of the model.
        folder: the step folder, `.../checkpoints/<step>`.
        dtype: to store; None: each tensor's own.
        progress: called with the number of tensor bytes that were just read.
        host_state: is stored beside the parameters.
    """
    flat = {row.path: _leaf(row, tensors, config, dtype, progress) for row in mapping.rows(config)}
    checkpoint.save_blocks(folder, "params", mapping.nest(flat), host_state)


def _leaf(
    row: mapping.Row,
    tensors: Mapping[str, hf_folder.Tensor],
    config: model_config.ModelConfig,
    dtype: np.dtype | None,
    progress: Callable[[int], object],
) -> checkpoint.Blocks:
    places = mapping.places(row, config)
    stored = dtype or tensors[places[0][1]].dtype
    shape = row.our_shape(config)
    stacked = row.num_layers(config) is not None
    chunk = _chunk(shape[1:] if stacked else shape, stored.itemsize)

    def blocks() -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        axis = row.transform.rows_axis
        for layer, name in places:
            tensor = tensors[name]
            for start, stop in tensor.blocks(multiple_of=chunk[axis]):
                block = tensor.read(start, stop)
                mapping.check_range(block, stored, name)
                block = row.transform.to_ours(block.astype(stored, copy=False))
                begin = tuple(start if i == axis else 0 for i in range(block.ndim))
                if layer is None:
                    yield begin, block
                else:
                    yield (layer, *begin), block[None]
                progress((stop - start) * tensor.row_bytes)

    return checkpoint.Blocks(shape, stored, (1, *chunk) if stacked else chunk, blocks)


def _chunk(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    parts = _PARTS
    while parts > 1 and np.prod(shape) * itemsize < _LEAST_CHUNK * parts ** len(shape):
        parts //= 2
    return tuple(-(-size // parts) for size in shape)
