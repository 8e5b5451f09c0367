# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One step folder on its way to a disk or an object store, by all processes of a run.

Orbax writes in the background; `Write.wait` waits for it, at once for a synchronous save. How it
ended is agreed between the processes through JAX's coordination service, from a thread of its own:
no device takes part, so that training goes on, and no process waits for one that has failed.
Orbax's own barrier would: for 20 minutes, after which nobody knows why.
"""

import contextlib
import errno
import functools
import gc
import itertools
import logging
import os
import re
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from medloc_jax import storage

# The last file of a folder in an object store, which has no rename: without it nothing is there.
COMMITTED = "commit_success.txt"

# An array is stored in chunks no larger than this, so that it can be read in parts. TensorStore
# holds a chunk in memory while it reads any of it.
CHUNK_BYTES = 64 << 20

_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# TensorStore turns the errno into text.
_DISK_FULL_TEXT = re.compile(
    rf"os_error_code='({'|'.join(map(str, _DISK_FULL))})'"
    "|No space left on device|File too large|Disk quota exceeded"
)
_TIMEOUT_SECONDS = 1200  # of a save, as orbax has it
_PROBE_BYTES = 64 << 10
_saves = itertools.count()  # every process counts the same


class CheckpointError(OSError):
    """A checkpoint that had to be written could not be."""


class _AnotherProcessError(Exception):
    """Another process could not write its part; the message says which and why."""


class Write:
    """One step folder that is being written. Every process makes one, and waits for it."""

    def __init__(
        self,
        target: Any,
        trees: Mapping[str, Any],
        host: tuple[str, Mapping[str, Any]],
        *,
        handlers: Mapping[str, Any] | None = None,
        afterwards: Callable[[str | None], None] = lambda reason: None,
    ):
        """Starts to write; when this returns, the arrays may be donated.

        Args:
          target: the step's folder, which is not there yet.
          trees: nested dicts of arrays by item name.
          host: name and content of the JSON item.
          handlers: of items that orbax has no way of its own for.
          afterwards: called on the first process when all have ended, with the reason why the
            folder was not written, or None. Nobody returns from `wait` before it has.
        """
        self._error: BaseException | None = None
        self._reason: str | None = None
        self._afterwards = afterwards
        self._saver: Any = None
        self._agreement = _agreement()
        items: dict[str, Any] = {
            name: ocp.args.PyTreeSave(tree, save_args=jax.tree.map(_save_args, tree))
            for name, tree in trees.items()
            if jax.tree.leaves(tree)
        }
        items[host[0]] = ocp.args.JsonSave(host[1])
        # Until the thread below ends: orbax's own threads may complain at any time.
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(quiet())
        try:
            self._saver = _saver(target, handlers or {}, self._agreement)
            self._saver.save(orbax_path(target), args=ocp.args.Composite(**items))
        except Exception as error:
            self._error = error
        self._thread = threading.Thread(target=self._finish, name="checkpoint")
        self._thread.start()

    def wait(self) -> str | None:
        """Waits for all processes; returns why the folder was not written, if a disk is full.

        Raises:
          Exception: what else went wrong; CheckpointError where it was on another process.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._reason

    def _finish(self) -> None:
        """Waits for orbax, hears how the others did, and tidies up; raises nothing."""
        with self._quiet:
            if self._error is None:
                try:
                    self._saver.wait_until_finished()
                except BaseException as error:
                    self._error = error
            self._judge()
            try:
                self._agree()
            except Exception as error:
                self._error = self._error or error
            if self._saver is not None:
                with contextlib.suppress(Exception):
                    self._saver.close()
                self._saver = None
            if self._error is not None or self._reason is not None:
                gc.collect()  # abandoned writes complain when they are collected: here, unheard

    def _judge(self) -> None:
        """A full disk becomes a reason; what another process told, too."""
        error = self._error
        if error is None:
            return
        _await_writers()
        other = next((e for e in causes(error) if isinstance(e, _AnotherProcessError)), None)
        if other is not None:
            self._error = None
            kind, _, told = str(other).partition(" ")
            if kind == "full":
                self._reason = told
            else:
                self._error = CheckpointError(told)
            return
        # TensorStore reports a full disk as a ValueError.
        if is_disk_full(error):
            self._error = None
            self._reason = on_process(jax.process_index()) + _full(error)
        if self._agreement is not None:
            kind = "full" if self._error is None else "error"
            text = f"{on_process(jax.process_index())}could not write ({reason(error)})"
            # Where the first process is gone there is nobody to tell.
            with contextlib.suppress(Exception):
                self._agreement.fail(f"{kind} {self._reason or text}")

    def _agree(self) -> None:
        """Tidies up on the first process, once nobody writes any more."""
        if self._agreement is None:
            self._tidy_up()
        else:
            self._agreement.gather("ended", self._tidy_up)

    def _tidy_up(self) -> None:
        if self._error is None:
            self._afterwards(self._reason)


def _agreement() -> "Agreement | None":
    """Of the next save; None where there is nobody to agree with."""
    if jax.process_count() == 1:
        return None
    number = next(_saves)
    agreement = Agreement(f"save/{number}")
    # Nobody asks any more about the save before the last one: all have ended the last one.
    agreement.forget(f"save/{number - 2}")
    return agreement


class Agreement:
    """What processes tell each other by name, without their devices; from any thread."""

    def __init__(self, name: str):
        """Takes a name that is the same on all processes, and of nothing else."""
        # JAX offers its key-value store by no public name; orbax takes it from here, too.
        from jax._src import distributed

        self._client: Any = distributed.global_state.client
        self._name = f"medloc_jax/{name}"
        self._process, self._count = jax.process_index(), jax.process_count()

    def fail(self, reason: str) -> None:
        """Tells all who wait, or will, that there is nothing to wait for."""
        self._client.key_value_set(f"{self._name}/failed", reason, allow_overwrite=True)

    def forget(self, name: str) -> None:
        """Removes what was told under another name."""
        if self._process == 0:
            self._client.key_value_delete(f"medloc_jax/{name}/")

    def barrier(self, *, key: str, timeout_ms: int) -> None:
        """Waits for all processes. Orbax calls it.

        Raises:
          _AnotherProcessError: one has failed.
        """
        self._meet(key, timeout_ms / 1000, lambda: None, heed_failure=True)

    def gather(self, key: str, then: Callable[[], None]) -> None:
        """Waits for all processes, those that have failed too, and for `then` on the first."""
        self._meet(key, _TIMEOUT_SECONDS, then, heed_failure=False)

    def _meet(
        self, key: str, seconds: float, then: Callable[[], None], *, heed_failure: bool
    ) -> None:
        here, opened = f"{self._name}/{key}/", f"{self._name}/{key}.open"
        self._client.key_value_set(f"{here}{self._process}", "here", allow_overwrite=True)
        end, pause = time.monotonic() + seconds, 0.002
        while True:
            if heed_failure and (told := self._get(f"{self._name}/failed")) is not None:
                raise _AnotherProcessError(told)
            if self._process == 0 and len(self._client.key_value_dir_get(here)) == self._count:
                try:
                    then()
                finally:  # or the others would wait for what will not come
                    self._client.key_value_set(opened, "open", allow_overwrite=True)
                return
            if self._process != 0 and self._get(opened) is not None:
                return
            if time.monotonic() > end:
                raise TimeoutError(f"processes have not met at {key} within {seconds:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, 0.25)

    def _get(self, key: str) -> str | None:
        try:
            return self._client.key_value_try_get(key)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise


def find_full_disk(directory: Any) -> str | None:
    """Tries the disks of all processes, if there are several, with a small file each.

    A disk that has no room at all is so found before any process begins to write.

    Returns:
      What is wrong, and with which process; the same on all. None: there is room.
    """
    if jax.process_count() == 1 or storage.is_remote(directory):
        return None
    error = _probe(directory)
    full = np.flatnonzero(multihost_utils.process_allgather(np.asarray(error is not None)))
    if not full.size:
        return None
    return on_process(int(full[0])) + ("the disk is full" if error is None else _full(error))


def _probe(directory: Any) -> OSError | None:
    """Why a small file cannot be written, if the disk is full."""
    file = directory / f".probe-{jax.process_index()}"
    try:
        file.write_bytes(b"\0" * _PROBE_BYTES)
    except OSError as error:
        if not is_disk_full(error):
            raise
        return error
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    return None


def on_process(index: int) -> str:
    """How a message begins that is about one of several processes."""
    return f"process {index}: " if jax.process_count() > 1 else ""


def _full(error: BaseException) -> str:
    return f"the disk is full or the file too large ({reason(error)})"


def orbax_path(folder: storage.PathLike) -> epath.Path:
    """The folder as orbax wants it."""
    if os.fspath(folder).startswith("s3://"):
        _teach_s3()
    return epath.Path(storage.absolute(folder))


def _saver(target: Any, handlers: Mapping[str, Any], agreement: Agreement | None) -> Any:
    """Orbax's writer of one folder."""
    # Folders are made before `save` returns: in the background, processes would wait for the
    # first one's signal, whatever has become of it.
    later = ocp.options.AsyncOptions(
        timeout_secs=_TIMEOUT_SECONDS,
        barrier_sync_fn=None if agreement is None else agreement.barrier,
        create_directories_asynchronously=False,
    )
    whole: dict[str, Any] = {}
    if storage.is_remote(target):
        mode = ocp.options.AtomicityMode.COMMIT_FILE
        whole["atomicity_options"] = ocp.options.AtomicityOptions(mode=mode)
    options = ocp.CompositeOptions(async_options=later, **whole)
    composite = ocp.CompositeCheckpointHandler(composite_options=options, **handlers)
    return ocp.AsyncCheckpointer(composite, async_options=later, **whole)


def _save_args(leaf: Any) -> ocp.SaveArgs:
    """Small arrays are stored whole, large ones in chunks, and stacked ones layer by layer."""
    if leaf.nbytes <= CHUNK_BYTES:
        return ocp.SaveArgs()
    stacked = len(leaf.shape) > 2
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else ())


@functools.cache
def _teach_s3() -> None:
    """Lets orbax's arrays lie on s3://, which TensorStore reads and writes and orbax does not know.

    Orbax 0.12 takes every path that is not gs:// for one of this machine. All its specifications of
    a store are made by one function; for s3:// its specification for gs:// is translated.

    Raises:
      ValueError: this orbax has no such function.
    """
    from orbax.checkpoint._src.serialization import tensorstore_utils

    name = "build_kvstore_tspec"
    original = getattr(tensorstore_utils, name, None)
    if original is None:
        raise ValueError(
            "checkpoints on s3:// need an orbax-checkpoint like 0.12.8: install that one, or give "
            "a gs:// or local workdir"
        )

    def build(directory: str, *args: Any, **options: Any) -> Any:
        scheme, _, rest = str(directory).partition(":")
        if scheme != "s3":
            return original(directory, *args, **options)
        return _s3_specification(original(f"gs://{rest.lstrip('/')}", *args, **options))

    setattr(tensorstore_utils, name, build)


def _s3_specification(node: Any) -> Any:
    """The same specification with TensorStore's s3 driver for its gcs one.

    TensorStore reads none of the variables that say where and as whom, except by default chains.
    """
    if not isinstance(node, dict):
        return node
    node = {key: _s3_specification(value) for key, value in node.items()}
    if node.get("driver") not in ("gcs", "gcs_grpc"):
        return node
    node["driver"] = "s3"
    environment = os.environ
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if endpoint:
        node["endpoint"] = endpoint
        region = region or "us-east-1"  # what such servers call themselves
    if region:
        node["aws_region"] = region
    if environment.get("AWS_ACCESS_KEY_ID"):
        node["aws_credentials"] = {"type": "environment"}
    return node


def _await_writers() -> None:
    """Waits for the other items' writers, which log their tracebacks, too."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            threading.Thread.join(thread, timeout=60)  # orbax's own raises


def is_disk_full(error: BaseException) -> bool:
    """Whether that, or anything behind it, is a disk without room."""
    return any(
        (isinstance(cause, OSError) and cause.errno in _DISK_FULL)
        or _DISK_FULL_TEXT.search(str(cause)) is not None
        for cause in causes(error)
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what is behind it; the root comes last."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from causes(inner)
        error = error.__cause__ or error.__context__


def reason(error: BaseException) -> str:
    """The root cause in one short line."""
    *_, root = causes(error)
    lines = str(root).strip().splitlines() or [""]
    text = f"{type(root).__name__}: {lines[0]}"
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-97:]}"


# Who is quiet now, and what was before the first of them: a save in the background and a read in
# the foreground may overlap.
_quiet_lock = threading.Lock()
_quiet_count = 0
_before: dict[str, Any] = {}
_LOUD = ("absl", "asyncio")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps orbax's chatter and its threads' tracebacks off the terminal; the exception stays."""
    global _quiet_count

    def ignore(_: types.SimpleNamespace) -> None: ...

    with _quiet_lock:
        if not _quiet_count:
            _before["hook"] = sys.unraisablehook
            _before["levels"] = [logging.getLogger(name).level for name in _LOUD]
            sys.unraisablehook = ignore  # type: ignore[assignment]
            for name in _LOUD:
                logging.getLogger(name).setLevel(logging.CRITICAL)
        _quiet_count += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_count -= 1
            if not _quiet_count:
                sys.unraisablehook = _before["hook"]
                for name, level in zip(_LOUD, _before["levels"], strict=True):
                    logging.getLogger(name).setLevel(level)
