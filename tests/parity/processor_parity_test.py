# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Image processor, tokenizer and config.json against transformers; torch is not needed.

Image tolerances: pixel_values are normalised, so a step of 1/255 in 0..1 pixel units is
1/255/image_std, about 0.0146. After a resize the 2/255 is meant in 0..1 pixel units.
"""

import hashlib
import json
import unicodedata
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import transformers
from PIL import Image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

from medloc_jax.model import config as model_config
from medloc_jax.model import processor, tokenizer

pytestmark = pytest.mark.parity

FOLDER = Path(__file__).resolve().parents[2] / "../shared/processor"
QWEN = processor.ImageProcessor(14, 2, 2, min_pixels=3136, max_pixels=12_845_056)
TINY = processor.ImageProcessor(8, 2, 2, min_pixels=256, max_pixels=4096)
MESSAGE = "Where is the lesion? [12, 345] é \n\n  ok"


def pattern(height, width):
    """The image of tests/model/processor_test.py."""
    y, x = np.mgrid[:height, :width]
    channels = [(7 * x + 3 * y) % 256, (x * y) % 256, (5 * x * x + 11 * y) % 256]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def theirs(process, image):
    other = reference.Qwen2VLImageProcessorPil(
        patch_size=process.patch_size,
        temporal_patch_size=process.temporal_patch_size,
        merge_size=process.merge_size,
        min_pixels=process.min_pixels,
        max_pixels=process.max_pixels,
    )
    done = other(images=[image], return_tensors="np")
    return done["pixel_values"], tuple(done["image_grid_thw"][0].tolist())


@pytest.mark.parametrize(
    ("process", "size", "digest"),
    [
        (QWEN, (112, 84), "4b92ffde7e1057b3c1cae5f8ea81fbe1e592f48146917d68601698e1173e061f"),
        (QWEN, (84, 252), "cab961ce9124326b659f5a35c5adbc093d58b2c82620452dac3de87240450c16"),
        (QWEN, (28, 2800), None),
        (TINY, (48, 80), "39139ab1f28a83a77c103f9ca01799edb1775e965ff00ce4a89467d345e0d0d7"),
    ],
)
def test_images_that_need_no_resize(process, size, digest):
    image = pattern(*size)
    assert process.resized_size(*size) == size
    values, grid = process(image)
    expected, expected_grid = theirs(process, image)
    assert grid == expected_grid
    assert np.abs(values - expected).max() <= 1e-6
    if digest is not None:  # the unit test's golden number
        assert hashlib.sha256(expected.tobytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("process", "size"),
    [(QWEN, (100, 150)), (QWEN, (37, 41)), (QWEN, (480, 640)), (TINY, (150, 200)), (TINY, (9, 70))],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_resized_images(process, size, mode):
    image = pattern(*size).convert(mode)
    assert process.resized_size(*size) != size
    values, grid = process(image)
    expected, expected_grid = theirs(process, image)
    assert grid == expected_grid
    in_pixel_units = np.abs(values - expected).reshape(len(values), 3, -1).max((0, 2))
    assert (in_pixel_units * np.array(process.image_std) <= 2 / 255).all()


def test_a_shifted_image_is_noticed():
    """The tolerance after a resize is tight enough to see one pixel of displacement."""
    image = pattern(100, 150)
    values, _ = QWEN(Image.fromarray(np.roll(np.asarray(image), 1, axis=1)))
    assert np.abs(values - theirs(QWEN, image)[0]).max() * min(QWEN.image_std) > 10 / 255


def test_processor_config_reads_the_same():
    other = reference.Qwen2VLImageProcessorPil.from_dict(QWEN.to_hf())
    assert (other.size["shortest_edge"], other.size["longest_edge"]) == (3136, 12_845_056)
    assert (other.patch_size, other.temporal_patch_size, other.merge_size) == (14, 2, 2)
    assert tuple(other.image_mean) == QWEN.image_mean
    assert tuple(other.image_std) == QWEN.image_std


# ---- config.json ----


@pytest.mark.parametrize("name", ["tiny", "3b", "7b", "72b"])
def test_config_json(name, tmp_path):
    """Theirs reads ours, and ours reads what theirs writes."""
    config = model_config.PRESETS[name]
    other = transformers.Qwen2_5_VLConfig.from_dict(model_config.to_hf(config))
    assert other.text_config.hidden_size == config.text.hidden_size
    assert other.text_config.num_key_value_heads == config.text.num_key_value_heads
    assert tuple(other.text_config.rope_parameters["mrope_section"]) == config.text.mrope_section
    assert other.vision_config.intermediate_size == config.vision.intermediate_size
    assert tuple(other.vision_config.fullatt_block_indexes) == config.vision.fullatt_block_indexes
    assert other.tie_word_embeddings == config.text.tie_word_embeddings
    assert other.image_token_id == config.image_token_id
    other.save_pretrained(tmp_path)
    assert model_config.from_hf(tmp_path) == config


# ---- tokenizers ----


@pytest.fixture(scope="module")
def real():
    if not FOLDER.is_dir():
        pytest.skip("the published tokenizer is not at hand")
    theirs = transformers.AutoTokenizer.from_pretrained(str(FOLDER))
    return tokenizer.load(FOLDER, model_config.PRESETS["7b"]), theirs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    ours = tokenizer.load("", model_config.PRESETS["tiny"])
    ours.save(folder)
    return ours, transformers.AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture(params=["real", "tiny"])
def both(request):
    return request.getfixturevalue(request.param)


def rendered(theirs, text, images):
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    return theirs.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("text", ["skin lesion", MESSAGE, "\n{{ x }}", ""])
def test_prompts(both, text, images):
    ours, theirs = both
    assert (
        ours.encode_prompt(text, [1] * images) == theirs(rendered(theirs, text, images)).input_ids
    )
    counts = list(range(2, 2 + images))
    expanded = ours.encode_prompt(text, counts)
    assert expanded.count(ours.image_token_id) == sum(counts)


def test_completions(both):
    ours, theirs = both
    text = "<think>é 12</think>\n<answer>[1, 23, 456, 7890]</answer>"
    ids = ours.encode_completion(text)
    assert ids == theirs(text + "<|im_end|>").input_ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text


def test_saved_tokenizer_is_the_same(tiny):
    ours, theirs = tiny
    assert len(theirs) == ours.vocab_size
    assert theirs.eos_token_id == ours.stop_ids[0]
    assert theirs.pad_token_id == ours.pad_id
    again = tokenizer.load(theirs.name_or_path, model_config.PRESETS["tiny"])
    assert again.encode_prompt(MESSAGE, [3]) == ours.encode_prompt(MESSAGE, [3])
    assert again.forbidden_ids == ours.forbidden_ids


def test_real_tokenizer_saves_and_loads(real, tmp_path):
    ours, _ = real
    ours.save(tmp_path)
    again = tokenizer.load(tmp_path, model_config.PRESETS["3b"])
    assert again.encode_prompt(MESSAGE, [3]) == ours.encode_prompt(MESSAGE, [3])
    assert again.stop_ids == ours.stop_ids == (151645, 151643)


def test_real_tokens(real):
    ours, theirs = real
    assert ours.encode_completion("<think>") == [13708, 766, 29, 151645]
    assert ours.encode_completion("</answer>") == [522, 9217, 29, 151645]
    assert len(ours.encode_completion("0123456789")) == 11
    assert ours.vocab_size == 152064
    beyond = set(range(len(theirs), 152064))
    assert beyond < set(ours.forbidden_ids)
    special = set(theirs.all_special_ids) - set(ours.stop_ids)
    assert special < set(ours.forbidden_ids)
    assert not set(ours.stop_ids) & set(ours.forbidden_ids)


def test_template_in_code_is_the_published_one(real):
    _, theirs = real
    assert theirs.chat_template == tokenizer.CHAT_TEMPLATE
    content = json.loads((FOLDER / "chat_template.json").read_text())
    assert content["chat_template"] == tokenizer.CHAT_TEMPLATE


@hypothesis.given(text=st.text())
def test_real_decode_inverts_encode(real, text):
    hypothesis.assume(not any(token in text for token in tokenizer.ADDED_TOKENS))
    ours, _ = real
    assert ours.decode(ours.encode_completion(text)) == unicodedata.normalize("NFC", text)


def test_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer that can be read"):
        tokenizer.load(tmp_path)
