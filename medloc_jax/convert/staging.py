# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A folder that is there whole or not at all."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_SUFFIX = ".partial"
_MARK = ".medloc_convert"  # lies in what we are still writing, and only there
_ATTEMPTS, _PAUSE = 20, 0.1  # to delete a folder, and seconds between them


def check_target(target: Path) -> None:
    """Refuses a target that holds something.

    Raises:
        ValueError: it is a file, or a folder that is not empty.
    """
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: name a folder")
    if target.is_dir() and any(target.iterdir()) and not _is_leftover(target):
        raise ValueError(f"{target} is not empty: name another folder, or empty it first")


def check_apart(source: Path, target: Path) -> None:
    """Refuses a target that lies in the source, and the reverse.

    Raises:
        ValueError: one is the other, or lies in it.
    """
    outer, inner = source.resolve(), target.resolve()
    if inner == outer:
        raise ValueError(f"{target} is the source itself: name another folder")
    if outer in inner.parents:
        raise ValueError(f"target {target} lies inside the source {source}: name one outside it")
    if inner in outer.parents:
        raise ValueError(f"source {source} lies inside the target {target}: name another target")


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
def folder(target: Path, check: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """Gives a folder to write into, beside the target, and its name when all went well.

    What an interrupted conversion has left is removed, with a note. On an exception nothing is
    left; a killed process leaves only the folder beside the target.

    Args:
        target: as it will be called.
        check: called while the finished folder is sent to the disk; may raise.

    Raises:
        ValueError: as `check_target`; something else has the name of the folder beside it.
    """
    check_target(target)
    partial = _partial(target)
    for leftover in (target, partial):
        if _is_leftover(leftover):
            print(f"{leftover}: removed, an interrupted conversion had left it")
            if not _remove(leftover):
                raise ValueError(f"{leftover} cannot be removed: remove it by hand")
    if partial.is_dir() and not any(partial.iterdir()):
        partial.rmdir()
    if partial.exists():
        raise ValueError(f"{partial} is in the way: move it")
    partial.mkdir(parents=True)
    try:
        (partial / _MARK).touch()
        yield partial
        _sync_tree(partial, check)
        (partial / _MARK).unlink()
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
        _sync(target.absolute().parent)
    except BaseException:
        _remove(partial)
        raise


def _remove(top: Path) -> bool:
    """Deletes a folder, the mark last: what cannot be deleted is known for ours; whether it went.

    A thread that has not heard of the end may write into it meanwhile, so more than once.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE)
        try:
            for entry in list(top.iterdir()):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name != _MARK:
                    entry.unlink()
            (top / _MARK).unlink(missing_ok=True)
            top.rmdir()
            return True
        except OSError:
            if not top.exists():
                return True
            with contextlib.suppress(OSError):
                (top / _MARK).touch()
    return False


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


def _sync_tree(top: Path, check: Callable[[], object]) -> None:
    """Sends all of it to the disk: a rename may otherwise come before what it names."""
    for path in [*top.rglob("*"), top]:
        check()
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
