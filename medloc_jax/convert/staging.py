# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A folder that is there whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_SUFFIX = ".partial"
_MARK = ".medloc_convert"  # lies in what we are still writing, and only there


def check_target(target: Path) -> None:
    """Refuses a target that holds something.

    Raises:
        ValueError: it is a file, or a folder that is not empty.
    """
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: name a folder")
    if target.is_dir() and any(target.iterdir()) and not _is_leftover(target):
        raise ValueError(f"{target} is not empty: name another folder, or empty it first")


def check_room(target: Path, num_bytes: int) -> None:
    """Refuses to start what will not fit.

    Raises:
        ValueError: the disk has less room than that.
    """
    parent = target.absolute()
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free + _leftover_bytes(target)
    if free < num_bytes:
        raise ValueError(
            f"{target} needs {num_bytes / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left: make "
            "room, or name a folder on another disk"
        )


@contextlib.contextmanager
def folder(target: Path) -> Iterator[Path]:
    """Gives a folder to write into, beside the target, and its name when all went well.

    What an interrupted conversion has left is removed, with a note. On an exception nothing is
    left; a killed process leaves only the folder beside the target.

    Raises:
        ValueError: as `check_target`; something else has the name of the folder beside it.
    """
    check_target(target)
    partial = _partial(target)
    for leftover in (target, partial):
        if _is_leftover(leftover):
            print(f"{leftover}: removed, an interrupted conversion had left it")
            shutil.rmtree(leftover)
    if partial.exists():
        raise ValueError(f"{partial} is in the way: move it")
    partial.mkdir(parents=True)
    try:
        (partial / _MARK).touch()
        yield partial
        _sync_tree(partial)
        (partial / _MARK).unlink()
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
        _sync(target.absolute().parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _partial(target: Path) -> Path:
    target = target.absolute()
    return target.with_name(target.name + _SUFFIX)


def _is_leftover(path: Path) -> bool:
    return (path / _MARK).is_file()


def _leftover_bytes(target: Path) -> int:
    return sum(
        file.stat().st_size
        for leftover in (target, _partial(target))
        if _is_leftover(leftover)
        for file in leftover.rglob("*")
        if file.is_file()
    )


def _sync_tree(top: Path) -> None:
    """Sends all of it to the disk: a rename may otherwise come before what it names."""
    for path in [*top.rglob("*"), top]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
