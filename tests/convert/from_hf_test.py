# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import jax
import ml_dtypes
import numpy as np
import pytest
import random_folders
from random_folders import SMALL, TINY

from medloc_jax import checkpoint
from medloc_jax.convert import from_hf, hf_folder, mapping


def convert(folder, config, target, dtype=None):
    tensors = hf_folder.open_folder(folder, config)
    kept = {name: tensors[name] for name in mapping.hf_shapes(config)}
    seen = []
    from_hf.write(kept, config, target, dtype=dtype, progress=seen.append, host_state={"a": 1})
    return sum(seen), sum(tensor.nbytes for tensor in kept.values())


def load(source, config, dtype):
    like = {
        path: jax.ShapeDtypeStruct(shape, dtype)
        for path, shape in mapping.expected_shapes(config).items()
    }
    return mapping.flatten(checkpoint.load_item(source, "params", mapping.nest(like)))


@pytest.mark.parametrize("config", [SMALL, TINY], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_it_is_an_ordinary_checkpoint(tmp_path, config, dtype):
    weights = random_folders.write(tmp_path / "hf", config, random_folders.tensors(config, dtype))
    read, size = convert(tmp_path / "hf", config, tmp_path / "orbax/checkpoints/0")
    assert read == size and checkpoint.is_checkpoint(tmp_path / "orbax")
    expected = mapping.flatten(mapping.from_hf(weights, config))
    for path, array in load(tmp_path / "orbax", config, dtype).items():
        np.testing.assert_array_equal(np.asarray(array), expected[path])
    restored = checkpoint.load_items(tmp_path / "orbax", {})
    assert restored.step == 0 and restored.host_state == {"a": 1}


def test_many_small_blocks_and_chunks_make_the_same_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_folder, "BLOCK_BYTES", 5000)
    monkeypatch.setattr(from_hf, "_LEAST_CHUNK", 64)
    monkeypatch.setattr(checkpoint, "_IN_FLIGHT_BYTES", 10_000)
    weights = random_folders.write(tmp_path / "hf", SMALL)
    convert(tmp_path / "hf", SMALL, tmp_path / "orbax/checkpoints/0")
    opened = checkpoint.open_item(tmp_path / "orbax", "params")
    stored = opened.arrays["language_model.layers.mlp.up_proj.kernel"]
    assert stored.shape == (2, 128, 256) and stored.chunk_shape == (1, 16, 32)
    expected = mapping.flatten(mapping.from_hf(weights, SMALL))
    for path, array in load(tmp_path / "orbax", SMALL, np.float32).items():
        np.testing.assert_array_equal(np.asarray(array), expected[path])


def test_a_dtype_can_be_asked_for(tmp_path):
    weights = random_folders.write(tmp_path / "hf", SMALL)
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    convert(tmp_path / "hf", SMALL, tmp_path / "orbax/checkpoints/0", bfloat16)
    opened = checkpoint.open_item(tmp_path / "orbax", "params")
    assert {stored.dtype for stored in opened.arrays.values()} == {bfloat16}
    embedding = opened.arrays["language_model.embed_tokens.embedding"].read([(0, 352), (0, 128)])
    expected = weights["model.embed_tokens.weight"].astype(bfloat16)
    np.testing.assert_array_equal(embedding, expected)


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [((2048, 11008), (256, 1376)), ((1280, 3420), (320, 855)), ((128, 256), (128, 256)),
     ((8,), (8,)), ((11, 3_000_000), (2, 375_000))],
)  # fmt: skip
def test_a_large_matrix_is_stored_in_parts(shape, chunk):
    assert from_hf._chunk(shape, 2) == chunk
