# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model folder: which tensors it holds, checked before the first byte is read.

safetensors is eight bytes of header length, a JSON header and raw little-endian data, so a block of
rows is one byte range. Reading it here, and not through the library, keeps memory to one block (a
mapped file would count as resident until it is closed), reads parts of a tensor, and sees what a
JSON parser hides: a key that is set twice. It also reads bfloat16, for which numpy has no name.
"""

import dataclasses
import json
import math
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from medloc_jax.convert import mapping
from medloc_jax.model import config as model_config

INDEX = "model.safetensors.index.json"
DTYPES: dict[str, np.dtype] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
BLOCK_BYTES = 64 << 20  # at most so much of one tensor is in memory at a time
_MAX_HEADER = 100 << 20  # the format's own limit


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one tensor lies.

    Attributes:
        name: as the file has it, published or in-memory.
        file: its safetensors file.
        offset: of its first byte in that file.
        dtype: bfloat16, float16 or float32.
        shape: of the whole.
    """

    name: str
    file: Path
    offset: int
    dtype: np.dtype
    shape: mapping.Shape

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (axis 0)."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return self.shape[0] * self.row_bytes

    def blocks(
        self, start: int = 0, stop: int | None = None, *, multiple_of: int = 1
    ) -> Iterator[tuple[int, int]]:
        """Ranges of rows that cover [start, stop), none larger than BLOCK_BYTES.

        Each but the last has a multiple of so many rows, and that many at least.
        """
        stop = self.shape[0] if stop is None else stop
        rows = max(1, BLOCK_BYTES // (self.row_bytes * multiple_of)) * multiple_of
        for first in range(start, stop, rows):
            yield first, min(first + rows, stop)

    def read(
        self, start: int, stop: int, columns: tuple[int, int] | None = None
    ) -> Shaped[np.ndarray, "..."]:
        """Reads rows [start, stop), and of a matrix only these columns.

        Returns:
            A new array [stop - start, ...].

        Raises:
            ValueError: the file has become shorter since it was looked at.
        """
        offset, size = self.offset + start * self.row_bytes, (stop - start) * self.row_bytes
        shape = (stop - start, *self.shape[1:])
        if columns is None or columns == (0, self.shape[1]):
            out = np.empty(shape, self.dtype)
            _read_into(self.file, offset, out.reshape(-1).view(np.uint8))
            return out
        # Only the touched pages of a mapping are read.
        begin = offset - offset % mmap.ALLOCATIONGRANULARITY
        with open(self.file, "rb") as file:
            _check_length(self.file, os.fstat(file.fileno()).st_size, offset + size)
            mapped = mmap.mmap(
                file.fileno(), offset - begin + size, offset=begin, access=mmap.ACCESS_READ
            )
        try:
            wanted = (columns[1] - columns[0]) * self.dtype.itemsize
            if hasattr(mapped, "madvise") and self.row_bytes - wanted > 4 * mmap.PAGESIZE:
                mapped.madvise(mmap.MADV_RANDOM)  # no read-ahead over the gaps
            whole = np.frombuffer(mapped, self.dtype, math.prod(shape), offset - begin)
            out = whole.reshape(shape)[:, columns[0] : columns[1]].copy()
            del whole
        finally:
            mapped.close()
        return out


def is_hf_folder(source: str | os.PathLike[str]) -> bool:
    """Whether `source` is a folder with safetensors files or their index."""
    folder = Path(source)
    return folder.is_dir() and ((folder / INDEX).is_file() or any(folder.glob("*.safetensors")))


def read_config(source: str | os.PathLike[str]) -> model_config.ModelConfig:
    """The model config of a folder.

    Raises:
        ValueError: there is none, or it is not one of Qwen2.5-VL.
    """
    if not (Path(source) / "config.json").is_file():
        raise ValueError(
            f"{source} has no config.json: put the one that belongs to these weights beside them"
        )
    return model_config.from_hf(source)


def open_folder(
    source: str | os.PathLike[str], config: model_config.ModelConfig
) -> dict[str, Tensor]:
    """Looks at every tensor of a folder, strictly, without reading its values.

    Args:
        source: the folder.
        config: of the model that it must hold.

    Returns:
        Published name -> tensor: exactly those of the config, plus the head of a tied model where
        the folder has it (`check_tied_head` compares it).

    Raises:
        ValueError: a file missing, truncated or malformed; a key unknown, missing, set twice, of a
            wrong shape or dtype, or of another dtype than its stack. Names file and key.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    found: dict[str, Tensor] = {}
    by_file = _files(folder)
    for path, listed in by_file.items():
        tensors = read_header(path)
        for name in sorted((listed or set()) - tensors.keys()):
            raise ValueError(
                f"{folder / INDEX}: tensor {name} is not in {path.name}, where the index says it "
                "is: download both again"
            )
        for name, tensor in tensors.items():
            if name in found:
                raise ValueError(
                    f"tensor {name} is set twice, in {found[name].file.name} and in {path.name} of "
                    f"{folder}: keep one"
                )
            if listed is not None and name not in listed:
                raise ValueError(f"{path}: tensor {name} is not in {INDEX}: download both again")
            found[name] = tensor
    given = mapping.check_tensors(found, config, str(folder))
    return {published: found[name] for published, name in given.items()}


def check_tied_head(tensors: dict[str, Tensor], config: model_config.ModelConfig) -> None:
    """Compares the head that a tied model's folder may hold with the embedding, block by block.

    Raises:
        ValueError: they differ.
    """
    if not config.text.tie_word_embeddings or mapping.HEAD not in tensors:
        return
    head, embedding = tensors[mapping.HEAD], tensors[mapping.EMBEDDING]
    for start, stop in head.blocks():
        if not np.array_equal(_bits(head.read(start, stop)), _bits(embedding.read(start, stop))):
            raise ValueError(mapping.tied_head_differs(head.name))


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, by their names in it.

    Raises:
        ValueError: truncated or malformed, a key set twice, or a dtype that no Qwen2.5-VL has.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise ValueError(
                    f"{path} is truncated or no safetensors file: its header should have {length} "
                    f"bytes, the file has {size}"
                )
            text = file.read(length)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error

    try:
        header = json.loads(text, object_pairs_hook=_once(path, " in the header"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: the header is not JSON ({error}): download it again") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the header is not a JSON object: download it again")
    header.pop("__metadata__", None)
    tensors, ends = {}, [(0, 0)]
    for name, entry in header.items():
        tensor, begin, end = _entry(path, name, entry, 8 + length)
        tensors[name] = tensor
        ends.append((begin, end))
    ends.sort()
    for (_, end), (begin, _) in zip(ends, ends[1:], strict=False):
        if begin != end:
            raise ValueError(f"{path}: the tensors overlap or leave gaps: download it again")
    _check_length(path, size, 8 + length + ends[-1][1])
    if size > 8 + length + ends[-1][1]:
        raise ValueError(f"{path} is longer than its header says: download it again")
    return tensors


def _once(path: Path, where: str = "") -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """A hook for JSON objects that refuses a key set twice, which a parser would hide."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise ValueError(f"{path}: tensor {key} is set twice{where}: keep one")
            content[key] = value
        return content

    return checked


def _entry(path: Path, name: str, entry: Any, base: int) -> tuple[Tensor, int, int]:
    try:
        kind, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
            raise ValueError("not all natural numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: tensor {name} has a malformed header entry ({error!r}): download it again"
        ) from error
    if kind not in DTYPES:
        raise ValueError(
            f"{path}: tensor {name} is {kind}; only {', '.join(DTYPES)} are read: save the model "
            "without quantization"
        )
    if not shape or 0 in shape:
        raise ValueError(f"{path}: tensor {name} of shape {shape} is empty or a scalar")
    tensor = Tensor(name, path, base + begin, DTYPES[kind], shape)
    if tensor.nbytes != end - begin:
        raise ValueError(
            f"{path}: tensor {name} of shape {shape} has {end - begin} bytes instead of "
            f"{tensor.nbytes}: download it again"
        )
    return tensor, begin, end


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """The folder's safetensors files, with the keys that the index lists in each."""
    present = sorted(folder.glob("*.safetensors"))
    index = folder / INDEX
    if not index.is_file():
        if len(present) == 1:
            return {present[0]: None}
        if not present:
            raise ValueError(f"{folder} has no *.safetensors file: give a folder in that format")
        raise ValueError(f"{folder} has {len(present)} safetensors files but no {INDEX}: add it")

    try:
        content = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_once(index))
        weight_map = dict(content["weight_map"])
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is no index of safetensors files ({error!r})") from error
    by_file: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        path = folder / str(file)
        if path.parent != folder or not path.is_file():
            raise ValueError(
                f"{index}: tensor {name} is in {file}, which is not there: complete the download"
            )
        by_file.setdefault(path, set()).add(name)  # type: ignore[union-attr]
    for path in present:
        if path not in by_file:
            raise ValueError(f"{path} is not named in {INDEX}: move it out of the folder")
    return by_file


def _read_into(path: Path, offset: int, out: np.ndarray) -> None:
    done = 0
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while done < out.size:
            count = file.readinto(out[done:].data)
            if not count:
                _check_length(path, offset + done, offset + out.size)
            done += count or 0


def _check_length(path: Path, size: int, needed: int) -> None:
    if size < needed:
        raise ValueError(
            f"{path} is truncated: its header says {needed} bytes, the file has {size}: download "
            "it again"
        )


def _bits(array: np.ndarray) -> np.ndarray:
    """The same memory as integers: NaN equals itself, and -0.0 is not 0.0."""
    return array.view(f"u{array.dtype.itemsize}")
