# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import copy
import dataclasses
import json
from pathlib import Path

import pytest

from medloc_jax.model import config as model_config

SHARED = Path(__file__).resolve().parents[2] / "../shared/processor"
TINY = model_config.PRESETS["tiny"]

# A published file's keys, with the sizes of the 3B model.
FLAT = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}
TOP_LEVEL = ("model_type", "architectures", "vision_config", "tie_word_embeddings")


def nested():
    """The same model in the newer layout."""
    text = {key: value for key, value in FLAT.items() if key not in TOP_LEVEL}
    ids = {
        key: text.pop(key) for key in list(text) if key.startswith(("image_", "v")) and "id" in key
    }
    scaling = text.pop("rope_scaling")
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": text.pop("rope_theta"),
        "mrope_section": scaling["mrope_section"],
    }
    vision = {**FLAT["vision_config"], "in_channels": 3}
    del vision["in_chans"]
    return {
        **{key: FLAT[key] for key in TOP_LEVEL},
        **ids,
        "bos_token_id": None,
        "text_config": {**text, "model_type": "qwen2_5_vl_text"},
        "vision_config": vision,
    }


def changed(layout, path, value):
    """A copy with one key set, or removed where value is None."""
    content = copy.deepcopy(layout)
    *parents, key = path.split("/")
    section = content
    for parent in parents:
        section = section[parent]
    if value is None:
        del section[key]
    else:
        section[key] = value
    return content


@pytest.mark.parametrize("layout", [FLAT, nested()], ids=["flat", "nested"])
def test_both_layouts_give_the_preset(layout):
    assert model_config.from_hf(layout) == model_config.PRESETS["3b"]


@pytest.mark.parametrize("name", ["3B", "7B", "32B", "72B"])
def test_presets_are_the_published_files(name):
    folder = SHARED / "configs" / name
    if not folder.is_dir():
        pytest.skip("the published configs are not at hand")
    config = model_config.from_hf(folder)
    assert config == model_config.PRESETS[name.lower()]
    assert config == model_config.from_hf(folder / "config.json")
    assert config == model_config.preset(str(folder))


@pytest.mark.parametrize("name", model_config.PRESETS)
def test_to_hf_and_back(name, tmp_path):
    config = model_config.preset(name)
    (tmp_path / "config.json").write_text(json.dumps(model_config.to_hf(config)))
    assert model_config.from_hf(tmp_path) == config


@pytest.mark.parametrize(
    ("name", "count"), [("3b", 3_754_622_976), ("7b", 16_584_333_312 // 2), ("tiny", 927_040)]
)
def test_num_parameters(name, count):
    assert model_config.num_parameters(model_config.PRESETS[name]) == count


def test_tiny_keeps_the_architecture_alive():
    vision, text = TINY.vision, TINY.text
    assert (vision.patch_dim, vision.merge_unit, vision.window_patches) == (384, 4, 16)
    assert 0 < len(vision.fullatt_block_indexes) < vision.depth
    assert text.num_key_value_heads < text.num_attention_heads
    assert all(text.mrope_section)
    assert text.vocab_size % 32 == 0


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model_type", "qwen2_vl", "model_type 'qwen2_vl'"),
        ("model_type", None, "model_type None"),
        ("hidden_act", "gelu", "hidden_act 'gelu'"),
        ("vision_config/hidden_act", "quick_gelu", "vision_config: hidden_act 'quick_gelu'"),
        ("use_sliding_window", True, "use_sliding_window True"),
        ("rope_scaling/type", "yarn", "rope_scaling: type 'yarn'"),
        ("rope_scaling/rope_type", "linear", "rope_scaling: rope_type 'linear'"),
        ("rope_scaling", [16, 24, 24], "must be an object"),
        ("rope_scaling/mrope_section", None, "mrope_section is missing"),
        ("rope_scaling/mrope_section", [16, 24, 25], "mrope_section (16, 24, 25)"),
        ("rope_theta", None, "rope_theta is missing"),
        ("rms_norm_eps", None, "rms_norm_eps is missing"),
        ("hidden_size", None, "hidden_size is missing"),
        ("hidden_size", 2050, "hidden_size 2050"),
        ("num_key_value_heads", 3, "num_key_value_heads 3"),
        ("vocab_size", "151936", "vocab_size must be an integer"),
        ("vocab_size", 1000, "lies outside vocab_size 1000"),
        ("tie_word_embeddings", None, "tie_word_embeddings is missing"),
        ("tie_word_embeddings", "yes", "tie_word_embeddings must be true or false"),
        ("image_token_id", None, "image_token_id is missing"),
        ("eos_token_id", [151645, 151643], "eos_token_id must be an integer"),
        ("vision_config", None, "vision_config is missing"),
        ("vision_config/intermediate_size", None, "vision_config: intermediate_size is missing"),
        ("vision_config/in_chans", None, "in_channels or in_chans is missing"),
        ("vision_config/window_size", 100, "window_size 100"),
        ("vision_config/num_heads", 7, "num_heads 7"),
        ("vision_config/out_hidden_size", 3584, "out_hidden_size 3584"),
        ("vision_config/fullatt_block_indexes", [7, 32], "[32] lie outside depth 32"),
        ("vision_config/fullatt_block_indexes", 7, "fullatt_block_indexes must be a list"),
    ],
)
def test_refuses_and_names_the_key(path, value, words):
    with pytest.raises(ValueError) as caught:
        model_config.from_hf(changed(FLAT, path, value))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_refuses_an_unreadable_file(content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json"):
        model_config.from_hf(tmp_path / "config.json")


def test_unknown_preset():
    with pytest.raises(ValueError, match="'4b' is neither one of tiny, "):
        model_config.preset("4b")


def test_configs_are_hashable_and_frozen():
    assert hash(TINY) == hash(model_config.from_hf(model_config.to_hf(TINY)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.eos_token_id = 0
