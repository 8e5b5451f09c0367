# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import random_folders
from random_folders import TINY

from medloc_jax.convert import side_files
from medloc_jax.model import config as model_config
from medloc_jax.model import processor, tokenizer

SHARED = Path(__file__).resolve().parents[2] / "../shared"


def run_config(**model):
    settings = {"preset": "tiny", "init_from": "", "tokenizer": ""} | model
    data = {"min_pixels": 1024, "max_pixels": 4096, "template": "box", "manifest": "m.jsonl"}
    rl = {"max_completion_tokens": 12}
    return {"method": "grpo", "model": settings, "data": data, "rl": rl}


def read_run(folder, content):
    path = folder / "config.json"
    path.write_text(json.dumps(content))
    return side_files.read_run(path)


def test_a_run_and_a_model_are_told_apart(tmp_path):
    run = read_run(tmp_path, run_config(init_from="x"))
    assert run is not None
    assert (run.preset, run.init_from, run.max_pixels) == ("tiny", "x", 4096)
    assert read_run(tmp_path, model_config.to_hf(TINY)) is None


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"model": {}, "data": {}}'])
def test_what_is_neither_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is neither a model's config nor that of a"):
        side_files.read_run(tmp_path / "config.json")


def test_the_small_models_bring_everything(tmp_path):
    run = read_run(tmp_path, run_config())
    config, base = side_files.run_model(run, "")
    assert config == TINY and base is None
    out = tmp_path / "out"
    out.mkdir()
    side_files.write_for_run(run, config, base, out)
    assert model_config.from_hf(out) == TINY
    pixels = processor.ImageProcessor.from_folder(out)
    assert (pixels.min_pixels, pixels.max_pixels, pixels.patch_size) == (1024, 4096, 8)
    own, loaded = tokenizer.load("", TINY), tokenizer.load(out, TINY)
    assert loaded.encode_prompt("skin lesion é", [3]) == own.encode_prompt("skin lesion é", [3])
    decoding = json.loads((out / "generation_config.json").read_text())
    assert decoding["eos_token_id"] == list(own.stop_ids)
    told = json.loads((out / side_files.TRAINING_FILE).read_text())
    assert told == {"template": "box", "max_completion_tokens": 12}
    assert decoding["top_k"] == 1 and decoding["repetition_penalty"] == 1.0


def test_published_files_of_the_base_go_along(tmp_path):
    base = tmp_path / "base"
    published = model_config.to_hf(TINY) | {"torch_dtype": "bfloat16", "someone": "else's"}
    random_folders.write(base, TINY, content=published)
    (base / "LICENSE").write_text("terms")
    tokenizer.load("", TINY).save(base)
    (base / "vocab.json").write_text((base / "vocab.json").read_text() + "\n\n")
    for settings in (
        {"preset": str(base), "tokenizer": str(base)},
        {"init_from": str(base), "tokenizer": str(base)},
        {"tokenizer": str(base)},
    ):
        run = read_run(tmp_path, run_config(**settings))
        config, found = side_files.run_model(run, "")
        assert config == TINY and found == base
    out = tmp_path / "out"
    out.mkdir()
    side_files.write_for_run(run, config, base, out)
    for name in ("config.json", "LICENSE", "vocab.json", "merges.txt", "tokenizer.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes(), name


def test_a_base_that_is_elsewhere_can_be_named(tmp_path):
    base = tmp_path / "base"
    random_folders.write(base, TINY)
    tokenizer.load("", TINY).save(base)
    run = read_run(tmp_path, run_config(preset="/gone/base", tokenizer="/gone/base"))
    with pytest.raises(ValueError, match=r"model\.preset=/gone/base is not here: .* by --base"):
        side_files.run_model(run, "")
    config, found = side_files.run_model(run, str(base))
    assert config == TINY and found == base
    out = tmp_path / "out"
    out.mkdir()
    side_files.write_for_run(run, config, found, out)
    assert (out / "merges.txt").read_bytes() == (base / "merges.txt").read_bytes()
    other = read_run(tmp_path, run_config(preset="bench_tiny"))
    with pytest.raises(ValueError, match=r"--base=.* is not the run's model\.preset=bench_tiny"):
        side_files.run_model(other, str(base))


def test_published_files_are_copied_as_they_are(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    random_folders.write(source, TINY)
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE.txt", "other.bin"):
        (source / name).write_bytes(b"\r\n\xff")
    (source / side_files.TRAINING_FILE).write_text("{}")
    names = side_files.copy_published(source, target)
    ours = side_files.TRAINING_FILE
    assert names == ["LICENSE.txt", "chat_template.jinja", "config.json", ours, "tokenizer.json"]
    assert sorted(path.name for path in target.iterdir()) == names
    for name in names:
        assert (target / name).read_bytes() == (source / name).read_bytes()


def test_the_dtype_in_config_json(tmp_path):
    path, half = tmp_path / "config.json", np.dtype(ml_dtypes.bfloat16)
    text = '{"torch_dtype":   "bfloat16", "text_config": {"dtype": "bfloat16"}}'
    path.write_text(text)
    side_files.set_dtype(tmp_path, half)
    assert path.read_text() == text
    side_files.set_dtype(tmp_path, np.dtype(np.float32))
    expected = {"torch_dtype": "float32", "text_config": {"dtype": "float32"}}
    assert json.loads(path.read_text()) == expected
    path.write_text("{}")
    side_files.set_dtype(tmp_path, half)
    assert json.loads(path.read_text()) == {"torch_dtype": "bfloat16"}


def test_the_published_tokenizer_goes_through(tmp_path):
    published = SHARED / "processor"
    if not published.exists():
        pytest.skip(f"{published} is absent")
    target = tmp_path / "target"
    target.mkdir()
    side_files.copy_published(published, target)
    texts = ["Provide the box of the 12,345 lesions.", "naïve café \u4e2d\u6587 \n\t 0.5", "[1,2]"]
    before, after = tokenizer.load(published), tokenizer.load(target)
    for text in texts:
        assert after.encode_prompt(text, [2]) == before.encode_prompt(text, [2])
    assert (target / "merges.txt").read_bytes() == (published / "merges.txt").read_bytes()
