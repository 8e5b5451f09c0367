# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The five commands of checkpoints/README.md, as they stand there, at a size that takes seconds.

From a base model's folder and HAM10000's to a trained, evaluated and exported model. The overrides
only make it small: the base model is the published architecture with other widths and depths.
"""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import drawn_data
import numpy as np
import small_runs
from safetensors.numpy import save_file

import medloc_jax
from medloc_jax.cli import main
from medloc_jax.convert import mapping, side_files
from medloc_jax.model import config as model_config
from medloc_jax.model import processor, qwen2_5_vl, tokenizer

PROCESSOR = small_runs.ROOT.parent / "shared" / "processor"
BASE = "checkpoints/Qwen2.5-VL-3B-Instruct"
SMALL = {
    "model.preset": BASE,
    "model.vocab_chunk": 64,
    "num_steps": 2,
    "data.val_fraction": 0.4,
    "data.max_pixels": 28 * 28 * 6,
    "rl.group_size": 2,
    "rl.max_completion_tokens": 6,
    "rl.skip_no_signal": False,  # weights from nowhere answer nothing: update all the same
    "optim.learning_rate": 1e-3,
    "eval.batch_size": 8,
    "eval.at_start": False,
    "log.tensorboard": False,
}


def _commands():
    """The commands of the section, whole: a backslash joins lines."""
    text = (small_runs.ROOT / "checkpoints/README.md").read_text()
    section = text.split("## Five commands", 1)[1].split("\n## ", 1)[0]
    joined = re.sub(r"\\\n\s*", " ", section)
    return [shlex.split(line)[1:] for line in joined.splitlines() if line.startswith("    medloc ")]


def _write_base(folder, *, real_tokenizer):
    """A small base model; with the real tokenizer, it has the published vocabulary and patches."""
    sizes = small_runs.SIZES
    if real_tokenizer:
        published = model_config.preset("3b")
        sizes = dataclasses.replace(
            published,
            text=dataclasses.replace(sizes.text, vocab_size=published.text.vocab_size),
            vision=dataclasses.replace(
                sizes.vision,
                patch_size=published.vision.patch_size,
                window_size=published.vision.window_size,
            ),
        )
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model_config.to_hf(sizes)))
    params = small_runs.params(qwen2_5_vl.Model(sizes))
    save_file(mapping.to_hf(params, sizes), folder / "model.safetensors", {"format": "pt"})
    if real_tokenizer:
        for path in PROCESSOR.iterdir():
            if path.is_file() and path.suffix != ".md":
                shutil.copyfile(path, folder / path.name)
    else:
        tokenizer.load("", sizes).save(folder)
        pixels = processor.ImageProcessor.for_model(
            sizes.vision, min_pixels=3136, max_pixels=401408
        )
        (folder / "preprocessor_config.json").write_text(json.dumps(pixels.to_hf()))


def test_the_five_commands(tmp_path, monkeypatch, capsys):
    """With Qwen2.5-VL's own tokenizer where it is at hand, else with the byte tokenizer."""
    real_tokenizer = PROCESSOR.is_dir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(small_runs.ROOT / "configs")
    _write_base(tmp_path / BASE, real_tokenizer=real_tokenizer)
    drawn_data.write_ham10000(tmp_path / "HAM10000", 60)

    commands = _commands()
    assert [argv[0] for argv in commands] == ["prepare", "train", "evaluate", "convert", "predict"]
    said = {}
    for argv in commands:
        verb = argv[0]
        if verb == "train":
            argv = argv + [f"--config.{name}={value}" for name, value in SMALL.items()]
        capsys.readouterr()
        assert main.main(argv) == 0, argv
        said[verb] = capsys.readouterr().out

    examples = small_runs.lines(Path("data/ham10000/manifest.jsonl"))
    assert len(examples) == 60 and {one["query"] for one in examples} == {"skin lesion"}
    run = Path("runs/ham10000_3b")
    assert [line["step"] for line in small_runs.lines(run / "metrics.jsonl")] == [1, 2]
    tested = json.loads((run / "eval/test-2/metrics.json").read_text())
    assert tested["num_examples"] == sum(one["split"] == "test" for one in examples)

    # What was exported is what was trained, and not the base model.
    exported = Path("checkpoints/ham10000_3b_grpo")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "README.md"):
        assert (exported / name).is_file(), name
    assert "picture predictions/ISIC_0024306.png" in said["predict"]
    image = Path("HAM10000/HAM10000_images_part_1/ISIC_0024306.jpg")
    answers = {
        folder: medloc_jax.Grounder.load(folder)(image, "skin lesion").completions[0]
        for folder in (run, exported, BASE)
    }
    assert answers[run].token_ids == answers[exported].token_ids
    np.testing.assert_array_equal(answers[run].token_logprobs, answers[exported].token_logprobs)
    same_start = min(len(answers[run].token_ids), len(answers[BASE].token_ids))
    base = answers[BASE].token_logprobs[:same_start]
    assert not np.array_equal(base, answers[run].token_logprobs[:same_start])
    told = json.loads((exported / side_files.TRAINING_FILE).read_text())
    assert told == {"template": "vlm_r1", "max_completion_tokens": 6}
