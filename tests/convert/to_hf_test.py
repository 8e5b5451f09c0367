# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import jax
import ml_dtypes
import numpy as np
import pytest
import random_folders
from random_folders import SMALL, TINY

from medloc_jax import checkpoint, checkpoint_write, sharding
from medloc_jax.convert import from_hf, hf_folder, hf_writer, mapping, to_hf
from medloc_jax.model import qwen2_5_vl


def save(folder, params):
    saver = checkpoint.Checkpointer(folder / "checkpoints", keep_last=1, keep_best=0)
    saver.save(7, {"params": params}, {})
    return folder


def export(source, config, target, *, dtype=None, max_shard_size=10**9):
    opened = checkpoint.open_item(source, "params")
    to_hf.check(opened.arrays, config, "here")
    specs = to_hf.specs(opened.arrays, config, dtype)
    target.mkdir()
    seen = []
    writer = hf_writer.Writer(target, specs, max_shard_size)
    to_hf.write(opened.arrays, config, writer, seen.append)
    assert sum(seen) == sum(tensor.nbytes for tensor in writer.tensors.values())
    return random_folders.read(target)


def assert_equal(found, weights):
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


@pytest.mark.parametrize("config", [SMALL, TINY], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("max_shard_size", [10**9, 300_000], ids=["one", "several"])
def test_a_run_comes_out_as_it_is(tmp_path, config, dtype, max_shard_size):
    weights = random_folders.tensors(config, dtype)
    source = save(tmp_path / "run", mapping.from_hf(weights, config))
    found = export(source, config, tmp_path / "hf", max_shard_size=max_shard_size)
    assert_equal(found, weights)


@pytest.mark.parametrize("block_bytes", [64 << 20, 2000])
@pytest.mark.parametrize("chunk_bytes", [1 << 50, 3000], ids=["older", "chunks"])
def test_however_it_is_stored_and_read(tmp_path, monkeypatch, block_bytes, chunk_bytes):
    monkeypatch.setattr(hf_folder, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(checkpoint_write, "CHUNK_BYTES", chunk_bytes)
    weights = random_folders.tensors(SMALL)
    model = qwen2_5_vl.Model(SMALL)
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    params = mapping.from_hf(weights, SMALL)
    layout = sharding.of_params(mesh, params, model.logical_axes())
    source = save(tmp_path / "run", jax.device_put(params, layout))
    opened = checkpoint.open_item(source, "params")
    chunk = opened.arrays["language_model.layers.mlp.up_proj.kernel"].chunk_shape
    assert (chunk[0] == 1) == (chunk_bytes == 3000)
    assert_equal(export(source, SMALL, tmp_path / "hf"), weights)


def test_there_and_back_is_exact_in_many_small_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_folder, "BLOCK_BYTES", 5000)
    monkeypatch.setattr(from_hf, "_LEAST_CHUNK", 64)
    bfloat16 = random_folders.tensors(SMALL, ml_dtypes.bfloat16)
    weights = random_folders.write(tmp_path / "hf", SMALL, bfloat16)
    tensors = hf_folder.open_folder(tmp_path / "hf", SMALL)
    step = tmp_path / "orbax/checkpoints/0"
    from_hf.write(tensors, SMALL, step, dtype=None, progress=lambda _: None, host_state={})
    assert_equal(export(tmp_path / "orbax", SMALL, tmp_path / "back"), weights)


def test_a_dtype_can_be_asked_for(tmp_path):
    weights = random_folders.tensors(SMALL)
    source = save(tmp_path / "run", mapping.from_hf(weights, SMALL))
    found = export(source, SMALL, tmp_path / "hf", dtype=np.dtype(ml_dtypes.bfloat16))
    assert_equal(found, {k: v.astype(ml_dtypes.bfloat16) for k, v in weights.items()})


def test_another_tree_is_refused_by_name(tmp_path):
    params = mapping.from_hf(random_folders.tensors(SMALL), SMALL)
    flat = mapping.flatten(params)

    def refused(name, changed, message):
        opened = checkpoint.open_item(save(tmp_path / name, mapping.nest(changed)), "params")
        with pytest.raises(ValueError, match=message):
            to_hf.check(opened.arrays, SMALL, "here")

    path = "visual.merger.mlp_0.kernel"
    refused("a", {k: v for k, v in flat.items() if k != path}, f"here: parameter {path} missing")
    refused("b", flat | {"adapter.kernel": np.ones(3)}, r"adapter\.kernel has no Hugging Face name")
    refused("c", flat | {path: flat[path][:-1]}, rf"{path} has shape \(255, 256\), the config")
    refused("d", flat | {path: flat[path].astype(np.int32)}, f"{path} is int32")
