# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Saves and restores everything that a run needs, one folder a step: the one door to orbax.

`<directory>/<step>/` holds one orbax item for each named tree of arrays ("params", "optimizer") and
one JSON item, `host`, with what lives on the host (curriculum, data position, seed) and the metrics
of the step. A folder gets its final name only when all of it is written, so a killed save
leaves nothing that looks whole.

Trees are stored as nested dicts named by their paths, so that a tuple, a named tuple or an optax
state reads back into whatever structure the reader asks for, as long as the names agree.

Saving is synchronous, or in the background: then a save that is due waits for the one before it,
the last one of a run is waited for, and what goes wrong is told with the step that it belongs to
(checkpoint_write.py has how).

The folder may lie in an object store (gs://, s3://). Nothing can be renamed there: a step is there
when its last file, COMMITTED, is.

`save_blocks` and `open_item` write and read arrays block by block, for models of which not one
stacked array fits into memory: conversion goes through them.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.experimental import multihost_utils
from orbax.checkpoint import future

from medloc_jax import checkpoint_write, storage
from medloc_jax.checkpoint_write import CheckpointError as CheckpointError

HOST_ITEM = "host"  # the JSON item's name; no tree of arrays may take it
_TEMPORARY = ".orbax-checkpoint-tmp"  # orbax's own suffix of a folder that is being written
_REPLACED = ".replaced"  # a step that is being saved again
_DELETING = ".deleting"
_IN_FLIGHT_BYTES = 128 << 20  # of blocks that wait to be written
# Orbax's own zstd has no checksum of the values here, so that a flipped bit would be read as a
# weight. Gzip has one; without compression it is as fast, and a third larger for bfloat16.
_CHECKSUMMED = {"id": "gzip", "level": 0}

_log = logging.getLogger(__name__)


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
      saved: False if the disk was full, when what was saved before is still there; None while the
        save goes on in the background.
      seconds: wall time that the caller waited.
      num_bytes: size of the arrays before compression.
    """

    step: int
    saved: bool | None
    seconds: float
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A save that has begun."""

    step: int
    num_bytes: int
    final: bool
    write: checkpoint_write.Write


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
            reason = checkpoint_write.reason(error)
            raise ValueError(
                f"{self._name} cannot be read ({reason}): copy the checkpoint again"
            ) from None


@dataclasses.dataclass(frozen=True)
class OpenedItem:
    """One tree of a step, opened but not read.

    Attributes:
      folder: the step's folder, as `storage.path` gives it.
      step: the step it was saved at.
      arrays: by path, its names joined by dots.
      host_state: as in `Restored`.
    """

    folder: Any
    step: int
    arrays: dict[str, StoredArray]
    host_state: dict[str, Any]


class Checkpointer:
    """Writes the checkpoints of one run and reads them back. One writer a folder."""

    def __init__(
        self,
        directory: storage.PathLike,
        *,
        keep_last: int,
        keep_best: int,
        asynchronous: bool = False,
    ):
        """Makes the folder, and removes what killed saves have left in it.

        Args:
          directory: holds one folder a step.
          keep_last: how many of the newest steps stay, 1 or more.
          keep_best: how many stay for their `metrics["best"]` (higher is better), of all.
          asynchronous: `save` returns when the arrays are copied to the host, and the writing goes
            on; the host needs room for the copy.

        Raises:
          ValueError: if keep_last < 1 or keep_best < 0.
        """
        if keep_last < 1 or keep_best < 0:
            raise ValueError(
                f"checkpoint.keep_last={keep_last} must be 1 or more and "
                f"checkpoint.keep_best={keep_best} 0 or more"
            )
        self.directory = storage.absolute(directory)
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._asynchronous = asynchronous
        self._pending: _Pending | None = None
        self._unreadable: set[int] = set()
        if jax.process_index() == 0:
            storage.make_folder(self.directory)
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

        A save that is still going on is waited for first, and what it has to say is said now.

        A disk without room, of any of the processes, is a warning: the run goes on, and the last
        good checkpoint stays.

        Args:
          step: 0 or more. A folder this step already has is replaced.
          arrays: trees of arrays by item name; each can be restored without the others. Those of
            JAX may be donated when this returns.
          host_state: what else a run needs, as JSON can hold it (tuples come back as lists).
          metrics: of this step; `metrics["best"]` takes part in keep_best unless absent or NaN.
          final: the run ends here, so that a warning would be too little; it is waited for.

        Raises:
          CheckpointError: if a disk is full and `final`; or a save in the background has failed,
            with its step.
          TypeError: if host_state is not JSON.
        """
        start = time.monotonic()
        self.wait()
        trees = {name: _to_nested(tree) for name, tree in arrays.items()}
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
        host = _host(step, host_state, metrics or {}, trees)
        if (full := checkpoint_write.find_full_disk(self.directory)) is not None:
            self._not_saved(step, num_bytes, full, final)
            return SaveResult(step, False, time.monotonic() - start, num_bytes)
        target = self.directory / str(step)
        if jax.process_index() == 0:
            _put_aside(target)
        _sync("checkpoint_replace")
        write = checkpoint_write.Write(
            target,
            trees,
            (HOST_ITEM, host),
            afterwards=lambda reason: self._tidy_up(step, reason),
        )
        self._pending = _Pending(step, num_bytes, final, write)
        saved = None
        if final or not self._asynchronous:
            saved = self.wait()
        return SaveResult(step, saved, time.monotonic() - start, num_bytes)

    def wait(self) -> bool | None:
        """Waits for a save that is going on; returns whether it was saved, None if there is none.

        Raises:
          CheckpointError: as `save`.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        try:
            reason = pending.write.wait()
        except Exception as error:
            if pending.final or not self._asynchronous:
                raise
            raise CheckpointError(
                f"checkpoint of step {pending.step} was not saved: {checkpoint_write.reason(error)}"
            ) from error
        if reason is not None:
            self._not_saved(pending.step, pending.num_bytes, reason, pending.final)
        return reason is None

    def _tidy_up(self, step: int, reason: str | None) -> None:
        """What the first process does when a save has ended."""
        if reason is None:
            self._unreadable.discard(step)
            replaced = _replaced(self.directory / str(step))
            with _warned(replaced):
                _remove(replaced)
            with _warned(self.directory):
                self._remove_old_steps()
        else:
            _remove_leftovers(self.directory)  # also gives the replaced folder its name back

    def _not_saved(self, step: int, num_bytes: int, reason: str, final: bool) -> None:
        room = ""
        if not storage.is_remote(self.directory):
            room = f", {shutil.disk_usage(self.directory).free:,} are free in {self.directory}"
        message = (
            f"checkpoint of step {step} was not saved: {reason}; it needs about {num_bytes:,} "
            f"bytes{room}; steps still there: {_comma(self.steps())}; make room, or raise the file "
            "size limit"
        )
        if final:
            raise CheckpointError(message)
        # One of many processes need not repeat what the first one says, or whose disk it is.
        me = jax.process_index()
        if me == 0 or reason.startswith(checkpoint_write.on_process(me)):
            _log.warning("%s (the run goes on)", message)

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
        self.wait()
        if step is None and not self.steps():
            return None
        return _restore_from(self.directory, like, step, self._unreadable, check_dtype=True)

    def close(self) -> None:
        """Ends the use of the folder, when a save that is going on has ended.

        Raises:
          CheckpointError: as `save`.
        """
        self.wait()

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
                with _warned(self.directory / str(step)):
                    _remove(self.directory / str(step))

    def _best(self, step: int) -> float | None:
        try:
            best = _read_host(self.directory / str(step))["metrics"].get("best")
        except _UnreadableError:
            return None
        return best if isinstance(best, (int, float)) and math.isfinite(best) else None


def load_item(source: storage.PathLike, item: str, like: Any) -> Any:
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


def load_items(source: storage.PathLike, like: Mapping[str, Any]) -> Restored:
    """Like `load_item`, for several trees at once, with the step and the host state."""
    directory, steps = _find_steps(source)
    step = steps[0] if _is_step(storage.absolute(source)) else None
    return _restore_from(directory, like, step, set(), check_dtype=False)


def _find_steps(source: storage.PathLike) -> tuple[Any, list[int]]:
    """The folder of steps, and those of them that `source` means: one, or all, oldest first."""
    home = storage.absolute(source)
    if _is_step(home):
        return home.parent, [int(home.name)]
    directory = home / "checkpoints" if (home / "checkpoints").is_dir() else home
    steps = _steps(directory)
    if not steps:
        raise ValueError(
            f"{source} holds no checkpoint: give a workdir, its checkpoints folder, or one step"
        )
    return directory, steps


def _is_step(source: Any) -> bool:
    return source.name.isdigit() and (source / HOST_ITEM).is_dir()


def save_blocks(
    folder: storage.PathLike, item: str, tree: Mapping[str, Any], host_state: Mapping[str, Any]
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
    target = storage.absolute(folder)
    host = _host(int(target.name), host_state, {}, {item: tree})
    registry = ocp.type_handlers.create_type_handler_registry((Blocks, _BlocksHandler()))
    with checkpoint_write.quiet():
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    handlers = {item: handler, HOST_ITEM: ocp.JsonCheckpointHandler()}
    reason = checkpoint_write.Write(
        target, {item: tree}, (HOST_ITEM, host), handlers=handlers
    ).wait()
    if reason is not None:
        raise CheckpointError(f"{folder} could not be written: {reason}; make room")


def open_item(source: storage.PathLike, item: str) -> OpenedItem:
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
            with checkpoint_write.quiet():
                arrays = _open_arrays(folder / item)
            return OpenedItem(folder, step, arrays, host["host_state"])
        except _UnreadableError as error:
            reasons.append(f"step {step}: {error}")
            _log.warning("checkpoint %s cannot be read (%s)", folder, error)
    raise ValueError(f"no checkpoint in {directory} can be read ({'; '.join(reasons)})")


def is_checkpoint(source: storage.PathLike) -> bool:
    """Whether `source` is a folder that `load_items` would read: not, say, Hugging Face's."""
    home = storage.path(source)
    folders = (home, home / "checkpoints")
    return (home / HOST_ITEM).is_dir() or any(_steps(folder) for folder in folders)


def _restore_from(
    directory: Any,
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
        with checkpoint_write.quiet():
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


def _read_step(folder: Any, step: int, like: Mapping[str, Any], check_dtype: bool) -> Restored:
    host = _read_host(folder)
    arrays = {}
    for name, tree in like.items():
        if name not in host["items"]:
            raise _UnreadableError(f"it has no item {name!r}, only {_comma(host['items'])}")
        arrays[name] = _read_tree(folder / name, tree, host["items"][name], check_dtype)
    return Restored(step, arrays, host["host_state"], host["metrics"])


def _read_host(folder: Any) -> dict[str, Any]:
    path = folder / HOST_ITEM / "metadata"
    try:
        host = json.loads(path.read_text())
        if not all(isinstance(host[key], dict) for key in ("host_state", "metrics", "items")):
            raise ValueError("not a record of medloc_jax")
        return host
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _UnreadableError(f"{path}: {checkpoint_write.reason(error)}") from None


def _read_tree(folder: Any, like: Any, num_leaves: int, check_dtype: bool) -> Any:
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
        stored_tree: Any = handler.metadata(checkpoint_write.orbax_path(folder)).tree
    except Exception as error:  # orbax and TensorStore raise anything, Exception itself included.
        raise _UnreadableError(f"{folder.name}: {checkpoint_write.reason(error)}") from None
    stored = {
        _name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(stored_tree)[0]
    }
    _check_same_leaves(folder, stored, wanted, check_dtype)
    nested = _nest(wanted)
    try:
        restored = handler.restore(
            checkpoint_write.orbax_path(folder),
            args=ocp.args.PyTreeRestore(
                item=nested, restore_args=jax.tree.map(_restore_args, nested)
            ),
        )
    except Exception as error:  # As above.
        raise _UnreadableError(f"{folder.name}: {checkpoint_write.reason(error)}") from None
    by_name = {
        _name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(restored)[0]
    }
    return jax.tree.unflatten(treedef, [by_name[name] for name in wanted])


def _check_same_leaves(
    folder: Any, stored: Mapping[str, Any], wanted: Mapping[str, Any], check_dtype: bool
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


def _open_arrays(folder: Any) -> dict[str, StoredArray]:
    try:
        path = checkpoint_write.orbax_path(folder)
        tree: Any = ocp.PyTreeCheckpointHandler().metadata(path).tree
        use_ocdbt = ocp.type_handlers.is_ocdbt_checkpoint(path)
        context = ocp.type_handlers.get_ts_context()
        arrays = {}
        for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            info = ocp.type_handlers.ParamInfo(name=leaf.name, parent_dir=path, ts_context=context)
            spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=use_ocdbt)
            store = ts.open(ts.Spec(spec), open=True, context=context).result()
            name = _name(keys).replace("/", ".")
            arrays[name] = StoredArray(
                tuple(store.shape),
                np.dtype(leaf.dtype),
                tuple(int(size or 0) for size in store.chunk_layout.read_chunk.shape or ()),
                f"{folder}: {name}",
                store,
            )
        return arrays
    except Exception as error:  # orbax and TensorStore raise anything, Exception itself included.
        raise _UnreadableError(f"{folder.name}: {checkpoint_write.reason(error)}") from None


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


def _steps(directory: Any) -> list[int]:
    if not directory.is_dir():
        return []
    steps = sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit())
    return [step for step in steps if _is_there(directory / str(step))]


def _is_there(folder: Any) -> bool:
    """Whether a step folder was finished; on a disk one that was not has another name."""
    if storage.is_remote(folder):
        return (folder / checkpoint_write.COMMITTED).exists()
    return folder.is_dir()


def _put_aside(target: Any) -> None:
    """Makes place for a step that is saved again; an object store can only remove the old one."""
    if storage.is_remote(target):
        _remove(target)
    elif target.exists():
        target.rename(_replaced(target))


def _replaced(target: Any) -> Any:
    return target.with_name(target.name + _REPLACED)


def _remove(folder: Any) -> None:
    """Deletes a folder of which no reader must take what is left for a checkpoint."""
    if storage.is_remote(folder):
        with contextlib.suppress(FileNotFoundError):
            (folder / checkpoint_write.COMMITTED).unlink()
        storage.remove_folder(folder)
    elif folder.exists():
        doomed = folder.with_name(folder.name + _DELETING)
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def _warned(folder: Any) -> Iterator[None]:
    """Makes a failed removal a warning: what has been saved is saved."""
    try:
        yield
    except Exception as error:  # An object store may raise anything.
        why = checkpoint_write.reason(error)
        _log.warning("%s: old checkpoints were not removed (%s); the run goes on", folder, why)


def _remove_leftovers(directory: Any) -> None:
    if storage.is_remote(directory):
        entries = list(directory.iterdir()) if directory.is_dir() else []
        for entry in entries:
            if entry.name.isdigit() and not _is_there(entry):
                storage.remove_folder(entry)
        return
    for entry in list(directory.iterdir()):
        if _TEMPORARY in entry.name or entry.name.endswith(_DELETING):
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name.endswith(_REPLACED):
            original = entry.with_name(entry.name.removesuffix(_REPLACED))
            if original.exists():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.rename(original)


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
