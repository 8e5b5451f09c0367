# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Writes safetensors files whose tensors come in parts and in any order.

All places are known before the first value is: the files are made at their final size, and each
part is written where it belongs. So a stack of layers is read once, although its layers lie in
different files.
"""

import json
import math
import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from medloc_jax.convert import hf_folder, mapping

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_NAMES = {dtype: name for name, dtype in hf_folder.DTYPES.items()}


def parse_size(text: str) -> int:
    """Bytes of a size such as `5GB`, `500MB`, `2GiB` or `1000000`.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d+)\s*([kKmMgG]?i?[bB]?)", text.strip())
    unit = match[2].upper() if match else None
    if match is None or unit not in _UNITS or not int(match[1]):
        raise ValueError(f"max_shard_size {text!r} is no size: write it like 5GB or 500MB")
    return int(match[1]) * _UNITS[unit]


class Writer:
    """The safetensors files of one folder, and their index where they are several.

    Attributes:
        tensors: by name, where each lies.
        files: their paths, in order.
    """

    def __init__(
        self,
        folder: Path,
        specs: Mapping[str, tuple[mapping.Shape, np.dtype]],
        max_shard_size: int,
    ):
        """Makes the files, still without values.

        Args:
            folder: exists.
            specs: name -> (shape, dtype), in the order in which they will lie.
            max_shard_size: bytes of tensors in a file, at most; a larger tensor has its own file.
        """
        sizes = {n: math.prod(shape) * dtype.itemsize for n, (shape, dtype) in specs.items()}
        shards: list[list[str]] = []
        filled = 0
        for name, size in sizes.items():
            if not shards or filled + size > max_shard_size:
                shards.append([])
                filled = 0
            shards[-1].append(name)
            filled += size
        self.tensors: dict[str, hf_folder.Tensor] = {}
        self.files: list[Path] = []
        self._lengths: dict[Path, int] = {}  # of the headers
        for i, names in enumerate(shards, 1):
            file = f"model-{i:05}-of-{len(shards):05}" if len(shards) > 1 else "model"
            self.files.append(folder / f"{file}.safetensors")
            self._make(self.files[-1], {name: specs[name] for name in names})
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(sizes.values())},
                "weight_map": {n: t.file.name for n, t in sorted(self.tensors.items())},
            }
            text = json.dumps(index, indent=2) + "\n"
            (folder / hf_folder.INDEX).write_text(text, encoding="utf-8")

    def _make(self, path: Path, specs: Mapping[str, tuple[mapping.Shape, np.dtype]]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        spans: dict[str, int] = {}
        end = 0
        for name, (shape, dtype) in specs.items():
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            spans[name] = begin
            header[name] = {
                "dtype": _NAMES[np.dtype(dtype)],
                "shape": list(shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data starts at a multiple of eight
        size = 8 + len(text) + end
        with open(path, "xb") as file:
            file.write(bytes(8) + text)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is told here
            else:
                file.truncate(size)
        for name, begin in spans.items():
            shape, dtype = specs[name]
            place = 8 + len(text) + begin
            self.tensors[name] = hf_folder.Tensor(name, path, place, np.dtype(dtype), shape)
        self._lengths[path] = len(text)

    def finish(self) -> None:
        """Makes the files readable. Before, no reader takes them for safetensors."""
        for path, length in self._lengths.items():
            with open(path, "r+b") as file:
                file.write(length.to_bytes(8, "little"))

    def write(
        self,
        name: str,
        start: int,
        part: Shaped[np.ndarray, "..."],
        columns: tuple[int, int] | None = None,
    ) -> None:
        """Writes rows of a tensor.

        Args:
            name: of the tensor.
            start: the first row.
            part: the rows, in the tensor's dtype.
            columns: of a matrix: those that `part` has, [start, stop).
        """
        tensor = self.tensors[name]
        stop = start + len(part)
        width = (columns[1] - columns[0],) if columns else tensor.shape[1:]
        assert part.dtype == tensor.dtype and part.shape[1:] == width, (name, part.shape)
        assert 0 <= start < stop <= tensor.shape[0], (name, start, stop)
        offset = tensor.offset + start * tensor.row_bytes
        if columns is None or columns == (0, tensor.shape[1]):
            data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            with open(tensor.file, "r+b", buffering=0) as file:
                file.seek(offset)
                done = 0
                while done < data.size:
                    done += file.write(data[done:].data) or 0
            return
        begin = offset - offset % mmap.ALLOCATIONGRANULARITY
        size = len(part) * tensor.row_bytes
        with open(tensor.file, "r+b") as file:
            mapped = mmap.mmap(file.fileno(), offset - begin + size, offset=begin)
        try:
            flat = np.frombuffer(
                mapped, tensor.dtype, size // tensor.dtype.itemsize, offset - begin
            )
            flat.reshape(len(part), -1)[:, columns[0] : columns[1]] = part
            del flat
        finally:
            mapped.close()
