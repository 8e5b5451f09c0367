# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where files lie: a folder of this machine, or of an object store (gs://, s3://).

The one place that knows the difference. A local path is a `pathlib.Path`, a remote one an
`epath.Path` of the same methods, with four exceptions that this module is for:

* an object store replaces an object as a whole, so that a file cannot be appended to (`Lines`);
* it has no rename that is one act; a write is one act already (`write_text`);
* it has no working directory: a remote path is always absolute (`absolute`);
* asking it for one file after the other takes a night where one listing would do (`files_below`).

What other libraries must read from a disk (a tokenizer, an event file) is copied (`local_copy`,
`Mirror`). Orbax and TensorStore talk to the stores themselves: see checkpoint.py.
"""

import contextlib
import functools
import importlib.util
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

# By scheme, the package that fsspec needs for it; all are in the extra `cloud`.
BACKENDS = {"gs": "gcsfs", "s3": "s3fs"}

# A remote file of lines is written again at most so often, in seconds, and before every save.
REWRITE_SECONDS = 30.0

PathLike: TypeAlias = str | os.PathLike[str]

_log = logging.getLogger(__name__)


def is_remote(path: PathLike) -> bool:
    """Whether a path names an object store.

    Raises:
      ValueError: it has a scheme that is neither gs:// nor s3://.
    """
    scheme, separator, _ = os.fspath(path).partition("://")
    if not separator or "/" in scheme:
        return False
    if scheme not in BACKENDS:
        raise ValueError(f"{path}: only gs:// and s3:// are known besides folders of this machine")
    return True


def path(value: PathLike) -> Any:
    """A `pathlib.Path`, or for an object store an `epath.Path`, which has the same methods.

    Raises:
      ValueError: an unknown scheme, or what it needs is not installed; with the cure.
    """
    if not is_remote(value):
        return Path(value)
    text = os.fspath(value)
    scheme = text.partition("://")[0]
    _prepare(scheme)
    from etils import epath  # here: loader workers of local data need not wait for it

    return epath.Path(text.rstrip("/"))


def absolute(value: PathLike) -> Any:
    """The path, from the root; a remote one is that already."""
    return path(value) if is_remote(value) else Path(value).absolute()


def resolved(value: PathLike) -> Any:
    """The path from the root, without symbolic links; an object store has none."""
    return path(value) if is_remote(value) else Path(value).resolve()


def readable(file: PathLike) -> PathLike | io.BytesIO:
    """What a library can open that takes a path or an open file; an object is read whole."""
    return io.BytesIO(path(file).read_bytes()) if is_remote(file) else file


@functools.cache
def _prepare(scheme: str) -> None:
    """Sets up what reads a scheme."""
    if importlib.util.find_spec(BACKENDS[scheme]) is None:
        raise ValueError(
            f"{scheme}:// paths need {BACKENDS[scheme]}: install it with "
            "`pip install medloc_jax[cloud]`"
        )
    import fsspec.config

    # It would remember listings, and not see what another host or TensorStore has written since.
    for name in ("gs", "gcs") if scheme == "gs" else ("s3",):
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False


def write_text(target: PathLike, text: str) -> None:
    """Writes a small file, UTF-8, whole or not at all; its folder must exist."""
    write_bytes(target, text.encode("utf-8"))


def write_bytes(target: PathLike, content: bytes) -> None:
    """As `write_text`."""
    file = path(target)
    if is_remote(target):
        file.write_bytes(content)
        return
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, file)


def make_folder(folder: PathLike) -> None:
    """Makes a folder and its parents, unless it is there; object stores have none to make."""
    if not is_remote(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)


def remove_folder(folder: PathLike) -> None:
    """Removes a folder and all in it, as far as that is possible."""
    if is_remote(folder):
        with contextlib.suppress(FileNotFoundError):
            path(folder).rmtree()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def files_below(folder: PathLike) -> set[str]:
    """Every file below a remote folder, with its scheme; one request a thousand files."""
    import fsspec

    scheme = os.fspath(folder).partition("://")[0]
    _prepare(scheme)
    found = fsspec.filesystem(scheme).find(os.fspath(folder))
    return {f"{scheme}://{name}" for name in found}


def local_copy(folder: PathLike, wanted: Callable[[str], bool] | None = None) -> Path:
    """The folder itself where it is local, else a copy in a folder that goes with this process.

    Args:
      folder: what to copy.
      wanted: which files, by their path relative to the folder; None: all.

    Raises:
      ValueError: there is nothing of it.
    """
    if not is_remote(folder):
        return Path(folder)
    prefix = os.fspath(folder).rstrip("/") + "/"
    names = [name.removeprefix(prefix) for name in sorted(files_below(folder))]
    names = [name for name in names if wanted is None or wanted(name)]
    if not names:
        raise ValueError(f"{folder}: there is no such folder, or nothing in it that is needed")
    copy = Path(_scratch()) / path(folder).name
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(path(prefix + name).read_bytes())
    return copy


class Lines:
    """A text file that only grows, made at its first line.

    On a disk a line is there when `write` returns. An object store cannot append: there the lines
    are kept in memory, and the object is written again every REWRITE_SECONDS, by `flush` and by
    `close`.
    """

    def __init__(self, file: PathLike):
        """Goes on after what the file holds already."""
        self._path = path(file)
        self._remote = is_remote(file)
        self._file: Any = None  # of a disk, once open
        self._kept: list[bytes] | None = None  # of an object store, once read
        self._unwritten = False
        self._next_write = time.monotonic() + REWRITE_SECONDS

    def write(self, text: str) -> None:
        """Appends; `text` ends a line."""
        if not self._remote:
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(text)
            self._file.flush()
            return
        if self._kept is None:
            self._kept = [self._path.read_bytes()] if self._path.exists() else []
        self._kept.append(text.encode("utf-8"))
        self._unwritten = True
        if time.monotonic() >= self._next_write:
            with remote_failure_is_a_warning(f"{self._path}"):
                self.flush()

    def flush(self) -> None:
        """Writes what an object store has not got yet."""
        if self._unwritten and self._kept is not None:
            self._next_write = time.monotonic() + REWRITE_SECONDS  # also after a failure
            self._kept = [b"".join(self._kept)]
            self._path.write_bytes(self._kept[0])
            self._unwritten = False

    def close(self) -> None:
        """Writes what is left."""
        if self._file is not None:
            self._file.close()
        self.flush()


class Mirror:
    """A folder of this machine for writers that know no other, copied to a remote one.

    Attributes:
      folder: to write into: the folder itself where it is local.
    """

    def __init__(self, folder: PathLike):
        """Names the folder; nothing is made or read."""
        self._target = path(folder)
        self._remote = is_remote(folder)
        self._sizes: dict[str, int] = {}
        self._next_copy = time.monotonic() + REWRITE_SECONDS
        self.folder = Path(_scratch()) / "mirror" if self._remote else Path(folder)

    def copy_if_due(self) -> None:
        """Copies when REWRITE_SECONDS have passed."""
        if self._remote and time.monotonic() >= self._next_copy:
            self.copy()

    def copy(self) -> None:
        """Copies the files that have grown; what fails is a warning, and copied the next time."""
        if not self._remote:
            return
        self._next_copy = time.monotonic() + REWRITE_SECONDS
        with remote_failure_is_a_warning(f"{self._target}"):
            for file in sorted(entry for entry in self.folder.rglob("*") if entry.is_file()):
                name = file.relative_to(self.folder).as_posix()
                content = file.read_bytes()
                if self._sizes.get(name) != len(content):
                    (self._target / name).write_bytes(content)
                    self._sizes[name] = len(content)


@contextlib.contextmanager
def remote_failure_is_a_warning(what: str) -> Iterator[None]:
    """Lets a run go on when an object store does not answer, for what is written again later."""
    try:
        yield
    except Exception as error:  # the stores' clients raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        _log.warning("%s not written (%s): tried again later (the run goes on)", what, reason[:300])


def _scratch() -> str:
    """A new folder of this machine that goes with this process."""
    return tempfile.mkdtemp(dir=_scratch_root().name)


@functools.cache
def _scratch_root() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="medloc_jax-")
