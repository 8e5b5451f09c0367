# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from medloc_jax.convert import mapping
from medloc_jax.model import config as model_config

SHARED = Path(__file__).resolve().parents[2] / "../shared"
TINY = model_config.PRESETS["tiny"]
UNTIED = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, tie_word_embeddings=False))


def published(config, dtype=np.float32):
    """Random tensors under published names, no two of them equal."""
    rng = np.random.default_rng(0)
    shapes = mapping.hf_shapes(config)
    return {k: rng.standard_normal(s, np.float32).astype(dtype) for k, s in shapes.items()}


def in_memory_name(name):
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_there_and_back_is_exact(config, dtype):
    tensors = published(config, dtype)
    params = mapping.from_hf(tensors, config)
    shapes = {path: leaf.shape for path, leaf in mapping.flatten(params).items()}
    assert shapes == mapping.expected_shapes(config)
    back = mapping.to_hf(params, config)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == dtype and back[name].flags.c_contiguous
        np.testing.assert_array_equal(back[name], tensor)


def test_in_memory_names_are_the_same_tensors():
    tensors = published(UNTIED)
    renamed = {in_memory_name(name): tensor for name, tensor in tensors.items()}
    assert "model.visual.merger.mlp.0.bias" in renamed
    assert "model.language_model.embed_tokens.weight" in renamed
    back = mapping.to_hf(mapping.from_hf(renamed, UNTIED), UNTIED)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_places_and_transforms():
    tensors = published(UNTIED)
    params = mapping.from_hf(tensors, UNTIED)
    np.testing.assert_array_equal(
        params["language_model"]["layers"]["self_attn"]["k_proj"]["kernel"][2],
        tensors["model.layers.2.self_attn.k_proj.weight"].T,
    )
    np.testing.assert_array_equal(
        params["visual"]["blocks"]["attn"]["qkv"]["bias"][3],
        tensors["visual.blocks.3.attn.qkv.bias"],
    )
    np.testing.assert_array_equal(params["lm_head"]["kernel"], tensors["lm_head.weight"].T)
    # One patch through the convolution, channel by channel, is one row through the kernel.
    conv = tensors["visual.patch_embed.proj.weight"]
    patch = np.random.default_rng(1).standard_normal(conv.shape[1:], np.float32)
    by_conv = np.einsum("dcthw,cthw->d", conv, patch)
    by_kernel = patch.reshape(-1) @ params["visual"]["patch_embed"]["proj"]["kernel"]
    np.testing.assert_allclose(by_kernel, by_conv, rtol=1e-4, atol=1e-4)


def test_nothing_is_shared_with_the_source():
    tensors = published(UNTIED)
    params = mapping.from_hf(tensors, UNTIED)
    before = params["language_model"]["embed_tokens"]["embedding"].copy()
    for tensor in tensors.values():
        tensor[...] = 0
    np.testing.assert_array_equal(params["language_model"]["embed_tokens"]["embedding"], before)


def test_target_of():
    assert mapping.target_of("visual.patch_embed.proj.weight", TINY) == (
        "visual.patch_embed.proj.kernel",
        None,
        mapping.FLATTEN_CONV,
    )
    assert mapping.target_of("model.layers.3.mlp.down_proj.weight", TINY) == (
        "language_model.layers.mlp.down_proj.kernel",
        3,
        mapping.TRANSPOSE,
    )
    assert mapping.target_of("lm_head.weight", UNTIED)[0] == "lm_head.kernel"
    # A tied head is another name of the embedding.
    assert mapping.target_of("lm_head.weight", TINY) == (
        "language_model.embed_tokens.embedding",
        None,
        mapping.KEEP,
    )


@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
def test_every_name_has_its_own_place(config):
    places = [mapping.target_of(name, config)[:2] for name in mapping.hf_shapes(config)]
    assert len(set(places)) == len(places)
    assert {path for path, _ in places} == mapping.expected_shapes(config).keys()


@pytest.mark.parametrize("name", ["tiny", "bench_tiny", "3b", "7b", "32b", "72b"])
def test_shapes_add_up_to_the_number_of_parameters(name):
    config = model_config.PRESETS[name]
    shapes = mapping.expected_shapes(config).values()
    assert sum(int(np.prod(shape)) for shape in shapes) == model_config.num_parameters(config)
    hf = mapping.hf_shapes(config).values()
    assert sum(int(np.prod(shape)) for shape in hf) == model_config.num_parameters(config)


def test_names_are_those_of_the_published_7b():
    index = SHARED / "processor/configs/7B/model.safetensors.index.json"
    if not index.exists():
        pytest.skip(f"{index} is absent")
    names = json.loads(index.read_text())["weight_map"].keys()
    assert names == mapping.hf_shapes(model_config.PRESETS["7b"]).keys()


def test_tied_head_may_be_absent_or_equal():
    tensors = published(TINY)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    params = mapping.from_hf(tensors, TINY)
    assert "lm_head" not in params
    tensors["lm_head.weight"][5, 7] += 1
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from the embedding"):
        mapping.from_hf(tensors, TINY)


def drop(tensors):
    del tensors["model.layers.1.self_attn.v_proj.bias"]


def drop_untied_head(tensors):
    del tensors["lm_head.weight"]


def add(tensors):
    tensors["model.layers.1.self_attn.o_proj.bias"] = np.zeros(128, np.float32)


def misspell(tensors):
    tensors["model.layers.01.input_layernorm.weight"] = tensors.pop(
        "model.layers.1.input_layernorm.weight"
    )


def add_layer(tensors):
    tensors["visual.blocks.4.norm1.weight"] = tensors["visual.blocks.3.norm1.weight"]


def give_twice(tensors):
    tensors["model.visual.merger.ln_q.weight"] = tensors["visual.merger.ln_q.weight"]


def transpose(tensors):
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name].T


def flatten(tensors):
    name = "visual.patch_embed.proj.weight"
    tensors[name] = tensors[name].reshape(64, -1)


def halve(tensors):
    name = "visual.blocks.2.mlp.down_proj.bias"
    tensors[name] = tensors[name].astype(np.float16)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (drop, r"model\.layers\.1\.self_attn\.v_proj\.bias missing"),
        (drop_untied_head, r"lm_head\.weight missing"),
        (add, r"model\.layers\.1\.self_attn\.o_proj\.bias is no Qwen2\.5-VL tensor"),
        (misspell, r"model\.layers\.01\.input_layernorm\.weight is no Qwen2\.5-VL tensor"),
        (add_layer, r"visual\.blocks\.4\.norm1\.weight is of layer 4, but the config has 4"),
        (give_twice, r"visual\.merger\.ln_q\.weight is set twice, by .*'model\.visual"),
        (transpose, r"model\.layers\.2\.mlp\.up_proj\.weight has shape \(128, 256\)"),
        (flatten, r"visual\.patch_embed\.proj\.weight has shape"),
        (halve, r"visual\.blocks\.2\.mlp\.down_proj\.bias is float16"),
    ],
)
def test_broken_checkpoints_are_refused_by_name(break_it, message):
    tensors = published(UNTIED)
    break_it(tensors)
    with pytest.raises(ValueError, match=message):
        mapping.from_hf(tensors, UNTIED)


def test_broken_params_are_refused_by_name():
    params = mapping.from_hf(published(TINY), TINY)
    flat = mapping.flatten(params)
    path = "visual.blocks.attn.qkv.kernel"

    def refused(changed, message):
        with pytest.raises(ValueError, match=message):
            mapping.to_hf(mapping.nest(changed), TINY)

    refused({k: v for k, v in flat.items() if k != path}, f"{path} missing")
    refused(flat | {path: flat[path][:-1]}, f"{path} has shape")
    refused(flat | {"lm_head.kernel": np.zeros((128, 352))}, "lm_head.kernel has no")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (40, 50), (3, 40, 50), (1, 1)])
def test_a_copy_is_a_copy_whatever_the_layout(shape, dtype):
    source = np.random.default_rng(0).standard_normal(shape, np.float32).astype(np.float16)
    for view in (source, source.T.copy().T, source[..., ::-1]):
        target = np.zeros(shape, dtype)
        mapping.copy_into(target, view)
        np.testing.assert_array_equal(target, view.astype(dtype))


def test_what_float16_cannot_hold_is_refused_by_name():
    half, values = np.dtype(np.float16), np.array([1.0, -7e4], np.float32)
    with pytest.raises(ValueError, match=r"tensor x has a value of 7e\+04, .*: use bfloat16"):
        mapping.check_range(values, half, "x")
    mapping.check_range(values, np.dtype(ml_dtypes.bfloat16), "x")
    mapping.check_range(values[:1], half, "x")
    mapping.check_range(np.array([np.inf], np.float32), half, "x")  # it was infinite before
