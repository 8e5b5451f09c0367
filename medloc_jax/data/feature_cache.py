# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Features of images that a frozen vision tower has seen before, on disk by the images' content.

A file is there when it is whole: it is written beside its place and moved there, so that any number
of processes may use one folder. It begins with the checksum of the rest; a file that does not fit
its checksum is removed and its image computed again, with a warning.

What is stored under a key never changes, and what was not stored when the folder was full never is:
in shuffled epochs, throwing out the oldest would throw out what comes next.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medloc_jax.model import geometry

# Files that a process adds before it looks again at what others have added.
_RECOUNT_EVERY = 256
_DIGEST = hashlib.sha256
_DIGEST_BYTES = 32

_log = logging.getLogger(__name__)


def image_key(row: geometry.Row) -> str:
    """The content of a row's images: pixels, grid and window order."""
    parts = (row.pixel_values, row.patch_hw, row.segment_ids, row.window_slot)
    digest = _DIGEST(f"{row.num_windows}".encode())
    for part in parts:
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def row_key(image: str, bucket: geometry.Bucket) -> str:
    """An image in a static shape: padded otherwise, it is another program's result.

    Args:
        image: of `image_key`.
        bucket: the shape.
    """
    return f"{image}-{bucket.num_patches}-{bucket.num_windows}"


class FeatureCache:
    """The features that one tower gives, computed in one way."""

    def __init__(self, folder: str | os.PathLike[str], tower: Sequence[object], max_gb: float):
        """Makes the folder.

        Args:
            folder: may be shared by runs, processes and towers.
            tower: what the features depend on besides the image: weights, precision, program.
            max_gb: the most that may lie in `folder`, 1e9 bytes; a little more where several
                processes fill it at once.
        """
        self._root = Path(folder)
        name = _DIGEST(repr(tuple(tower)).encode()).hexdigest()[:16]
        self._folder = self._root / name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._max_bytes = int(max_gb * 1e9)
        self._size = self._count()
        self._added = 0
        self._full = False
        self._lock = threading.Lock()

    def get(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        """The features under a key; None where there are none, or damaged ones."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("%s cannot be read (%s): its image is computed again", path, error)
            return None
        values = content[_DIGEST_BYTES:]
        whole = _DIGEST(values).digest() == content[:_DIGEST_BYTES]
        if not whole or len(values) != int(np.prod(shape)) * dtype.itemsize:
            _log.warning("%s is damaged: removed, and its image is computed again", path)
            path.unlink(missing_ok=True)
            return None
        return np.frombuffer(values, dtype).reshape(shape)

    def put(self, key: str, features: np.ndarray) -> None:
        """Stores features, where there is room."""
        values = np.ascontiguousarray(features).tobytes()
        path, size = self._path(key), len(values) + _DIGEST_BYTES
        with self._lock:
            if self._full or path.exists() or not self._has_room(size):
                return
            self._size += size
            self._added += 1
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(exist_ok=True)
            unfinished.write_bytes(_DIGEST(values).digest() + values)
            os.replace(unfinished, path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            self._stop_filling(f"{error}")

    def _has_room(self, size: int) -> bool:
        if self._added % _RECOUNT_EVERY == _RECOUNT_EVERY - 1:
            self._size = self._count()
        if self._size + size <= self._max_bytes:
            return True
        self._stop_filling(f"it holds {self._size / 1e9:.1f} GB; raise data.feature_cache_gb")
        return False

    def _stop_filling(self, why: str) -> None:
        self._full = True
        _log.warning("data.feature_cache %s takes no more features: %s", self._root, why)

    def _count(self) -> int:
        total = 0
        for path in self._root.rglob("*"):
            try:
                total += path.stat().st_size if path.is_file() else 0
            except OSError:  # another process has just moved it
                continue
        return total

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key
