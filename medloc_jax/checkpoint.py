# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Saves and restores everything that a run needs, one folder a step: the one door to orbax.

`<directory>/<step>/` holds one orbax item for each named tree of arrays ("params", "optimizer") and
one JSON item, `host`, with what lives on the host (curriculum, data position, seed) and the metrics
of the step. A folder gets its final name only when all of it is written, so a killed save
leaves nothing that looks whole.

Trees are stored as nested dicts named by their paths, so that a tuple, a named tuple or an optax
state reads back into whatever structure the reader asks for, as long as the names agree.

Saving is synchronous: for the models of this repository it takes a tenth of a second, and an error
(a full disk) belongs to the step that caused it.

`save_blocks` and `open_item` write and read arrays block by block, for models of which not one
stacked array fits into memory: conversion goes through them.
"""

import contextlib
import dataclasses
import errno
import gc
import json
import logging
import math
import re
import shutil
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import future

HOST_ITEM = "host"  # the JSON item's name; no tree of arrays may take it
_TEMPORARY = ".orbax-checkpoint-tmp"  # orbax's own suffix of a folder that is being written
_REPLACED = ".replaced"  # a step that is being saved again
_DELETING = ".deleting"
_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# TensorStore turns the errno into text.
_DISK_FULL_TEXT = re.compile(
    rf"os_error_code='({'|'.join(map(str, _DISK_FULL))})'"
    "|No space left on device|File too large|Disk quota exceeded"
)

# An array is stored in chunks no larger than this, so that it can be read in parts. TensorStore
# holds a chunk in memory while it reads any of it.
CHUNK_BYTES = 64 << 20
_IN_FLIGHT_BYTES = 128 << 20  # of blocks that wait to be written
# Orbax's own zstd has no checksum of the values here, so that a flipped bit would be read as a
# weight. Gzip has one; without compression it is as fast, and a third larger for bfloat16.
_CHECKSUMMED = {"id": "gzip", "level": 0}

_log = logging.getLogger(__name__)


class CheckpointError(OSError):
    """A checkpoint that had to be written could not be."""


class MismatchError(ValueError):
    """A readable checkpoint holds another model or optimizer than the one asked for."""


class _UnreadableError(Exception):
    """A step folder that is damaged or incomplete; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What one step folder held.

    Attributes:
      step: the step it was saved at.
      arrays: the trees that were asked for, by item name, placed as asked.
      host_state: the JSON object given to `save`.
      metrics: the metrics given to `save`.
    """

    step: int
    arrays: dict[str, Any]
    host_state: dict[str, Any]
    metrics: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SaveResult:
    """What `save` did.

    Attributes:
      step: the step.
      saved: False if the disk was full; what was saved before is still there.
      seconds: wall time.
      num_bytes: size of the arrays before compression.
    """

    step: int
    saved: bool
    seconds: float
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Blocks:
    """An array that is written block by block.

    Attributes:
      shape: of the whole.
      dtype: of the whole.
      chunk_shape: what is stored, and later read, as one piece; at the upper edges it is cut off.
      blocks: yields (first index, block). The blocks cover the array once; each starts and ends at
        borders of chunks, or a chunk would be written twice.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk_shape: tuple[int, ...]
    blocks: Callable[[], Iterator[tuple[tuple[int, ...], np.ndarray]]]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole, before compression."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array of a checkpoint, of which any part can be read.

    Attributes:
      shape: of the whole.
      dtype: of the whole.
      chunk_shape: what is read as one piece, however little of it is asked for.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk_shape: tuple[int, ...]
    _name: str
    _store: Any

    def read(self, box: Sequence[tuple[int, int]]) -> np.ndarray:
        """Reads [start, stop) along each axis.

        Raises:
          ValueError: the checkpoint is damaged.
        """
        try:
            return self._store[tuple(slice(*bounds) for bounds in box)].read().result()
        except Exception as error:  # TensorStore raises anything.
            raise ValueError(
                f"{self._name} cannot be read ({_reason(error)}): copy the checkpoint again"
            ) from None


@dataclasses.dataclass(frozen=True)
class OpenedItem:
    """One tree of a step, opened but not read.

    Attributes:
      folder: the step's folder.
      step: the step it was saved at.
      arrays: by path, its names joined by dots.
      host_state: as in `Restored`.
    """

    folder: Path
    step: int
    arrays: dict[str, StoredArray]
    host_state: dict[str, Any]


class Checkpointer:
    """Writes the checkpoints of one run and reads them back. One writer a folder."""

    def __init__(self, directory: str | Path, *, keep_last: int, keep_best: int):
        """Makes the folder, and removes what killed saves have left in it.

        Args:
          directory: holds one folder a step.
          keep_last: how many of the newest steps stay, 1 or more.
          keep_best: how many stay for their `metrics["best"]` (higher is better), of all.

        Raises:
          ValueError: if keep_last < 1 or keep_best < 0.
        """
        if keep_last < 1 or keep_best < 0:
            raise ValueError(
                f"checkpoint.keep_last={keep_last} must be 1 or more and "
                f"checkpoint.keep_best={keep_best} 0 or more"
            )
        self.directory = Path(directory).absolute()
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._unreadable: set[int] = set()
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(self.directory)
        _sync("checkpoint_open")

    def steps(self) -> list[int]:
        """Returns the steps that have a folder, oldest first."""
        return _steps(self.directory)

    def save(
        self,
        step: int,
        arrays: Mapping[str, Any],
        host_state: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
        *,
        final: bool = False,
    ) -> SaveResult:
        """Writes one step and removes the steps that need not stay. Every process calls it.

        A disk without room is a warning: the run goes on, and the last good checkpoint stays. Only
        the full disk of a run with one process is handled so; with several, the processes that
        could write wait for the one that could not, until orbax gives up.

        Args:
          step: 0 or more. A folder this step already has is replaced.
          arrays: trees of arrays by item name; each can be restored without the others.
          host_state: what else a run needs, as JSON can hold it (tuples come back as lists).
          metrics: of this step; `metrics["best"]` takes part in keep_best unless absent or NaN.
          final: the run ends here, so that a warning would be too little.

        Raises:
          CheckpointError: if the disk is full and `final`.
          TypeError: if host_state is not JSON.
        """
        start = time.monotonic()
        trees = {name: _to_nested(tree) for name, tree in arrays.items()}
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
        host = _host(step, host_state, metrics or {}, trees)
        target = self.directory / str(step)
        replaced = target.with_name(target.name + _REPLACED)
        if jax.process_index() == 0 and target.exists():
            target.rename(replaced)
        _sync("checkpoint_replace")
        reason = _write(target, trees, host)
        if jax.process_index() == 0:
            if reason is None:
                self._unreadable.discard(step)
                _remove(replaced)
                self._remove_old_steps()
            else:
                _remove_leftovers(self.directory)  # also gives the replaced folder its name back
        _sync("checkpoint_saved")
        if reason is not None:
            free = shutil.disk_usage(self.directory).free
            message = (
                f"checkpoint of step {step} was not saved: {reason}; it needs about {num_bytes:,} "
                f"bytes, {free:,} are free in {self.directory}; steps still there: "
                f"{_comma(self.steps())}; make room, or raise the file size limit"
            )
            if final:
                raise CheckpointError(message)
            _log.warning("%s (the run goes on)", message)
        return SaveResult(step, reason is None, time.monotonic() - start, num_bytes)

    def restore(self, like: Mapping[str, Any], step: int | None = None) -> Restored | None:
        """Reads the newest step that can be read, or the one asked for. Every process calls it.

        A newer step that is damaged (truncated, an item missing, bad JSON) is named in a warning
        and passed over. A step that holds another tree is not: it means another model.

        Args:
          like: by item name, a tree of jax.ShapeDtypeStruct; each leaf comes back with its shape,
            dtype and sharding, whatever mesh it was saved on. Items not named are not read.
          step: only this one.

        Returns:
          The step, or None if the folder has no step at all and none was asked for.

        Raises:
          ValueError: if no step can be read, or the asked one cannot.
          MismatchError: names the first leaf that differs.
        """
        if step is None and not self.steps():
            return None
        return _restore_from(self.directory, like, step, self._unreadable, check_dtype=True)

    def close(self) -> None:
        """Ends the use of the folder; saving is synchronous, so nothing is left to wait for."""

    def _remove_old_steps(self) -> None:
        steps = self.steps()
        good = [step for step in steps if step not in self._unreadable]
        ranked = sorted((best, step) for step in good if (best := self._best(step)) is not None)
        keep = set(good[-self._keep_last :])
        keep |= {step for _, step in ranked[::-1][: self._keep_best]}
        # A damaged step is left alone until a good one is newer.
        keep |= {step for step in self._unreadable if step > good[-1]}
        for step in steps:
            if step not in keep:
                _remove(self.directory / str(step))

    def _best(self, step: int) -> float | None:
        try:
            best = _read_host(self.directory / str(step))["metrics"].get("best")
        except _UnreadableError:
            return None
        return best if isinstance(best, (int, float)) and math.isfinite(best) else None


def load_item(source: str | Path, item: str, like: Any) -> Any:
    """Reads one tree of a run that has ended, or is still going on: for init_from and evaluation.

    Args:
      source: a workdir, its checkpoints folder, or one step folder. In the first two the newest
        step that can be read is taken.
      item: name of the tree, such as "params".
      like: as in `Checkpointer.restore`; a leaf stored in another dtype is converted.

    Raises:
      ValueError: names the folder and what is wrong with it.
      MismatchError: names the first leaf that differs.
    """
    return load_items(source, {item: like}).arrays[item]


def load_items(source: str | Path, like: Mapping[str, Any]) -> Restored:
    """Like `load_item`, for several trees at once, with the step and the host state."""
    directory, steps = _find_steps(source)
    step = steps[0] if _is_step(Path(source)) else None
    return _restore_from(directory, like, step, set(), check_dtype=False)


def _find_steps(source: str | Path) -> tuple[Path, list[int]]:
    """The folder of steps, and those of them that `source` means: one, or all, oldest first."""
    source = Path(source).absolute()
    if _is_step(source):
        return source.parent, [int(source.name)]
    directory = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    steps = _steps(directory)
    if not steps:
        raise ValueError(
            f"{source} holds no checkpoint: give a workdir, its checkpoints folder, or one step"
        )
    return directory, steps


def _is_step(source: Path) -> bool:
    return source.absolute().name.isdigit() and (source / HOST_ITEM).is_dir()


def save_blocks(
    folder: str | Path, item: str, tree: Mapping[str, Any], host_state: Mapping[str, Any]
) -> None:
    """Writes a checkpoint of one tree, of which a few blocks are in memory at a time.

    It reads like any other. One process alone calls it.

    Args:
      folder: becomes the step's folder, named by its step, as `load_item` takes it.
      item: name of the tree.
      tree: nested dict of `Blocks`.
      host_state: as JSON can hold it.

    Raises:
      OSError: the disk is full.
      Exception: what `blocks` of the tree raised. Nothing is being written any more.
    """
    folder = Path(folder).absolute()
    host = _host(int(folder.name), host_state, {}, {item: tree})
    registry = ocp.type_handlers.create_type_handler_registry((Blocks, _BlocksHandler()))
    with _quiet():
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    handlers = {item: handler, HOST_ITEM: ocp.JsonCheckpointHandler()}
    reason = _write(folder, {item: tree}, host, handlers)
    if reason is not None:
        raise CheckpointError(f"{folder} could not be written: {reason}; make room")


def open_item(source: str | Path, item: str) -> OpenedItem:
    """Opens one tree to read it in parts. `source` is as in `load_item`.

    Raises:
      ValueError: names the folder and what is wrong with it.
    """
    directory, steps = _find_steps(source)
    reasons = []
    for step in reversed(steps):
        folder = directory / str(step)
        try:
            host = _read_host(folder)
            if not host["items"].get(item):
                raise _UnreadableError(f"it has no item {item!r}, only {_comma(host['items'])}")
            with _quiet():
                arrays = _open_arrays(folder / item)
            return OpenedItem(folder, step, arrays, host["host_state"])
        except _UnreadableError as error:
            reasons.append(f"step {step}: {error}")
            _log.warning("checkpoint %s cannot be read (%s)", folder, error)
    raise ValueError(f"no checkpoint in {directory} can be read ({'; '.join(reasons)})")


def is_checkpoint(source: str | Path) -> bool:
    """Whether `source` is a folder that `load_items` would read: not, say, Hugging Face's."""
    source = Path(source)
    folders = (source, source / "checkpoints")
    return (source / HOST_ITEM).is_dir() or any(_steps(folder) for folder in folders)


def _restore_from(
    directory: Path,
    like: Mapping[str, Any],
    step: int | None,
    unreadable: set[int],
    *,
    check_dtype: bool,
) -> Restored:
    """Tries the steps of a folder, newest first; adds the damaged ones to `unreadable`."""
    steps = _steps(directory)
    if step is not None:
        if step not in steps:
            raise ValueError(f"{directory} has no step {step}; it has {_comma(steps)}")
        steps = [step]
    reasons = []
    for candidate in reversed(steps):
        restored, reason = None, "another process could not read it"
        with _quiet():
            try:
                restored = _read_step(directory / str(candidate), candidate, like, check_dtype)
            except _UnreadableError as error:
                reason = str(error)
            if restored is None:
                gc.collect()  # abandoned reads complain when they are collected: here, unheard
        if _on_all_processes(restored is not None) and restored is not None:
            return restored
        unreadable.add(candidate)
        reasons.append(f"step {candidate}: {reason}")
        if candidate != steps[0]:
            _log.warning(
                "checkpoint %s cannot be read (%s); the one before it is tried",
                directory / str(candidate),
                reason,
            )
    raise ValueError(
        f"no checkpoint in {directory} can be read ({'; '.join(reasons)}): copy it again from "
        "where it came, or start the run in another workdir"
    )


def _read_step(folder: Path, step: int, like: Mapping[str, Any], check_dtype: bool) -> Restored:
    host = _read_host(folder)
    arrays = {}
    for name, tree in like.items():
        if name not in host["items"]:
            raise _UnreadableError(f"it has no item {name!r}, only {_comma(host['items'])}")
        arrays[name] = _read_tree(folder / name, tree, host["items"][name], check_dtype)
    return Restored(step, arrays, host["host_state"], host["metrics"])


def _read_host(folder: Path) -> dict[str, Any]:
    path = folder / HOST_ITEM / "metadata"
    try:
        host = json.loads(path.read_text())
        if not all(isinstance(host[key], dict) for key in ("host_state", "metrics", "items")):
            raise ValueError("not a record of medloc_jax")
        return host
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _UnreadableError(f"{path}: {_reason(error)}") from None


def _read_tree(folder: Path, like: Any, num_leaves: int, check_dtype: bool) -> Any:
    """Reads one item as the tree `like`."""
    named, treedef = jax.tree_util.tree_flatten_with_path(like)
    wanted = {_name(path): leaf for path, leaf in named}
    if not wanted or not num_leaves:
        if bool(wanted) != bool(num_leaves):
            raise MismatchError(
                f"checkpoint {folder} has {num_leaves} arrays, this run wants {len(wanted)}: it "
                "belongs to another model or optimizer; use that run's config, or another workdir"
            )
        return like
    handler = ocp.PyTreeCheckpointHandler()
    try:
        stored_tree: Any = handler.metadata(epath.Path(folder)).tree
    except Exception as error:  # orbax and TensorStore raise anything, Exception itself included.
        raise _UnreadableError(f"{folder.name}: {_reason(error)}") from None
    stored = {
        _name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(stored_tree)[0]
    }
    _check_same_leaves(folder, stored, wanted, check_dtype)
    nested = _nest(wanted)
    try:
        restored = handler.restore(
            epath.Path(folder),
            args=ocp.args.PyTreeRestore(
                item=nested, restore_args=jax.tree.map(_restore_args, nested)
            ),
        )
    except Exception as error:  # As above.
        raise _UnreadableError(f"{folder.name}: {_reason(error)}") from None
    by_name = {
        _name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(restored)[0]
    }
    return jax.tree.unflatten(treedef, [by_name[name] for name in wanted])


def _check_same_leaves(
    folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], check_dtype: bool
) -> None:
    for name in [*wanted, *stored]:
        if name not in stored:
            what = "is wanted by this run and not in the checkpoint"
        elif name not in wanted:
            what = "is in the checkpoint and not wanted by this run"
        elif tuple(stored[name].shape) != tuple(wanted[name].shape):
            what = f"has shape {tuple(stored[name].shape)}, this run wants {wanted[name].shape}"
        elif check_dtype and np.dtype(stored[name].dtype) != np.dtype(wanted[name].dtype):
            what = f"has dtype {stored[name].dtype}, this run wants {wanted[name].dtype}"
        else:
            continue
        raise MismatchError(
            f"checkpoint {folder}: {name} {what}: it belongs to another model or optimizer; use "
            "that run's config, or another workdir"
        )


def _restore_args(leaf: Any) -> ocp.ArrayRestoreArgs:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)


class _BlocksHandler(ocp.type_handlers.NumpyHandler):
    """Stores `Blocks` as orbax stores a numpy array."""

    async def serialize(
        self,
        values: Sequence[Any],
        infos: Sequence[Any],
        args: Sequence[Any] | None = None,
    ) -> Sequence[Any]:
        """Starts the writing."""
        # Not before orbax has made the folder: this future waits for it.
        writing = future.CommitFutureAwaitingContractedSignals(
            self._write_blocks(values, infos), name="blocks"
        )
        return [writing]

    async def _write_blocks(self, values: Sequence[Any], infos: Sequence[Any]) -> None:
        writes: deque[tuple[int, Any]] = deque()
        try:
            for value, info in zip(values, infos, strict=True):
                await info.await_path_creation()
                store = await _create(value, info)
                for start, block in value.blocks():
                    box = tuple(slice(a, a + n) for a, n in zip(start, block.shape, strict=True))
                    write = store[box].write(block, can_reference_source_data_indefinitely=True)
                    writes.append((block.nbytes, write))
                    while len(writes) > 1 and sum(size for size, _ in writes) > _IN_FLIGHT_BYTES:
                        await writes.popleft()[1]
            while writes:
                await writes.popleft()[1]
        finally:
            # TensorStore's threads know nothing of an exception: without this they would go on
            # writing into a folder that the caller deletes.
            for _, write in writes:
                with contextlib.suppress(Exception):
                    await write


async def _create(value: Blocks, info: Any) -> Any:
    """Makes the array that the blocks will fill."""
    spec = ocp.type_handlers.get_json_tspec_write(
        info,
        use_ocdbt=True,
        global_shape=value.shape,
        local_shape=value.chunk_shape,
        dtype=value.dtype,
        process_index=jax.process_index(),
    )
    spec["metadata"]["compressor"] = _CHECKSUMMED
    return await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)


def _open_arrays(folder: Path) -> dict[str, StoredArray]:
    try:
        tree: Any = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder)).tree
        context = ocp.type_handlers.get_ts_context()
        arrays = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            info = ocp.type_handlers.ParamInfo(
                name=leaf.name, parent_dir=epath.Path(folder), ts_context=context
            )
            spec = ocp.type_handlers.get_json_tspec_read(
                info, use_ocdbt=ocp.type_handlers.is_ocdbt_checkpoint(epath.Path(folder))
            )
            store = ts.open(ts.Spec(spec), open=True, context=context).result()
            name = _name(path).replace("/", ".")
            arrays[name] = StoredArray(
                tuple(store.shape),
                np.dtype(leaf.dtype),
                tuple(int(size or 0) for size in store.chunk_layout.read_chunk.shape or ()),
                f"{folder}: {name}",
                store,
            )
        return arrays
    except Exception as error:  # orbax and TensorStore raise anything, Exception itself included.
        raise _UnreadableError(f"{folder.name}: {_reason(error)}") from None


def _host(
    step: int, host_state: Mapping[str, Any], metrics: Mapping[str, Any], trees: Mapping[str, Any]
) -> dict[str, Any]:
    """What the JSON item of a step holds."""
    content = {
        "step": step,
        "host_state": dict(host_state),
        "metrics": dict(metrics),
        # orbax refuses an empty tree (a model without frozen parameters): it is only recorded here.
        "items": {name: len(jax.tree.leaves(tree)) for name, tree in trees.items()},
    }
    return json.loads(json.dumps(content))


def _save_args(leaf: Any) -> ocp.SaveArgs:
    """Small arrays are stored whole, large ones in chunks, and stacked ones layer by layer."""
    if leaf.nbytes <= CHUNK_BYTES:
        return ocp.SaveArgs()
    stacked = len(leaf.shape) > 2
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else ())


def _write(
    target: Path,
    trees: Mapping[str, Any],
    host: dict[str, Any],
    handlers: Mapping[str, Any] | None = None,
) -> str | None:
    """Writes one step folder; returns why not, if the disk is full."""
    items: dict[str, Any] = {
        name: ocp.args.PyTreeSave(tree, save_args=jax.tree.map(_save_args, tree))
        for name, tree in trees.items()
        if jax.tree.leaves(tree)
    }
    items[HOST_ITEM] = ocp.args.JsonSave(host)
    reason = None
    with _quiet():
        try:
            composite = ocp.CompositeCheckpointHandler(**(handlers or {}))
            with ocp.Checkpointer(composite) as checkpointer:
                checkpointer.save(epath.Path(target), args=ocp.args.Composite(**items))
        except Exception as error:  # TensorStore reports a full disk as a ValueError.
            _await_writers()
            if not _is_disk_full(error):
                raise
            reason = f"the disk is full or the file too large ({_reason(error)})"
        if reason is not None:
            gc.collect()  # abandoned writes complain when they are collected: here, unheard
    return reason


def _await_writers() -> None:
    """Waits for the other items' writers, which log their tracebacks, too."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            threading.Thread.join(thread, timeout=60)  # orbax's own raises


def _to_nested(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return _nest(
        {_name(path): x if isinstance(x, jax.Array) else np.asarray(x) for path, x in leaves}
    )


def _nest(by_name: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, leaf in by_name.items():
        *parents, last = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return nested


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "value"


def _steps(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    names = [entry.name for entry in directory.iterdir() if entry.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def _remove(folder: Path) -> None:
    """Deletes a folder that is first given a name that no reader takes for a checkpoint."""
    if folder.exists():
        doomed = folder.with_name(folder.name + _DELETING)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _remove_leftovers(directory: Path) -> None:
    for entry in list(directory.iterdir()):
        if _TEMPORARY in entry.name or entry.name.endswith(_DELETING):
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name.endswith(_REPLACED):
            original = entry.with_name(entry.name.removesuffix(_REPLACED))
            if original.exists():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.rename(original)


def _is_disk_full(error: BaseException) -> bool:
    return any(
        (isinstance(cause, OSError) and cause.errno in _DISK_FULL)
        or _DISK_FULL_TEXT.search(str(cause)) is not None
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from _causes(inner)
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str:
    """The root cause in one short line."""
    *_, root = _causes(error)
    lines = str(root).strip().splitlines() or [""]
    text = f"{type(root).__name__}: {lines[0]}"
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-97:]}"


def _comma(values: Any) -> str:
    return ", ".join(str(value) for value in values) or "none"


def _sync(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"medloc_jax_{name}")


def _on_all_processes(ok: bool) -> bool:
    """Whether every process says so; without it, one would resume at another step."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps orbax's chatter and its threads' tracebacks off the terminal; the exception stays."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    hook = sys.unraisablehook

    def ignore(_: types.SimpleNamespace) -> None: ...

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = ignore  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
