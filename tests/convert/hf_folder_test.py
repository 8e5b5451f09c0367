# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import random_folders
import safetensors.numpy
from random_folders import SMALL, TINY

from medloc_jax.convert import hf_folder, mapping
from medloc_jax.model import config as model_config

SHARED = Path(__file__).resolve().parents[2] / "../shared"
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_reads_as_written(tmp_path, dtype, shards):
    weights = random_folders.tensors(SMALL, dtype)
    random_folders.write(tmp_path, SMALL, weights, shards=shards)
    assert hf_folder.is_hf_folder(tmp_path)
    found = hf_folder.open_folder(tmp_path, SMALL)
    assert found.keys() == weights.keys()
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        np.testing.assert_array_equal(tensor.read(0, tensor.shape[0]), weights[name])


def test_parts_of_a_tensor(tmp_path, monkeypatch):
    weights = random_folders.write(tmp_path, SMALL)
    tensor = hf_folder.open_folder(tmp_path, SMALL)[NAME]
    np.testing.assert_array_equal(tensor.read(3, 7), weights[NAME][3:7])
    np.testing.assert_array_equal(tensor.read(3, 7, (16, 32)), weights[NAME][3:7, 16:32])
    monkeypatch.setattr(hf_folder, "BLOCK_BYTES", 10 * tensor.row_bytes)
    assert list(tensor.blocks(5, 30)) == [(5, 15), (15, 25), (25, 30)]
    assert list(tensor.blocks(0, 30, multiple_of=4)) == [(0, 8), (8, 16), (16, 24), (24, 30)]
    assert next(iter(tensor.blocks(multiple_of=16))) == (0, 16)


def test_in_memory_names_are_found_under_their_published_ones(tmp_path):
    weights = random_folders.tensors(SMALL)
    renamed = {random_folders.in_memory_name(k): v for k, v in weights.items()}
    random_folders.write(tmp_path, SMALL, renamed)
    found = hf_folder.open_folder(tmp_path, SMALL)
    assert found.keys() == weights.keys() and found[NAME].name != NAME
    np.testing.assert_array_equal(found[NAME].read(0, 2), weights[NAME][:2])


def test_a_tied_head_may_be_absent_or_equal_but_not_another(tmp_path):
    weights = random_folders.tensors(TINY)
    head = weights["model.embed_tokens.weight"].copy()
    random_folders.write(tmp_path, TINY, weights | {"lm_head.weight": head})
    found = hf_folder.open_folder(tmp_path, TINY)
    hf_folder.check_tied_head(found, TINY)
    head[-1, -1] += 1
    random_folders.write(tmp_path, TINY, weights | {"lm_head.weight": head})
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from the embedding"):
        hf_folder.check_tied_head(hf_folder.open_folder(tmp_path, TINY), TINY)
    half = weights | {"lm_head.weight": head.astype(np.float16)}
    random_folders.write(tmp_path, TINY, half)
    with pytest.raises(ValueError, match=r"lm_head\.weight is float16, but .*embed_tokens"):
        hf_folder.open_folder(tmp_path, TINY)


def _rename(new):
    def change(weights):
        weights[new] = weights.pop(NAME)

    return change


def _replace(value):
    def change(weights):
        weights[NAME] = value(weights[NAME])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename("model.layers.1.mlp.upproj.weight"), r"upproj\.weight is no Qwen2\.5-VL tensor"),
        (_rename("model.layers.2.mlp.up_proj.weight"), r"layers\.2\..* is of layer 2, .* has 2"),
        (lambda w: w.pop(NAME), rf"tensor {NAME} missing in .*: complete it"),
        (lambda w: w.update({"model.language_model.norm.weight": w["model.norm.weight"]}),
         r"model\.norm\.weight is set twice, by '.*' and by '.*': keep one"),
        (_replace(lambda x: x[:-1]), rf"tensor {NAME} has shape \(255, 128\), the config asks"),
        (_replace(lambda x: x.astype(np.float16)), r"up_proj\.weight is float\d+, but .* is"),
        (_replace(lambda x: x.astype(np.int8)), rf"tensor {NAME} is I8; only BF16, F16, F32"),
        (_replace(lambda x: x.astype(np.float64)), rf"tensor {NAME} is F64; only"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shards", [1, 2])
def test_a_wrong_tensor_is_refused_by_name(tmp_path, change, message, shards):
    weights = random_folders.tensors(SMALL)
    change(weights)
    random_folders.write(tmp_path, SMALL, weights, shards=shards)
    with pytest.raises(ValueError, match=message) as error:
        hf_folder.open_folder(tmp_path, SMALL)
    assert "\n" not in str(error.value)


def _edit_index(folder, edit):
    path = folder / hf_folder.INDEX
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


def _wrong_shard(folder):
    other = "model-00002-of-00002.safetensors"

    def edit(weight_map):
        name = next(n for n, file in weight_map.items() if file != other)
        weight_map[name] = other

    _edit_index(folder, edit)


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (_wrong_shard, r"is not in model-00002-of-00002\.safetensors, where the index says"),
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
         r"tensor .* is in model-00002-of-00002\.safetensors, which is not there"),
        (lambda f: _edit_index(f, lambda m: m.pop("model.norm.weight")),
         r"tensor model\.norm\.weight is not in model\.safetensors\.index\.json"),
        (lambda f: _edit_index(f, lambda m: m.update({"x": "../model.safetensors"})),
         r"tensor x is in \.\./model\.safetensors, which is not there"),
        (lambda f: (f / hf_folder.INDEX).unlink(), r"2 safetensors files but no model\.safeten"),
        (lambda f: (f / hf_folder.INDEX).write_text("[]"), r"is no index of safetensors files"),
        (lambda f: (f / "adapter.safetensors").write_bytes(b""), r"adapter\.safetensors is not n"),
        (lambda f: [p.unlink() for p in f.glob("*.safetensors*")], r"has no \*\.safetensors file"),
    ],
)  # fmt: skip
def test_a_wrong_index_is_refused_by_name(tmp_path, breaks, message):
    random_folders.write(tmp_path, SMALL, shards=2)
    breaks(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        hf_folder.open_folder(tmp_path, SMALL)
    assert "\n" not in str(error.value)


def test_a_key_twice_in_the_index_is_refused_by_name(tmp_path):
    random_folders.write(tmp_path, SMALL, shards=2)
    index = tmp_path / hf_folder.INDEX
    key, value = next(iter(json.loads(index.read_text())["weight_map"].items()))
    entry = f'"{key}": "{value}"'
    assert entry in index.read_text()
    index.write_text(index.read_text().replace(entry, f"{entry}, {entry}"))
    with pytest.raises(ValueError, match=rf"index\.json: tensor {key} is set twice: keep one"):
        hf_folder.open_folder(tmp_path, SMALL)


def test_a_key_in_two_shards_is_refused_by_name(tmp_path):
    random_folders.write(tmp_path, SMALL, shards=2)
    file = tmp_path / "model-00002-of-00002.safetensors"
    content = safetensors.numpy.load_file(str(file))
    first = safetensors.numpy.load_file(str(tmp_path / "model-00001-of-00002.safetensors"))
    name = next(iter(first))
    safetensors.numpy.save_file(content | {name: first[name]}, str(file))
    with pytest.raises(ValueError, match=rf"{name} is set twice, in model-00001.* and in model-0"):
        hf_folder.open_folder(tmp_path, SMALL)


def _raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _entry(begin, end, shape=(1,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": _entry(0, 4)}, b"abc", r"is truncated: its header says 73 bytes, the file has 72"),
        ({"a": _entry(0, 4)}, b"abcde", r"is longer than its header says"),
        ({"a": _entry(0, 8)}, bytes(8), r"tensor a of shape \(1,\) has 8 bytes instead of 4"),
        ({"a": _entry(0, 4), "b": _entry(8, 12)}, bytes(12), r"overlap or leave gaps"),
        ({"a": _entry(0, 4), "b": _entry(0, 4)}, bytes(4), r"overlap or leave gaps"),
        ({"a": {"dtype": "F32"}}, b"", r"tensor a has a malformed header entry"),
        ({"a": _entry(0, 0, ())}, b"", r"tensor a of shape \(\) is empty or a scalar"),
        (b'{"a": 1, "a": 2}', b"", r"tensor a is set twice in the header"),
        (b"nonsense", b"", r"the header is not JSON"),
        (b"[]", b"", r"the header is not a JSON object"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path, header, data, message):
    path = tmp_path / "model.safetensors"
    _raw(path, header, data)
    with pytest.raises(ValueError, match=message) as error:
        hf_folder.read_header(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 2**40) + b"{}"])
def test_a_file_that_ends_in_its_header_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"truncated or no safetensors file"):
        hf_folder.read_header(path)


def test_a_file_that_becomes_shorter_is_an_error_and_no_crash(tmp_path):
    random_folders.write(tmp_path, SMALL)
    found = hf_folder.open_folder(tmp_path, SMALL)
    last = max(found.values(), key=lambda tensor: tensor.offset)
    wide = max((t for t in found.values() if len(t.shape) == 2), key=lambda tensor: tensor.offset)
    with open(last.file, "r+b") as file:
        file.truncate(wide.offset + wide.row_bytes)
    with pytest.raises(ValueError, match="truncated"):
        wide.read(0, wide.shape[0])
    with pytest.raises(ValueError, match="truncated"):
        wide.read(0, wide.shape[0], (0, 8))


def test_a_folder_without_a_config_is_refused(tmp_path):
    random_folders.write(tmp_path, SMALL)
    assert hf_folder.read_config(tmp_path) == SMALL
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json: put the one"):
        hf_folder.read_config(tmp_path)


def test_the_published_7b_by_names_and_shapes_alone(tmp_path):
    published = SHARED / "processor/configs/7B"
    if not published.exists():
        pytest.skip(f"{published} is absent")
    config = model_config.from_hf(published)
    index = json.loads((published / hf_folder.INDEX).read_text())
    shapes = mapping.hf_shapes(config)
    for file in set(index["weight_map"].values()):
        header, end = {}, 0
        for name in (n for n, where in index["weight_map"].items() if where == file):
            begin, end = end, end + 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [begin, end]}
        _raw(tmp_path / file, header)
        with open(tmp_path / file, "r+b") as shard:  # sparse: it takes no room
            shard.truncate((tmp_path / file).stat().st_size + end)
    (tmp_path / hf_folder.INDEX).write_text(json.dumps(index))
    found = hf_folder.open_folder(tmp_path, config)
    assert found.keys() == index["weight_map"].keys()
    assert sum(t.nbytes for t in found.values()) == index["metadata"]["total_size"]
    _edit_index(tmp_path, lambda weight_map: weight_map.pop("visual.merger.ln_q.weight"))
    with pytest.raises(ValueError, match=r"visual\.merger\.ln_q\.weight"):
        hf_folder.open_folder(tmp_path, config)
