# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Saving, restoring, keeping, falling back, and a full disk."""

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medloc_jax import checkpoint, checkpoint_write, watchdog


def _params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "visual": {"kernel": jnp.asarray(rng.normal(size=(8, 6)).astype(np.float32))},
        "language_model": {"scale": jnp.asarray(rng.normal(size=5), jnp.bfloat16)},
    }


def _arrays(seed=0):
    params = _params(seed)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    return {"params": params, "optimizer": optimizer}


def _like(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _open(directory, keep_last=2, keep_best=0, asynchronous=False):
    return checkpoint.Checkpointer(
        directory, keep_last=keep_last, keep_best=keep_best, asynchronous=asynchronous
    )


def _assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def _mesh(shape, names):
    devices = np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return jax.sharding.Mesh(devices, names)


def _damage(folder, item):
    """Halves the largest file of an item."""
    files = [path for path in (folder / item).rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def test_what_is_saved_comes_back(tmp_path):
    saver = _open(tmp_path / "checkpoints")
    arrays = _arrays()
    state = {"curriculum": {"threshold": 0.1 + 0.2, "window": [1, 2.5, None]}, "batches": 7}
    assert saver.restore(_like(arrays)) is None
    result = saver.save(7, arrays, state, {"best": 0.25, "a50": 0.5})
    assert result.saved and result.num_bytes > 0
    restored = _open(tmp_path / "checkpoints").restore(_like(arrays))
    assert restored is not None
    _assert_equal(restored.arrays, arrays)
    assert (restored.step, restored.host_state) == (7, state)
    assert restored.metrics == {"best": 0.25, "a50": 0.5}


def test_host_state_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    saver = _open(tmp_path)
    with pytest.raises(TypeError, match="JSON"):
        saver.save(1, _arrays(), {"x": np.zeros(3)})
    assert saver.steps() == []


def test_a_save_of_the_tiny_model_is_quick(tmp_path):
    arrays = {
        name: {f"layer_{i}": jnp.ones((4, 128, 128)) for i in range(30)}
        for name in ("params", "optimizer")
    }
    saver = _open(tmp_path)
    saver.save(0, arrays, {})
    start = time.perf_counter()
    saver.save(1, arrays, {})
    # 0.1 to 0.2 s on two idle cores; the slack is for a machine that does other things too.
    assert time.perf_counter() - start < 30


def test_one_item_is_restored_without_the_others(tmp_path):
    arrays = _arrays()
    _open(tmp_path).save(3, arrays, {})
    shutil.rmtree(tmp_path / "3" / "optimizer")
    restored = _open(tmp_path).restore({"params": _like(arrays["params"])})
    assert restored is not None
    _assert_equal(restored.arrays["params"], arrays["params"])


def test_sharded_arrays_restore_onto_another_mesh(tmp_path):
    value = jnp.arange(64.0).reshape(8, 8)
    four = _mesh((4,), ("fsdp",))
    two = _mesh((2, 4), ("data", "fsdp"))
    placed = jax.device_put(value, NamedSharding(four, PartitionSpec("fsdp")))
    _open(tmp_path).save(1, {"params": {"w": placed}}, {})
    wanted = NamedSharding(two, PartitionSpec(None, "fsdp"))
    restored = _open(tmp_path).restore({"params": _like({"w": value}, wanted)})
    assert restored is not None
    got = restored.arrays["params"]["w"]
    assert got.sharding == wanted
    np.testing.assert_array_equal(got, value)


def test_an_empty_tree_is_kept_as_such(tmp_path):
    arrays = {"params": _params(), "frozen": {}}
    _open(tmp_path).save(1, arrays, {})
    restored = _open(tmp_path).restore(_like(arrays))
    assert restored is not None and restored.arrays["frozen"] == {}
    with pytest.raises(checkpoint.MismatchError, match="frozen"):
        _open(tmp_path).restore({"frozen": _like(_params())})


def test_the_last_and_the_best_stay(tmp_path):
    saver = _open(tmp_path, keep_last=2, keep_best=1)
    for step, best in enumerate([0.1, 0.9, float("nan"), None, 0.3, 0.2]):
        saver.save(step, {"params": _params()}, {}, {} if best is None else {"best": best})
    assert saver.steps() == [1, 4, 5]
    again = _open(tmp_path, keep_last=1, keep_best=1)  # the metrics are read back
    again.save(6, {"params": _params()}, {})
    assert again.steps() == [1, 6]


def test_an_old_step_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch, caplog):
    remove = checkpoint._remove

    def refuse(folder):
        if folder.name in ("1", "3.replaced"):
            raise PermissionError(f"{folder}: not yours")
        remove(folder)

    saver = _open(tmp_path, keep_last=1)
    saver.save(1, {"params": _params()}, {})
    monkeypatch.setattr(checkpoint, "_remove", refuse)
    for step in (2, 3):
        assert saver.save(step, {"params": _params()}, {}).saved is True
    assert saver.steps() == [1, 3]
    names = [text.split(":")[0].removeprefix(f"{tmp_path}/") for text in caplog.messages]
    assert names == ["1", "3.replaced", "1"]
    assert all("PermissionError" in text and "run goes on" in text for text in caplog.messages)


@pytest.mark.parametrize(("keep_last", "keep_best"), [(0, 1), (1, -1)])
def test_keeping_nothing_is_refused(tmp_path, keep_last, keep_best):
    with pytest.raises(ValueError, match="keep_last"):
        _open(tmp_path, keep_last, keep_best)


def test_leftovers_of_killed_saves_are_no_checkpoints_and_are_removed(tmp_path):
    _open(tmp_path).save(1, {"params": _params()}, {})
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    shutil.copytree(tmp_path / "1", tmp_path / "0.deleting")
    (tmp_path / "1").rename(tmp_path / "1.replaced")  # killed while step 1 was saved again
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoint.load_item(tmp_path, "params", _like(_params()))
    assert _open(tmp_path).steps() == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]


def test_a_step_can_be_saved_again(tmp_path):
    saver = _open(tmp_path)
    saver.save(1, {"params": _params(0)}, {"n": 0})
    saver.save(1, {"params": _params(1)}, {"n": 1})
    restored = saver.restore({"params": _like(_params())})
    assert restored is not None and restored.host_state == {"n": 1}
    _assert_equal(restored.arrays["params"], _params(1))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["truncated", "no item", "bad json", "no metadata"])
def test_a_damaged_newest_step_is_named_and_the_one_before_is_used(tmp_path, caplog, damage):
    saver = _open(tmp_path)
    for step in (1, 2):
        saver.save(step, {"params": _params(step)}, {"step": step})
    if damage == "truncated":
        _damage(tmp_path / "2", "params")
    elif damage == "no item":
        shutil.rmtree(tmp_path / "2" / "params")
    elif damage == "bad json":
        (tmp_path / "2" / "host" / "metadata").write_text('{"step": 2, "host')
    else:
        (tmp_path / "2" / "params" / "_METADATA").unlink()
    saver = _open(tmp_path)
    with caplog.at_level(logging.WARNING):
        restored = saver.restore({"params": _like(_params())})
    assert restored is not None and restored.step == 1 and restored.host_state == {"step": 1}
    _assert_equal(restored.arrays["params"], _params(1))
    (record,) = caplog.records
    assert str(tmp_path / "2") in record.getMessage() and "\n" not in record.getMessage()
    with pytest.raises(ValueError, match="can be read"):
        saver.restore({"params": _like(_params())}, step=2)
    # It is not taken for one of the good ones that stay.
    saver.save(3, {"params": _params()}, {})
    assert saver.steps() == [1, 3]


@pytest.mark.faults
def test_if_no_step_can_be_read_the_folder_and_the_cure_are_named(tmp_path):
    _open(tmp_path).save(1, {"params": _params()}, {})
    _damage(tmp_path / "1", "params")
    with pytest.raises(ValueError, match="another workdir") as error:
        _open(tmp_path).restore({"params": _like(_params())})
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_another_model_is_an_error_that_names_the_leaf_and_no_fallback(tmp_path):
    saver = _open(tmp_path)
    saver.save(1, {"params": {"visual": {"kernel": jnp.ones((2, 2))}}}, {})
    saver.save(2, {"params": {"visual": {"kernel": jnp.ones((2, 3))}, "head": jnp.ones(1)}}, {})

    def restore(leaves):
        leaves = {"head": jnp.ones(1)} | leaves
        return saver.restore({"params": _like(leaves)})

    with pytest.raises(checkpoint.MismatchError, match=r"visual/kernel has shape \(2, 3\)"):
        restore({"visual": {"kernel": jnp.ones((2, 2))}})
    with pytest.raises(checkpoint.MismatchError, match="visual/kernel has dtype float32"):
        restore({"visual": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}})
    with pytest.raises(checkpoint.MismatchError, match="visual/bias is wanted"):
        restore({"visual": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
    with pytest.raises(checkpoint.MismatchError, match="visual/kernel is in the checkpoint"):
        restore({"visual": {}})
    with pytest.raises(ValueError, match="no step 5; it has 1, 2"):
        saver.restore({}, step=5)


@pytest.mark.parametrize("source", [".", "checkpoints", "checkpoints/2"])
def test_one_item_loads_from_workdir_checkpoints_or_step(tmp_path, source):
    saver = _open(tmp_path / "checkpoints")
    for step in (1, 2):
        saver.save(step, {"params": _params(step)}, {})
    assert checkpoint.is_checkpoint(tmp_path / source)
    got = checkpoint.load_item(tmp_path / source, "params", _like(_params()))
    _assert_equal(got, _params(2))
    # A stored float32 is converted where bfloat16 is asked for.
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), _params())
    cast = checkpoint.load_item(tmp_path / source, "params", half)
    assert cast["visual"]["kernel"].dtype == jnp.bfloat16


def test_a_folder_without_checkpoints_is_refused_by_name(tmp_path):
    assert not checkpoint.is_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)):
        checkpoint.load_item(tmp_path, "params", {})


_FULL_DISK = """
    import json, logging, resource, signal, sys
    import jax.numpy as jnp, numpy as np, jax
    from medloc_jax import checkpoint

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    noise = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    arrays = {"params": {"w": jnp.asarray(noise)}}
    saver = checkpoint.Checkpointer(sys.argv[1], keep_last=1, keep_best=0)
    assert saver.save(1, arrays, {"n": 1}).saved
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), limit[1]))
    assert not saver.save(1, arrays, {"n": 2}).saved
    assert not saver.save(2, arrays, {"n": 2}).saved
    try:
        saver.save(3, arrays, {"n": 3}, final=True)
    except checkpoint.CheckpointError as error:
        print("FINAL", error)
    restored = saver.restore({"params": {"w": jax.ShapeDtypeStruct((300, 300), jnp.float32)}})
    assert restored.step == 1 and restored.host_state == {"n": 1}
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert saver.save(4, arrays, {"n": 4}).saved
    print("STEPS", saver.steps())
"""


def _run_alone(program, *args):
    """What a program prints in a process of its own, and what it warns of, in lines."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    return done.stdout.splitlines(), warnings


@pytest.mark.faults
@pytest.mark.parametrize("limit", [100_000, 0])
def test_a_full_disk_is_a_warning_until_the_final_save(tmp_path, limit):
    lines, warnings = _run_alone(_FULL_DISK, tmp_path / "c", limit)
    assert len(warnings) == 2 and "360,000 bytes" in warnings[0], warnings
    final, steps = lines
    assert final.startswith("FINAL") and "are free" in final
    assert steps == "STEPS [4]"
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["4"]


_KILLED = """
    import sys
    import jax.numpy as jnp
    from medloc_jax import checkpoint

    saver = checkpoint.Checkpointer(sys.argv[1], keep_last=2, keep_best=0)
    arrays = {"params": {str(i): jnp.full((100, 100), i) for i in range(20)}}
    for step in range(1000):
        saver.save(step, arrays, {"step": step})
        print(step, flush=True)
"""


@pytest.mark.faults
def test_a_killed_save_loses_nothing_that_was_reported_saved(tmp_path):
    like = {"params": {str(i): jax.ShapeDtypeStruct((100, 100), jnp.int32) for i in range(20)}}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_KILLED), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 4:
            break
    time.sleep(0.05)  # into the next save
    process.kill()
    reported = max([4, *map(int, process.stdout.read().split())])
    process.wait()
    restored = _open(tmp_path).restore(like)
    assert restored is not None and restored.step >= reported
    assert restored.host_state == {"step": restored.step}


def test_the_stored_record_is_plain_json(tmp_path):
    _open(tmp_path).save(1, {"params": _params()}, {"seed": 42}, {"best": 0.5})
    record = json.loads((tmp_path / "1" / "host" / "metadata").read_text())
    assert record["host_state"] == {"seed": 42} and record["items"] == {"params": 2}


def _blocks(array, chunk_shape, rows):
    """`array` in blocks of so many rows."""

    def blocks():
        for start in range(0, len(array), rows):
            yield (start, *[0] * (array.ndim - 1)), array[start : start + rows]

    return checkpoint.Blocks(array.shape, array.dtype, chunk_shape, blocks)


def test_what_is_saved_in_blocks_is_an_ordinary_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(10, 6)), "b": {"c": rng.normal(size=(3, 5, 4))}}
    tree = {
        "a": _blocks(arrays["a"], (4, 3), 4),
        "b": {"c": _blocks(arrays["b"]["c"].transpose(0, 2, 1), (1, 4, 5), 1)},
    }
    checkpoint.save_blocks(tmp_path / "checkpoints" / "5", "params", tree, {"x": 1})
    arrays["b"]["c"] = arrays["b"]["c"].transpose(0, 2, 1)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32), arrays)
    restored = checkpoint.load_items(tmp_path, {"params": like})
    assert restored.step == 5 and restored.host_state == {"x": 1}
    wanted = jax.tree.map(lambda x: x.astype(np.float32), arrays)
    _assert_equal(restored.arrays["params"], wanted)


def test_an_exception_of_the_blocks_waits_for_what_is_being_written(tmp_path, monkeypatch):
    finished = []

    class Write:
        def __await__(self):
            yield from asyncio.sleep(0.01).__await__()
            finished.append(1)

    class Store:
        def __getitem__(self, _):
            return self

        def write(self, *_args, **_kwargs):
            return Write()

    async def create(*_):
        return Store()

    def blocks():
        for i in range(3):
            yield (i,), np.zeros(1)
        assert not finished  # all three wait
        raise RuntimeError("no more")

    monkeypatch.setattr(checkpoint, "_create", create)
    tree = {"a": checkpoint.Blocks((4,), np.dtype(float), (1,), blocks)}
    with pytest.raises(RuntimeError, match="no more"):
        checkpoint.save_blocks(tmp_path / "run" / "0", "params", tree, {})
    assert len(finished) == 3


def test_a_changed_byte_of_what_was_saved_in_blocks_is_noticed(tmp_path):
    array = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    checkpoint.save_blocks(tmp_path / "5", "params", {"a": _blocks(array, (64, 64), 64)}, {})
    (file,) = [p for p in tmp_path.rglob("d/*") if array.tobytes()[:64] in p.read_bytes()][:1]
    content = file.read_bytes()
    file.write_bytes(content.replace(array.tobytes()[:64], bytes(64)))
    with pytest.raises(ValueError, match="can be read"):
        checkpoint.load_item(tmp_path / "5", "params", _like({"a": array}))


def test_parts_of_a_saved_array_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_write, "CHUNK_BYTES", 100)
    stacked = np.arange(2 * 8 * 6, dtype=np.float32).reshape(2, 8, 6)
    arrays = {"params": {"x": {"y": stacked}, "z": np.ones(3, np.float32)}}
    _open(tmp_path / "checkpoints").save(1, arrays, {"seed": 7})
    opened = checkpoint.open_item(tmp_path, "params")
    assert opened.arrays.keys() == {"x.y", "z"}
    assert (opened.step, opened.host_state) == (1, {"seed": 7})
    assert opened.folder == tmp_path / "checkpoints" / "1"
    stored = opened.arrays["x.y"]
    assert stored.shape == (2, 8, 6) and stored.dtype == np.float32
    # Layer by layer, and no chunk larger than asked.
    assert stored.chunk_shape[0] == 1 and 4 * np.prod(stored.chunk_shape) <= 100
    box = [(1, 2), (3, 7), (2, 6)]
    np.testing.assert_array_equal(stored.read(box), stacked[1:2, 3:7, 2:6])


def test_an_item_that_is_not_there_or_damaged_is_named(tmp_path):
    saver = _open(tmp_path)
    saver.save(1, _arrays(), {})
    saver.save(2, _arrays(), {})
    (tmp_path / "2" / "params" / "manifest.ocdbt").unlink()
    assert checkpoint.open_item(tmp_path, "params").step == 1
    with pytest.raises(ValueError, match="it has no item 'paramz', only .*params"):
        checkpoint.open_item(tmp_path, "paramz")
    with pytest.raises(ValueError, match="holds no checkpoint: give a workdir"):
        checkpoint.open_item(tmp_path / "1" / "params", "params")


# In the background.


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = add({str(i): jnp.zeros((300, 1000)) for i in range(8)})
    saver = _open(tmp_path, asynchronous=True)
    for step in (1, 2):
        assert saver.save(step, {"params": tree}, {"step": step}).saved is None
        for _ in range(5):
            tree = add(tree)
        tree = jax.tree.map(lambda x: x - 4, tree)
    saver.close()
    for step in (1, 2):
        restored = saver.restore({"params": _like(tree)}, step)
        assert restored is not None and restored.host_state == {"step": step}
        want = jax.tree.map(lambda x, step=step: jnp.full_like(x, step), tree)
        _assert_equal(restored.arrays["params"], want)


def test_a_save_waits_for_the_one_before_and_the_last_is_waited_for(tmp_path, monkeypatch):
    events, finish = [], checkpoint_write.Write._finish

    def slow(self):
        time.sleep(0.3)
        finish(self)
        events.append("written")

    monkeypatch.setattr(checkpoint_write.Write, "_finish", slow)
    saver = _open(tmp_path, asynchronous=True)
    saver.save(1, {"params": _params()}, {})
    assert events == [] and saver.steps() in ([], [1])
    saver.save(2, {"params": _params()}, {})
    assert events == ["written"] and 1 in saver.steps()
    assert saver.save(3, {"params": _params()}, {}, final=True).saved is True
    assert events == ["written"] * 3 and saver.steps() == [2, 3]
    saver.save(4, {"params": _params()}, {})
    saver.close()
    assert len(events) == 4


def test_what_goes_wrong_in_the_background_is_told_with_its_step(tmp_path, monkeypatch):
    saver = _open(tmp_path, asynchronous=True)
    monkeypatch.setattr(saver, "_tidy_up", lambda *_: 1 / 0)
    assert saver.save(1, {"params": _params()}, {}).saved is None
    with pytest.raises(checkpoint.CheckpointError, match="step 1 was not saved: ZeroDivision"):
        saver.save(2, {"params": _params()}, {})
    assert saver.wait() is None


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("UNAVAILABLE: failed to connect to all addresses", True),
        ("INTERNAL: write failed [os_error_code='28': No space left on device]", False),
    ],
)
def test_a_lost_process_is_told_from_a_full_disk(tmp_path, monkeypatch, words, lost):
    saver = _open(tmp_path, asynchronous=True)
    monkeypatch.setattr(checkpoint_write, "_saver", lambda *_: _FailingSaver(words))
    with pytest.raises(checkpoint.CheckpointError, match="step 1 was not saved") as caught:
        saver.save(1, {"params": _params()}, {}, final=not lost)
        saver.close()
    assert watchdog.is_from_runtime(caught.value) is lost
    assert watchdog.exit_code(caught.value) == 2  # if the watchdog finds nothing


def test_a_save_ends_when_there_is_nobody_to_tell(tmp_path, monkeypatch):
    saver, agreement = _FailingSaver("UNAVAILABLE: the coordinator is gone"), _DeadAgreement()
    monkeypatch.setattr(checkpoint_write, "_saver", lambda *_: saver)
    monkeypatch.setattr(checkpoint_write, "_agreement", lambda: agreement)
    write = checkpoint_write.Write(tmp_path / "1", {"params": _params()}, ("host", {}))
    with pytest.raises(RuntimeError, match="the coordinator is gone"):
        write.wait()
    assert saver.closed and agreement.asked == ["fail", "gather"]


class _FailingSaver:
    """Orbax, when what it needs is gone."""

    def __init__(self, words):
        self.words, self.closed = words, False

    def save(self, *_, **__):
        pass

    def wait_until_finished(self):
        raise RuntimeError(self.words)

    def close(self):
        self.closed = True


class _DeadAgreement:
    """Of processes that have lost the one with the coordinator."""

    def __init__(self):
        self.asked = []

    def fail(self, reason):
        self.asked.append("fail")
        raise RuntimeError("UNAVAILABLE: nobody answers")

    def gather(self, key, then):
        self.asked.append("gather")
        raise RuntimeError("UNAVAILABLE: nobody answers")


_FULL_DISK_BEHIND = """
    import logging, resource, signal, sys
    import jax.numpy as jnp, numpy as np
    from medloc_jax import checkpoint

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    noise = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    arrays = {"params": {"w": jnp.asarray(noise)}}
    saver = checkpoint.Checkpointer(sys.argv[1], keep_last=1, keep_best=0, asynchronous=True)
    saver.save(1, arrays, {})
    assert saver.wait()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    saver.save(2, arrays, {})
    print("TRAINING", flush=True)
    assert saver.wait() is False
    try:
        saver.save(3, arrays, {}, final=True)
    except checkpoint.CheckpointError as error:
        print("FINAL", error)
    saver.close()
    print("STEPS", saver.steps())
"""


@pytest.mark.faults
def test_a_full_disk_behind_the_training_is_a_warning_until_the_final_save(tmp_path):
    lines, warnings = _run_alone(_FULL_DISK_BEHIND, tmp_path / "c")
    assert len(warnings) == 1 and "checkpoint of step 2 was not saved" in warnings[0], warnings
    assert [line.split()[0] for line in lines] == ["TRAINING", "FINAL", "STEPS"]
    assert any("step 3" in line for line in lines) and "STEPS [1]" in lines[2]
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["1"]


# With several processes.

_ONE_FULL_DISK = """
    import logging, resource, signal, sys, time
    from medloc_jax import checkpoint, distributed
    distributed.initialize()
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    me = jax.process_index()
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))
    shard = NamedSharding(mesh, PartitionSpec("fsdp"))
    noise = np.random.default_rng(0).normal(size=(400, 400)).astype(np.float32)
    w = jax.make_array_from_callback(noise.shape, shard, lambda index: noise[index])
    for background, full, limit in ((False, 0, 100_000), (True, 1, 100_000), (False, 1, 0)):
        folder = f"{sys.argv[1]}/{background}-{full}-{limit}"
        saver = checkpoint.Checkpointer(folder, keep_last=2, keep_best=0, asynchronous=background)

        def save(step, final=False):
            saved = saver.save(step, {"params": {"w": w}}, {"step": step}, final=final).saved
            return saver.wait() if saved is None else saved

        assert save(1)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if me == full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        start = time.monotonic()
        assert save(2) is False
        try:
            save(3, final=True)
        except checkpoint.CheckpointError as error:
            assert f"process {full}" in str(error), error
        else:
            raise AssertionError("the last save was not written, and nothing was said")
        assert time.monotonic() - start < 120
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        distributed.barrier("room again")
        assert save(4)
        like = {"params": {"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=shard)}}
        restored = saver.restore(like)
        assert saver.steps() == [1, 4] and restored.step == 4
        for piece in restored.arrays["params"]["w"].addressable_shards:
            np.testing.assert_array_equal(piece.data, noise[piece.index])
    print("done", me)
"""


@pytest.mark.faults
@pytest.mark.multiprocess
def test_one_full_disk_of_two_is_known_to_both_within_seconds(tmp_path):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHON": sys.executable,
    }
    command = [sys.executable, "-c", textwrap.dedent(_ONE_FULL_DISK), str(tmp_path)]
    done = subprocess.run(
        ["bash", "launch/local.sh", "2", *command],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.returncode == 0, done.stdout
    assert {"[0] done 0", "[1] done 1"} <= set(done.stdout.splitlines())
    warnings = [line for line in done.stdout.splitlines() if "step 2 was not saved" in line]
    # Each fault is told by the first process, and by the one that has it.
    assert len(warnings) == 1 + 2 + 2
    leftovers = [path.name for path in tmp_path.glob("*/*") if path.name not in ("1", "4")]
    assert leftovers == []
