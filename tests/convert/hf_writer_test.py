# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json

import ml_dtypes
import numpy as np
import pytest
import random_folders
import safetensors

from medloc_jax.convert import hf_folder, hf_writer

FLOAT, HALF = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("2GiB", 2**31), ("64 kib", 2**16), ("77", 77)],
)
def test_sizes(text, size):
    assert hf_writer.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5 apples", "-1GB", "0GB", "GB", "1.5GB", "5TB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is no size: write it like 5GB"):
        hf_writer.parse_size(text)


def test_parts_in_any_order_make_the_file(tmp_path):
    a = np.arange(48, dtype=np.float32).reshape(6, 8)
    b = np.linspace(-1, 1, 5).astype(HALF)
    writer = hf_writer.Writer(tmp_path, {"a": (a.shape, FLOAT), "b": (b.shape, HALF)}, 10**9)
    writer.write("b", 2, b[2:])
    writer.write("a", 4, a[4:6, 3:8], (3, 8))
    writer.write("a", 0, a[:4])
    writer.write("b", 0, b[:2])
    writer.write("a", 4, a[4:6, :3], (0, 3))
    with pytest.raises(ValueError, match="the header is not JSON"):  # not yet
        hf_folder.read_header(tmp_path / "model.safetensors")
    writer.finish()
    found = random_folders.read(tmp_path)
    np.testing.assert_array_equal(found["a"], a)
    np.testing.assert_array_equal(found["b"], b)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_files_are_cut_at_the_size_and_named_in_the_index(tmp_path):
    specs = {"a": ((10,), FLOAT), "b": ((10,), FLOAT), "c": ((30,), FLOAT), "d": ((1,), FLOAT)}
    writer = hf_writer.Writer(tmp_path, specs, 100)
    for name, (shape, dtype) in specs.items():
        writer.write(name, 0, np.full(shape, ord(name), dtype))
    writer.finish()
    index = json.loads((tmp_path / hf_folder.INDEX).read_text())
    one, two, three = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
    assert index["weight_map"] == {"a": one, "b": one, "c": two, "d": three}
    assert index["metadata"]["total_size"] == 204
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [one, two, three]
    assert random_folders.read(tmp_path)["c"][29] == ord("c")


def test_a_part_of_another_dtype_or_shape_is_a_mistake_of_ours(tmp_path):
    writer = hf_writer.Writer(tmp_path, {"a": ((6, 8), FLOAT)}, 10**9)
    for start, part in ((0, np.ones((2, 8))), (5, np.ones((2, 8), np.float32))):
        with pytest.raises(AssertionError):
            writer.write("a", start, part)
