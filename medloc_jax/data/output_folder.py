# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The folder that `medloc prepare` writes: there when it is whole, and written by one at a time.

OUT is written as .OUT.unfinished beside it, under a lock on .OUT.lock. The system lets go of a lock
when its process ends, however it ends: what a killed run has left is told from what another run is
writing now, and cleared away.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

STATISTICS_NAME = "statistics.json"
# In statistics.json; a folder without it was not written here, and is never replaced.
WRITTEN_BY = "medloc prepare"


def check_target(out: Path, source: Path, *, overwrite: bool) -> None:
    """Refuses a folder that must not be written, before any work is done.

    Args:
        out: the folder to write.
        source: the data set, which must lie beside it.
        overwrite: whether a folder that was written here may be replaced.

    Raises:
        ValueError: with the cure.
    """
    out, source = out.resolve(), source.resolve()
    if out == source or out in source.parents or source in out.parents:
        raise ValueError(
            f"--out={out} and --source={source} lie in each other: give a folder beside the source"
        )
    _check_replaceable(out, overwrite=overwrite)


def _check_replaceable(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not _is_ours(out):
        raise ValueError(f"{out}: is not empty and was not written here: give another folder")
    if not overwrite:
        raise ValueError(f"{out}: holds a data set already: give another folder, or --overwrite")


@contextlib.contextmanager
def new_folder(out: Path, *, overwrite: bool, say: Callable[[str], None]) -> Iterator[Path]:
    """A folder to write into, beside `out`, which it becomes when the block ends without error.

    Args:
        out: the folder to write; nobody else can write it while the block runs.
        overwrite: whether a folder that was written here may be replaced.
        say: is told what was cleared away of a run that was killed.

    Raises:
        ValueError: `out` must not be replaced, or another process is writing it.
    """
    out = out.resolve()
    folder, replaced = _beside(out, "unfinished"), _beside(out, "replaced")
    with _parents(out), _locked(_beside(out, "lock"), out):
        if replaced.exists() and not out.exists():  # killed between the two renames below
            os.replace(replaced, out)
            say(f"{out}: put back; a run that was stopped had moved it to {replaced.name}")
        _check_replaceable(out, overwrite=overwrite)
        for left_over in (folder, replaced):
            if left_over.exists():
                shutil.rmtree(left_over)
                say(f"{left_over}: removed; a run that was stopped had left it")
        folder.mkdir()
        try:
            yield folder
            if out.exists() and any(out.iterdir()):
                os.replace(out, replaced)
            os.replace(folder, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if out.exists():
                shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def _parents(out: Path) -> Iterator[None]:
    """Makes the folders that `out` lies in, and removes those again that stay empty."""
    made = [parent for parent in out.parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for parent in made:
                parent.rmdir()


@contextlib.contextmanager
def _locked(path: Path, out: Path) -> Iterator[None]:
    """Holds the lock on a file that is there as long as the lock is held, or its holder killed."""
    import fcntl  # here: there is none on Windows, where the readers work all the same

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode(errors="replace")
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise ValueError(
                    f"{out}: process {holder or '?'} is writing it now: wait until it is done, or "
                    "give another folder"
                ) from None
            raise ValueError(
                f"{path}: cannot be locked on this file system ({error.strerror}): write to a "
                "local folder and move it there"
            ) from error
        if _is_at(descriptor, path):
            break
        # Its holder has removed the file between our opening and our locking it.
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock is let go: the next one makes its own
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _is_ours(folder: Path) -> bool:
    try:
        found = json.loads((folder / STATISTICS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("written_by") == WRITTEN_BY


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f".{out.name}.{what}")
