# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import pickle
import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest
from tokenizers import Tokenizer as Backend

from medloc_jax.model import config as model_config
from medloc_jax.model import tokenizer

TINY = tokenizer.load("", model_config.PRESETS["tiny"])
PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>skin lesion<|im_end|>\n<|im_start|>assistant\n"
)


def pieces(text):
    """Each token of the tiny tokenizer as text, the end of turn left out."""
    return [TINY.decode([token]) for token in TINY.encode_completion(text)[:-1]]


def test_tiny_ids_are_the_presets():
    for name in ("tiny", "bench_tiny"):
        config = model_config.PRESETS[name]
        assert tokenizer.load("", config).vocab_size == config.text.vocab_size
    assert TINY.stop_ids[1] == model_config.TINY_FIRST_ADDED_ID
    assert tokenizer.load().vocab_size == model_config.PRESETS["tiny"].text.vocab_size


@pytest.mark.parametrize("query", ["skin lesion", "dark lesion", "bright nodule", "brain tumor"])
def test_tiny_prompt_is_short(query):
    ids = TINY.encode_prompt(query, [16])
    assert ids.count(TINY.image_token_id) == 16
    assert len(ids) - 16 == 23


@pytest.mark.parametrize("word", tokenizer._TINY_WORDS)
def test_tiny_words_are_one_token(word):
    assert pieces(word) == [word]


def test_every_digit_is_a_token():
    assert pieces("[12,345,6]") == list("[12,345,6]")
    assert pieces("0123456789") == list("0123456789")


def test_prompt_is_the_template():
    assert TINY.encode_prompt("skin lesion", [1]) == TINY._backend.encode(PROMPT).ids
    two = TINY.encode_prompt("x", [2, 3])
    start, image, end = TINY.vision_start_token_id, TINY.image_token_id, TINY.vision_end_token_id
    first = two.index(start)
    assert two[first : first + 9] == [start, image, image, end, start, image, image, image, end]
    text_only = TINY.encode_prompt("\nx", [])
    assert image not in text_only
    # Newlines of template and text are one piece for the pre-tokenizer.
    image_and_query = "<|vision_start|><|image_pad|><|vision_end|>skin lesion"
    assert text_only == TINY._backend.encode(PROMPT.replace(image_and_query, "\nx")).ids


def test_prompts_are_cached_and_not_shared():
    fresh = tokenizer.load()
    fresh.encode_prompt("skin lesion", [16]).append(-1)
    for count in (16, 4, 16):
        ids = fresh.encode_prompt("skin lesion", [count])
        assert -1 not in ids and ids.count(fresh.image_token_id) == count
    assert fresh._prompt.cache_info().misses == 1


@pytest.mark.parametrize("token", tokenizer.ADDED_TOKENS)
def test_reserved_tokens_in_text_are_refused(token):
    with pytest.raises(ValueError, match="reserved token"):
        TINY.encode_prompt(f"a {token} b", [4])
    with pytest.raises(ValueError, match="reserved token"):
        TINY.encode_completion(f"a {token} b")


def test_image_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        TINY.encode_prompt("x", [4, 0])


@hypothesis.given(st.text())
def test_decode_inverts_encode(text):
    hypothesis.assume(not any(token in text for token in tokenizer.ADDED_TOKENS))
    assert TINY.decode(TINY.encode_completion(text)) == unicodedata.normalize("NFC", text)


def test_decode_stops_and_skips():
    ids = TINY.encode_completion("[1,2]")
    for stop in TINY.stop_ids:
        assert TINY.decode([*ids[:-1], stop, *ids]) == "[1,2]"
    assert (
        TINY.decode([TINY.image_token_id, *ids[:2], TINY.vision_end_token_id, *ids[2:]]) == "[1,2]"
    )
    assert TINY.decode([]) == ""


def test_forbidden_ids():
    assert TINY.stop_ids == (332, 330)
    assert TINY.pad_id == 330
    assert set(TINY.forbidden_ids) == set(range(330, 352)) - {330, 332}
    wide = tokenizer.load("", model_config.PRESETS["bench_tiny"])
    assert set(wide.forbidden_ids) == set(range(330, 2048)) - {330, 332}


def test_models_that_do_not_belong_are_refused():
    config = model_config.PRESETS["tiny"]
    with pytest.raises(ValueError, match="image_token_id is 341, the tokenizer's 342"):
        tokenizer.load("", dataclasses.replace(config, image_token_id=341))
    narrow = dataclasses.replace(
        config, text=dataclasses.replace(config.text, vocab_size=344), video_token_id=1
    )
    with pytest.raises(ValueError, match="vocab_size of 344"):
        tokenizer.load("", narrow)


def test_pickled_tokenizer_is_the_same():
    copy = pickle.loads(pickle.dumps(TINY))
    assert copy.encode_prompt("skin lesion", [16]) == TINY.encode_prompt("skin lesion", [16])
    assert copy.forbidden_ids == TINY.forbidden_ids
    assert copy.vocab_size == TINY.vocab_size


def test_saved_files(tmp_path):
    TINY.save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    assert backend.encode(PROMPT).ids == TINY.encode_prompt("skin lesion", [1])
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == tokenizer.CHAT_TEMPLATE
    assert settings["added_tokens_decoder"][str(TINY.image_token_id)]["content"] == "<|image_pad|>"
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    assert len(vocab) == model_config.TINY_FIRST_ADDED_ID
    assert (tmp_path / "merges.txt").is_file()


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such tokenizer folder"):
        tokenizer.load(tmp_path / "none")


def test_other_tokenizers_are_refused():
    with pytest.raises(ValueError, match="has no <|image_pad|>".replace("|", r"\|")):
        tokenizer.Tokenizer(Backend.from_str(_without_added_tokens()), tokenizer.CHAT_TEMPLATE)
    plain = tokenizer.Tokenizer(TINY._backend, "{{ messages[0]['role'] }}")
    with pytest.raises(ValueError, match="0 placeholders for 1 images"):
        plain.encode_prompt("x", [4])


def _without_added_tokens():
    content = json.loads(TINY._backend.to_str())
    content["added_tokens"] = []
    return json.dumps(content)
