# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import jax
import ml_dtypes
import numpy as np
import pytest
import random_folders
from random_folders import SMALL, TINY

from medloc_jax import checkpoint, sharding
from medloc_jax.convert import hf_folder, mapping, parameters
from medloc_jax.model import qwen2_5_vl

MESHES = [
    {"data": 1, "fsdp": 8, "tensor": 1},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 8, "fsdp": 1, "tensor": 1},
]


def like(config, dtype=np.float32, **mesh):
    """Shapes and shardings, as training asks for them."""
    model = qwen2_5_vl.Model(config)
    shapes = model.abstract_params()
    layout = sharding.of_params(sharding.make_mesh(**mesh), shapes, model.logical_axes())
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, dtype, sharding=where), shapes, layout
    )


def assert_same(params, wanted, weights, config):
    expected = mapping.flatten(mapping.from_hf(weights, config))
    found, wanted = mapping.flatten(params), mapping.flatten(wanted)
    assert found.keys() == wanted.keys() == expected.keys()
    for path, array in found.items():
        assert array.dtype == wanted[path].dtype and array.sharding == wanted[path].sharding
        np.testing.assert_array_equal(np.asarray(array), expected[path].astype(array.dtype))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("block_bytes", [64 << 20, 3000], ids=["whole", "blocks"])
def test_onto_a_mesh(tmp_path, monkeypatch, mesh, block_bytes):
    monkeypatch.setattr(hf_folder, "BLOCK_BYTES", block_bytes)
    weights = random_folders.write(tmp_path, SMALL, shards=2)
    wanted = like(SMALL, **mesh)
    assert_same(parameters.load(tmp_path, SMALL, wanted), wanted, weights, SMALL)


def test_what_is_built_on_the_devices_is_the_same(tmp_path, monkeypatch):
    def only_the_rest(_device, num_bytes):
        return num_bytes not in large

    weights = random_folders.write(tmp_path, SMALL)
    wanted = like(SMALL, **MESHES[1])
    # A program is compiled for each shape and device: one stack, and what is not stacked.
    matrices = (wanted["language_model"]["layers"]["mlp"]["up_proj"], wanted["lm_head"])
    large = {m["kernel"].size * 4 // 4 for m in matrices}
    assert large == {2 * 128 * 256, 128 * 352}
    monkeypatch.setattr(hf_folder, "BLOCK_BYTES", 40_000)
    monkeypatch.setattr(parameters, "_on_host", only_the_rest)
    built = []
    zeros = parameters._zeros
    monkeypatch.setattr(parameters, "_zeros", lambda *args: built.append(args[0]) or zeros(*args))
    assert_same(parameters.load(tmp_path, SMALL, wanted), wanted, weights, SMALL)
    assert {(2, 64, 128), (64, 176)} <= set(built)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [(ml_dtypes.bfloat16, np.float32), (np.float32, ml_dtypes.bfloat16), (np.float16, np.float16)],
)
def test_dtypes_are_converted(tmp_path, stored, asked):
    weights = random_folders.write(tmp_path, TINY, random_folders.tensors(TINY, stored))
    wanted = like(TINY, asked, **MESHES[0])
    assert_same(parameters.load(tmp_path, TINY, wanted), wanted, weights, TINY)


def test_without_a_sharding_it_is_one_device(tmp_path):
    weights = random_folders.write(tmp_path, SMALL)
    wanted = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), qwen2_5_vl.Model(SMALL).abstract_params()
    )
    params = parameters.load(str(tmp_path), SMALL, wanted)
    expected = mapping.flatten(mapping.from_hf(weights, SMALL))
    for path, array in mapping.flatten(params).items():
        assert array.devices() == {jax.local_devices()[0]}
        np.testing.assert_array_equal(np.asarray(array), expected[path])


def test_a_process_reads_only_the_ranges_of_its_devices(tmp_path, monkeypatch):
    random_folders.write(tmp_path, SMALL)
    tensors = hf_folder.open_folder(tmp_path, SMALL)
    reads = []
    read = hf_folder.Tensor.read

    def recorded(self, start, stop, columns=None):
        reads.append((self.name, start, stop, columns))
        return read(self, start, stop, columns)

    monkeypatch.setattr(hf_folder.Tensor, "read", recorded)
    rows = {row.path: row for row in mapping.ROWS}
    # The quarter of a transposed matrix that two neighbouring devices hold, of the second layer.
    boxes = (((1, 2), (32, 48), (0, 256)), ((1, 2), (48, 64), (0, 256)))
    row = rows["language_model.layers.mlp.up_proj.kernel"]
    blocks = list(parameters._blocks(row, tensors, SMALL, boxes))
    assert reads == [("model.layers.1.mlp.up_proj.weight", 0, 256, (32, 64))]
    assert [(start, block.shape) for start, block in blocks] == [((1, 32, 0), (1, 32, 256))]
    # Of the embedding a range of rows: one range of bytes.
    reads.clear()
    row = rows["language_model.embed_tokens.embedding"]
    list(parameters._blocks(row, tensors, SMALL, (((88, 176), (0, 128)),)))
    assert reads == [("model.embed_tokens.weight", 88, 176, (0, 128))]


def test_a_checkpoint_is_read_too(tmp_path):
    weights = random_folders.tensors(SMALL)
    saver = checkpoint.Checkpointer(tmp_path / "checkpoints", keep_last=1, keep_best=0)
    saver.save(3, {"params": mapping.from_hf(weights, SMALL)}, {})
    wanted = like(SMALL, **MESHES[1])
    assert_same(parameters.load(tmp_path, SMALL, wanted), wanted, weights, SMALL)


def test_another_folder_is_refused(tmp_path):
    assert not parameters.is_hf_folder(tmp_path) and not parameters.is_hf_folder(tmp_path / "x")
    with pytest.raises(ValueError, match="holds no parameters: give a Hugging Face folder"):
        parameters.load(tmp_path, SMALL, like(SMALL, **MESHES[0]))


def test_another_model_is_refused_by_name(tmp_path):
    random_folders.write(tmp_path, SMALL)
    with pytest.raises(ValueError, match=r"tensor lm_head\.weight|tensor .* missing"):
        parameters.load(tmp_path, TINY, like(TINY, **MESHES[0]))
    with pytest.raises(ValueError, match="asked for are not those of the model's config"):
        parameters.load(tmp_path, SMALL, like(TINY, **MESHES[0]))
