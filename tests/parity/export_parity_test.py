# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""An exported run answers in transformers as it does in `medloc predict`: the same tokens.

Everything is read from the exported folder by transformers alone: weights, chat template, tokenizer
and image processor. Greedy, float32.
"""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="the parity tier compares with transformers on torch")

import small_runs
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl

from medloc_jax import checkpoint
from medloc_jax import config as configuration
from medloc_jax.cli import job as open_job
from medloc_jax.cli import main
from medloc_jax.grounding import prompts
from medloc_jax.model import tokenizer

pytestmark = pytest.mark.parity

NUM_IMAGES, NUM_TOKENS = 32, 12
QUERY = "skin lesion"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Textured pictures of many shapes."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        height, width = rng.integers(30, 90, 2)
        y, x = np.mgrid[:height, :width] * rng.uniform(0.05, 1.0, (2, 1, 1))
        waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0.2, 3, (3, 3))]
        noise = rng.normal(0, 0.3, (height, width, 3))
        levels = 127 + 80 * np.stack(waves, axis=-1) + 60 * noise
        Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run with one checkpoint, exported by the command line."""
    folder = tmp_path_factory.mktemp("run")
    run, target = folder / "run", folder / "exported"
    config = configuration.default_config()
    config.model.preset = str(small_runs.write_preset(folder / "preset"))
    config.data.min_pixels, config.data.max_pixels = 1024, 4096
    config.rl.max_completion_tokens = NUM_TOKENS
    open_job.write_config(config, run)
    saver = checkpoint.Checkpointer(run / "checkpoints", keep_last=1, keep_best=0)
    saver.save(1, {"params": small_runs.params()}, {})
    argv = ["convert", f"--source={run}", f"--target={target}", "--max_shard_size=20KB"]
    assert main.main(argv) == 0
    assert len(list(target.glob("model-*.safetensors"))) > 1
    return target


def _ours(exported, images, capsys):
    capsys.readouterr()
    argv = [f"--checkpoint={exported}", f"--image={images}", f"--query={QUERY}", "--json"]
    assert main.main(["predict", *argv, "--out="]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {line["id"]: line["token_ids"] for line in lines}


def _theirs(exported, images, change=lambda model: None):
    model = transformers.AutoModelForImageTextToText.from_pretrained(exported, dtype=torch.float32)
    change(model)
    words = transformers.AutoTokenizer.from_pretrained(exported)
    pixels = image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil.from_pretrained(exported)
    ours = tokenizer.load(exported)
    text = prompts.TEMPLATES["vlm_r1"].user_text(QUERY, "")
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    asked = words.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    answers = {}
    for path in sorted(images.iterdir()):
        with Image.open(path) as image:
            seen = pixels(images=[image], return_tensors="pt")
        merged = int(seen["image_grid_thw"].prod()) // 4
        ids = words(asked.replace("<|image_pad|>", "<|image_pad|>" * merged), return_tensors="pt")
        with torch.no_grad():
            out = model.generate(
                input_ids=ids["input_ids"],
                attention_mask=ids["attention_mask"],
                mm_token_type_ids=(ids["input_ids"] == ours.image_token_id).int(),
                **seen,
                do_sample=False,
                repetition_penalty=1.0,
                max_new_tokens=NUM_TOKENS,
                eos_token_id=list(ours.stop_ids),
                suppress_tokens=list(ours.forbidden_ids),
            )
        answers[path.stem] = out[0, ids["input_ids"].shape[1] :].tolist()
    return answers


def test_transformers_generates_the_same_tokens(exported, images, capsys):
    ours, theirs = _ours(exported, images, capsys), _theirs(exported, images)
    equal = sum(ours[name] == theirs[name] for name in theirs)
    print(f"\n{equal} of {len(theirs)} images with the same tokens")
    # Answers that did not depend on the picture would prove little.
    assert len({tuple(ids) for ids in ours.values()}) >= 8
    assert equal == len(theirs) == NUM_IMAGES


def test_one_changed_layer_is_noticed(exported, images, capsys):
    def swap(model):
        attention = model.model.language_model.layers[1].self_attn
        with torch.no_grad():
            attention.q_proj.weight.copy_(attention.q_proj.weight.flip(0))

    ours, theirs = _ours(exported, images, capsys), _theirs(exported, images, swap)
    assert sum(ours[name] == theirs[name] for name in theirs) < NUM_IMAGES // 2
