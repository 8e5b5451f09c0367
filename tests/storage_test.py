# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Files on a disk, and the same on servers that speak s3:// and gs://."""

import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medloc_jax import checkpoint, checkpoint_write, metric_writer, storage, watchdog
from medloc_jax.data import examples
from medloc_jax.model import processor
from tests import object_stores, small_runs

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def address():
    """Gives a bucket's address by scheme; clients find its server in the environment."""
    with contextlib.ExitStack() as stack:
        started = {}

        def start(scheme):
            if scheme not in started:
                started[scheme] = stack.enter_context(object_stores.STORES[scheme]())
            return f"{scheme}://{object_stores.BUCKET}"

        yield start


@pytest.fixture(params=sorted(object_stores.STORES))
def folder(request, address):
    """A folder of the test's own in a bucket."""
    return f"{address(request.param)}/{request.node.name.partition('[')[0]}"


@pytest.fixture
def s3_folder(request, address):
    """Where one kind of store is enough."""
    return f"{address('s3')}/{request.node.name}"


@pytest.fixture(params=["disk", *sorted(object_stores.STORES)])
def either(request, address, tmp_path):
    """A folder of the test's own, of either kind."""
    if request.param == "disk":
        return str(tmp_path / "files")
    return f"{address(request.param)}/{request.node.name.partition('[')[0]}"


def _tree(seed=0):
    rng = np.random.default_rng(seed)
    return {"w": jnp.asarray(rng.normal(size=(30, 20)), jnp.float32), "b": {"c": jnp.arange(3.0)}}


def _like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _open(directory, **options):
    return checkpoint.Checkpointer(directory, **({"keep_last": 2, "keep_best": 0} | options))


def _assert_equal(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# Paths.


@pytest.mark.parametrize("path", ["runs/a", "/runs/a", Path("a"), "C:\\runs", "x/s3://a"])
def test_what_has_no_scheme_is_of_this_machine(path):
    assert not storage.is_remote(path)
    assert isinstance(storage.path(path), Path)


def test_a_remote_path_has_the_methods_of_a_local_one():
    path = storage.path("s3://bucket/run/")
    assert storage.is_remote(path) and storage.is_remote("gs://bucket")
    assert str(path / "checkpoints" / "3") == "s3://bucket/run/checkpoints/3"
    assert (path.name, str(path.parent)) == ("run", "s3://bucket")
    for absolute in (storage.absolute(path), storage.resolved(path)):
        assert str(absolute) == "s3://bucket/run"
    assert storage.absolute("a") == Path.cwd() / "a"


def test_an_unknown_scheme_and_a_missing_package_are_told_with_the_cure(monkeypatch):
    with pytest.raises(ValueError, match=r"only gs:// and s3:// are known"):
        storage.path("hdfs://host/run")
    storage._prepare.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"s3:// paths need s3fs: .*medloc_jax\[cloud\]"):
        storage.path("s3://bucket/run")


def test_local_paths_need_no_library_of_the_stores():
    code = "import sys; from medloc_jax import storage; storage.path('a'); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert not {"etils", "fsspec", "jax", "s3fs", "gcsfs"} & set(done.stdout.split())


# Small files and files of lines.


def test_a_small_file_is_replaced_as_a_whole(either):
    storage.make_folder(either)
    file = storage.path(either) / "config.json"
    for text in ("first", "second é"):
        storage.write_text(file, text)
        assert file.read_text(encoding="utf-8") == text
    assert [entry.name for entry in storage.path(either).iterdir()] == ["config.json"]
    storage.remove_folder(either)
    assert not file.exists()
    storage.remove_folder(either)


def test_lines_go_on_where_the_file_ends(either):
    storage.make_folder(either)
    file = storage.path(either) / "metrics.jsonl"
    for start in (0, 2):
        lines = storage.Lines(file)
        lines.write(f"{start}\n")
        lines.write(f"{start + 1}\n")
        lines.close()
    assert file.read_text() == "0\n1\n2\n3\n"
    storage.Lines(storage.path(either) / "never").close()
    assert not (storage.path(either) / "never").exists()


def test_a_disk_has_each_line_at_once(tmp_path):
    lines = storage.Lines(tmp_path / "x")
    lines.write("1\n")
    assert (tmp_path / "x").read_text() == "1\n"


def test_a_store_has_lines_when_they_are_due_or_asked_for(s3_folder, monkeypatch):
    file = storage.path(s3_folder) / "metrics.jsonl"
    lines = storage.Lines(file)
    lines.write("1\n")
    assert not file.exists()
    lines.flush()
    assert file.read_text() == "1\n"
    lines.write("2\n")
    assert file.read_text() == "1\n"
    monkeypatch.setattr(storage, "REWRITE_SECONDS", 0.0)
    lines.flush()
    lines.write("3\n")
    assert file.read_text() == "1\n2\n3\n"


def test_a_store_that_does_not_answer_costs_a_warning_and_no_line(s3_folder, monkeypatch, caplog):
    monkeypatch.setattr(storage, "REWRITE_SECONDS", 0.0)
    lines = storage.Lines(storage.path(s3_folder) / "x")
    lines.write("1\n")
    there, lines._path = (
        lines._path,
        storage.path(s3_folder.replace("bucket", "no-such-bucket")) / "x",
    )
    with caplog.at_level(logging.WARNING, "medloc_jax.storage"):
        lines.write("2\n")
    assert "tried again later" in caplog.text
    with pytest.raises(Exception, match="bucket|404|Not Found"):
        lines.flush()  # before a checkpoint, a warning would be too little
    lines._path = there
    lines.close()
    assert there.read_text() == "1\n2\n"


def test_metrics_rollouts_and_events_lie_in_a_store(s3_folder):
    writer = metric_writer.MetricWriter(
        s3_folder, tensorboard=True, wandb=False, project="", config={}, is_primary=True
    )
    for step in (1, 2, 3):
        writer.write(step, {"reward/total": 0.5 * step})
        writer.write_rollouts(step, {"ious": [0.25]})
    writer.flush()
    home = storage.path(s3_folder)
    assert len((home / "metrics.jsonl").read_text().splitlines()) == 3
    (events,) = (home / "tensorboard").iterdir()
    assert b"reward/total" in events.read_bytes()
    writer.close()
    for name in (metric_writer.METRICS_FILE, metric_writer.ROLLOUTS_FILE):
        metric_writer.truncate_jsonl(home / name, 2)
        assert [json.loads(line)["step"] for line in (home / name).read_text().splitlines()] == [
            *(1, 2)
        ]


def test_heartbeats_are_written_over_and_read_where_the_run_lies(either):
    storage.make_folder(either)
    sizes = {"process_count": 2, "attempt": 1, "lost_seconds": 10.0, "hung_seconds": 0.0}
    me, other = (watchdog.Watchdog(either, process_index=i, **sizes) for i in (0, 1))
    assert other.beat() and me.look(9.0) is None
    assert other.beat() and me.look(9.0) is None  # a change: the silence begins anew
    assert me.look(9.0) is None
    other.leave(76, "gradients")
    verdict = me.look(0.0)
    assert verdict is not None and verdict.code == 76 and "gradients" in verdict.reason
    assert [path.name for path in (storage.path(either) / watchdog.FOLDER).iterdir()] == ["1"]


# Data.


def test_a_manifest_and_its_images_are_read_from_a_store(s3_folder, tmp_path):
    manifest = small_runs.write_manifest(tmp_path / "data", [(64, 48), (48, 64)])
    for file in (tmp_path / "data").iterdir():
        (storage.path(s3_folder) / "data" / file.name).write_bytes(file.read_bytes())
    local, remote = examples.load_manifest(manifest), examples.load_manifest(f"{s3_folder}/data")
    assert [example.id for example in remote] == [example.id for example in local]
    assert remote[0].image_path == f"{s3_folder}/data/0.png"
    for here, there in zip(local, remote, strict=True):
        want = np.asarray(processor.open_image(here.image_path))
        np.testing.assert_array_equal(np.asarray(processor.open_image(there.image_path)), want)
    (storage.path(s3_folder) / "data" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"manifest\.jsonl:2: image .*1\.png does not exist"):
        examples.load_manifest(f"{s3_folder}/data/manifest.jsonl")
    with pytest.raises(ValueError, match="cannot be read"):
        examples.load_manifest(f"{s3_folder}/elsewhere/manifest.jsonl")
    with pytest.raises(ValueError, match="no such image file"):
        processor.open_image(f"{s3_folder}/data/1.png")


def test_a_copy_holds_what_is_wanted(s3_folder):
    for name in ("config.json", "eval/val-2/metrics.json", "checkpoints/1/x"):
        (storage.path(s3_folder) / name).write_text(name)
    copy = storage.local_copy(s3_folder, lambda name: not name.startswith("checkpoints/"))
    found = {str(file.relative_to(copy)) for file in copy.rglob("*") if file.is_file()}
    assert found == {"config.json", "eval/val-2/metrics.json"}
    assert copy.name == storage.path(s3_folder).name
    with pytest.raises(ValueError, match="no such folder"):
        storage.local_copy(f"{s3_folder}/elsewhere")


# Checkpoints.


@pytest.mark.faults
def test_checkpoints_are_saved_kept_and_read_in_a_store(folder, caplog):
    directory = storage.path(folder) / "checkpoints"
    like = {"params": _like(_tree())}
    saver = _open(directory)
    assert saver.restore(like) is None
    for seed in (0, 1):  # saved again
        assert saver.save(1, {"params": _tree(seed)}, {"seed": seed}).saved
    restored = _open(directory).restore(like)
    assert restored is not None and restored.host_state == {"seed": 1}
    _assert_equal(restored.arrays["params"], _tree(1))

    saver = _open(directory, asynchronous=True)
    for step in (2, 3):
        assert saver.save(step, {"params": _tree(step)}, {"step": step}).saved is None
    saver.close()
    assert saver.steps() == [2, 3] and not (directory / "1").exists()
    assert checkpoint.is_checkpoint(folder)
    _assert_equal(checkpoint.load_item(directory / "2", "params", like["params"]), _tree(2))
    opened = checkpoint.open_item(folder, "params")
    rows = opened.arrays["w"].read([(3, 5), (0, 20)])
    np.testing.assert_array_equal(rows, np.asarray(_tree(3)["w"])[3:5])

    # Damaged: the one before is used.
    (directory / "3" / "params" / "manifest.ocdbt").write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        restored = _open(directory).restore(like)
    assert restored is not None and restored.step == 2 and f"{directory}/3" in caplog.text
    # As a kill leaves it: it is not there, and goes.
    (directory / "3" / checkpoint_write.COMMITTED).unlink()
    assert saver.steps() == [2]
    _open(directory)
    assert not (directory / "3").exists()


def test_an_orbax_that_works_otherwise_is_refused(monkeypatch):
    from orbax.checkpoint._src.serialization import tensorstore_utils

    checkpoint_write._teach_s3.cache_clear()
    monkeypatch.delattr(tensorstore_utils, "build_kvstore_tspec")
    with pytest.raises(ValueError, match="give a gs:// or local workdir"):
        checkpoint_write.orbax_path("s3://bucket/run")


def test_where_and_as_whom_tensorstore_asks(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    node = {"driver": "ocdbt", "base": {"driver": "gcs", "bucket": "b", "path": "p/"}}
    plain = checkpoint_write._s3_specification(node)
    assert plain == {"driver": "ocdbt", "base": {"driver": "s3", "bucket": "b", "path": "p/"}}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://host:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    asked = checkpoint_write._s3_specification(node)["base"]
    assert (asked["endpoint"], asked["aws_region"]) == ("http://host:1", "us-east-1")
    assert asked["aws_credentials"] == {"type": "environment"}
    assert node["base"]["driver"] == "gcs"


# What a run is started from.


def test_a_folder_of_another_kind_of_weights_is_refused_where_it_lies(s3_folder, tmp_path):
    from medloc_jax.cli import job as jobs

    with pytest.raises(ValueError, match="there is no such folder"):
        jobs._check_origin(f"{s3_folder}/nothing")
    (storage.path(s3_folder) / "hf" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="copy the folder to this machine"):
        jobs._check_origin(f"{s3_folder}/hf")
    _open(f"{s3_folder}/run/checkpoints").save(1, {"params": _tree()}, {})
    for source in ("run", "run/checkpoints", "run/checkpoints/1"):
        jobs._check_origin(f"{s3_folder}/{source}")
    # Sizes and words of a model are small, and copied.
    preset = small_runs.write_preset(tmp_path / "preset") / "config.json"
    (storage.path(s3_folder) / "preset" / "config.json").write_bytes(preset.read_bytes())
    copy = Path(jobs._small_files(f"{s3_folder}/preset"))
    assert (copy / "config.json").read_bytes() == preset.read_bytes()
    assert jobs._small_files("tiny") == "tiny" and jobs._small_files("") == ""


def test_pictures_of_a_remote_run_are_drawn_on_this_machine(tmp_path):
    from medloc_jax import config
    from medloc_jax.cli import job as jobs

    made = config.default_config().data.synthetic
    assert jobs._drawings(made, tmp_path) == tmp_path / "data"
    drawn = jobs._drawings(made, storage.path("gs://bucket/run"))
    assert isinstance(drawn, Path) and drawn.name == "lesions-3000-400-0"
