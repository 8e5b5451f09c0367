# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""An orbax checkpoint -> safetensors files under the published names, block by block.

A stored chunk is read once and holds parts of one or several layers; each part is written at once
to its place in the files. What is in memory is a few chunks: 64 MB for checkpoints of this version.
An older checkpoint has a whole array, or 2 GiB of it, in a chunk, and costs that much.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from medloc_jax import checkpoint
from medloc_jax.convert import hf_folder, hf_writer, mapping
from medloc_jax.model import config as model_config

Bounds = tuple[int, int]


def check(
    arrays: Mapping[str, checkpoint.StoredArray], config: model_config.ModelConfig, where: str
) -> None:
    """Compares a checkpoint's tree with the config's, without reading values.

    Raises:
        ValueError: a path unknown or missing, a wrong shape, or a dtype that safetensors files of
            Qwen2.5-VL do not have.
    """
    shapes = mapping.expected_shapes(config)
    for path in arrays.keys() - shapes.keys():
        raise ValueError(f"{where}: parameter {path} has no Hugging Face name: wrong model config?")
    for path, shape in shapes.items():
        if path not in arrays:
            raise ValueError(f"{where}: parameter {path} missing: the config asks for {shape}")
        if arrays[path].shape != shape:
            raise ValueError(
                f"{where}: parameter {path} has shape {arrays[path].shape}, the config asks for "
                f"{shape}: give the config that the checkpoint was made with"
            )
        if arrays[path].dtype not in hf_folder.DTYPES.values():
            raise ValueError(f"{where}: parameter {path} is {arrays[path].dtype}: convert it first")


def specs(
    arrays: Mapping[str, checkpoint.StoredArray],
    config: model_config.ModelConfig,
    dtype: np.dtype | None,
) -> dict[str, tuple[mapping.Shape, np.dtype]]:
    """Published name -> shape and dtype of what will be written, in the order of the files."""
    return {
        name: (row.hf_shape(config), dtype or arrays[row.path].dtype)
        for row in mapping.rows(config)
        for _, name in mapping.places(row, config)
    }


def write(
    arrays: Mapping[str, checkpoint.StoredArray],
    config: model_config.ModelConfig,
    writer: hf_writer.Writer,
    progress: Callable[[int], object],
) -> None:
    """Fills the files, and makes them readable.

    Args:
        arrays: of `checkpoint.open_item`, checked.
        config: of the model.
        writer: made with `specs`.
        progress: called with the number of tensor bytes that were just written.
    """
    for row in mapping.rows(config):
        stored, places = arrays[row.path], mapping.places(row, config)
        stacked = row.num_layers(config) is not None
        shape = row.hf_shape(config)
        plain = len(shape) == 2
        for box in _boxes(stored, row, stacked):
            block = stored.read(box)
            layers, inside = (box[0], box[1:]) if stacked else ((0, 1), box)
            rows = inside[row.transform.rows_axis]
            columns = inside[1 - row.transform.rows_axis] if plain else None
            width = (columns[1] - columns[0],) if columns else shape[1:]
            for layer in range(*layers):
                ours = block[layer - layers[0]] if stacked else block
                part = row.transform.to_hf(ours, (rows[1] - rows[0], *width))
                name = places[layer][1]
                ready = np.empty(part.shape, writer.tensors[name].dtype)
                mapping.check_range(part, ready.dtype, name)
                mapping.copy_into(ready, part)
                writer.write(name, rows[0], ready, columns)
                progress(ready.nbytes)
    writer.finish()


def _boxes(
    stored: checkpoint.StoredArray, row: mapping.Row, stacked: bool
) -> Iterator[tuple[Bounds, ...]]:
    """Boxes of whole chunks that cover the array: full rows of Hugging Face's where that fits."""
    size = list(stored.chunk_shape)
    axes = range(1 if stacked else 0, len(size))
    # Hugging Face's columns first: full rows are one range in the file.
    order = sorted(axes, key=lambda axis: axis == axes[0] + row.transform.rows_axis)
    for axis in order:
        room = hf_folder.BLOCK_BYTES // (int(np.prod(size)) * stored.dtype.itemsize)
        if room > 1:
            size[axis] = min(size[axis] * room, stored.shape[axis])
    if len(row.hf_sizes) > 2:  # the patch convolution, which is small, keeps its columns together
        columns = axes[0] + 1 - row.transform.rows_axis
        size[columns] = stored.shape[columns]
    starts = [range(0, whole, step) for whole, step in zip(stored.shape, size, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(
            (start, min(start + step, whole))
            for start, step, whole in zip(corner, size, stored.shape, strict=True)
        )
