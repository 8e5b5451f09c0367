# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The commands of launch/OWN_DATA.md, as they stand there, at a size that takes a minute or two."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import small_runs

SMALL = {
    "num_steps": 3,
    "model.vocab_chunk": 64,
    "rl.prompts_per_step": 8,
    "rl.group_size": 2,
    "sft.batch_size": 8,
    "optim.warmup_steps": 0,
    "eval.every": 0,
    "eval.num_examples": 4,
    "eval.batch_size": 8,
    "checkpoint.every": 3,
    "log.tensorboard": False,
}
FEW = {"num_train": 24, "num_test": 8}


def _commands():
    """The commands of the page, whole: a backslash joins lines."""
    text = (small_runs.ROOT / "launch/OWN_DATA.md").read_text()
    joined = re.sub(r"\\\n\s*", " ", text)
    return [shlex.split(line)[1:] for line in joined.splitlines() if line.startswith("    medloc ")]


def _write_detector(manifest, path):
    """Every test box, a pixel too wide, as a detector would tell it."""
    with open(path, "w") as file:
        for line in small_runs.lines(manifest):
            if line["split"] == "test":
                ((x1, y1, x2, y2),) = line["boxes_px"]
                box = [x1, y1, min(x2 + 1, line["width"]), y2]
                file.write(
                    json.dumps({"id": line["id"], "boxes_px": [box], "scores": [0.9]}) + "\n"
                )


def _run(argv, folder):
    """One command as a user gives it: a process of its own, with one device.

    All of them in one process with eight pretended devices ended with XLA's abort in a GRPO step.
    """
    done = subprocess.run(
        [sys.executable, "-m", "medloc_jax", *argv],
        capture_output=True,
        text=True,
        cwd=folder,
        env=small_runs.environment(1),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_page_can_be_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(small_runs.ROOT / "configs")
    preset = small_runs.write_preset(tmp_path / "preset")
    small = SMALL | {"model.preset": preset}
    done = []
    for argv in _commands():
        verb = argv[0]
        takes_config = any(one.startswith("--config=") for one in argv)
        if argv[:2] == ["prepare", "synthetic"]:
            argv = argv + [f"--{name}={value}" for name, value in FEW.items()]
        elif verb in ("train", "diagnose") and takes_config:
            argv = argv + [f"--config.{name}={value}" for name, value in small.items()]
        if any(one.startswith("--predictions=") for one in argv):
            _write_detector(Path("data/mine/manifest.jsonl"), "detector.jsonl")
        done.append((verb, _run(argv, tmp_path)))
    verbs = [verb for verb, _ in done]
    assert [verb for verb in dict.fromkeys(verbs)] == [
        "prepare",
        "diagnose",
        "train",
        "report",
        "evaluate",
    ]
    assert all("Recommended:" in out for verb, out in done if verb == "diagnose")

    # The boxes that came in are those that are trained on, and test was looked at once, at the end.
    drawn = small_runs.lines(Path("drawn/manifest.jsonl"))
    mine = small_runs.lines(Path("data/mine/manifest.jsonl"))
    assert sorted(one["boxes_px"] for one in drawn) == sorted(one["boxes_px"] for one in mine)
    assert {one["split"] for one in mine} == {"train", "val", "test"}
    tested = sorted(
        str(path.parent) for path in Path("runs/mine").glob("*/eval/test-*/metrics.json")
    )
    assert len(tested) == 2 and any("detector" in path for path in tested)
    assert Path("runs/mine/diagnose/diagnose.png").is_file()
    assert list(Path("runs/mine/final").glob("report.*"))
