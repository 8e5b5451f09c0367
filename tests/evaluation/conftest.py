# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Draws the folder of a run that never was, with every file a report reads."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medloc_jax.evaluation import metrics, plot_style, results, run_folder


def _ious(rng, n, mean):
    return np.clip(rng.normal(mean, 0.22, n), 0, 1)


def _write_evaluation(folder: Path, rng, *, split, step, n, mean, images):
    predictions = []
    for index in range(n):
        width, height = images[index % len(images)]
        target = [0.2 * width, 0.3 * height, 0.7 * width, 0.8 * height]
        shift = rng.uniform(0, 0.3) * width
        box = [target[0] + shift, target[1], min(target[2] + shift, width), target[3]]
        valid = bool(rng.random() < 0.95)
        predictions.append(
            {
                "id": f"SYN_{index:07d}_a_rather_long_name",
                "image": f"images/{index % len(images)}.png",
                "boxes_px": [box] if valid else [],
                "target_boxes_px": [target],
                "iou": float(_ious(rng, 1, mean)[0]) if valid else 0.0,
                "completion": str([round(v) for v in box]) if valid else "[12,",
                "valid": valid,
            }
        )
    ious = np.asarray([p["iou"] for p in predictions])
    valid = np.asarray([p["valid"] for p in predictions])
    summary = metrics.summarize(ious, valid, seed=0, num_bootstrap=200)
    floor_rng = np.random.default_rng(7)  # the data, and so the floor, do not depend on the run
    floor = metrics.summarize(
        _ious(floor_rng, n, 0.35), np.ones(n, bool), seed=0, num_bootstrap=200
    )
    place = folder / "eval" / f"{split}-{step}"
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(json.dumps(summary | {"floor": floor}))
    (place / "predictions.jsonl").write_text("".join(json.dumps(p) + "\n" for p in predictions))
    return summary


def _grpo_row(step, num_steps, threshold, rng):
    skill = 0.3 + 0.5 * step / num_steps
    reward = float(np.clip(skill + 0.3 - 0.5 * threshold + rng.normal(0, 0.07), 0, 1))
    blocked = step > 20 and threshold < 0.8
    return {
        "step": step,
        "curriculum/threshold": threshold,
        "curriculum/tightened": 0.0,
        "curriculum/blocked_by_reward": float(blocked and rng.random() < 0.6),
        "curriculum/blocked_by_margin": float(blocked and rng.random() < 0.4),
        "curriculum/blocked_by_stability": float(blocked and rng.random() < 0.1),
        "reward/total": reward,
        "iou/raw_mean": float(np.clip(skill + rng.normal(0, 0.03), 0, 1)),
        "group/zero_advantage_rate": float(np.clip(0.5 - 0.3 * reward + rng.normal(0, 0.1), 0, 1)),
        "answer/valid_rate": float(np.clip(0.9 + 0.1 * step / num_steps, 0, 1)),
        "completion/truncated_rate": float(np.clip(rng.normal(0.03, 0.02), 0, 1)),
    }


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
    """Drawing is the slow part of a report."""
    monkeypatch.setattr(plot_style, "_DPI", 60)


@pytest.fixture
def make_run(tmp_path):
    """Returns a function that writes a run's folder and returns its path."""

    def make(
        name="run", *, method="grpo", schedule="medloc", seed=0, num_steps=120, skill=0.0, **rl
    ):
        rng = np.random.default_rng(seed)
        folder = tmp_path / name
        (folder / "data" / "images").mkdir(parents=True)
        images = [(64, 48), (40, 72), (64, 64)]
        for index, (width, height) in enumerate(images):
            pixels = rng.integers(60, 200, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / "images" / f"{index}.png")
        config = {
            "method": method,
            "seed": seed,
            "num_steps": num_steps,
            "model": {"preset": "tiny", "init_from": ""},
            "data": {"manifest": "synthetic", "template": "box"},
            "curriculum": {"schedule": schedule},
            "rl": {"group_size": 8} | rl,
        }
        (folder / "config.json").write_text(json.dumps(config))
        rows = []
        if method == "sft":
            for step in range(num_steps):
                loss = 3 * np.exp(-step / 40) + 0.4 + rng.normal(0, 0.1)
                rows.append({"step": step, "sft/loss": loss, "sft/token_accuracy": 1 / (1 + loss)})
        else:
            rises = {30: 0.45, 55: 0.6, 90: 0.7} if schedule == "medloc" else {}
            threshold = 0.3 if schedule == "medloc" else 0.5
            for step in range(num_steps):
                threshold = rises.get(step, threshold)
                rows.append(_grpo_row(step, num_steps, threshold, rng))
                rows[-1]["curriculum/tightened"] = float(step + 1 in rises)
            rollout = {
                "step": 100,
                "ids": ["SYN_7"],
                "prompts": ["skin lesion"],
                "completions": [["[1,2,3,4]", "<b>|*[1,2"]],
                "ious": [[0.75, 0.0]],
                "rewards": [[1.0, 0.0]],
                "threshold": 0.7,
            }
            (folder / "rollouts.jsonl").write_text(json.dumps(rollout) + "\n")
        for step in (0, 40, 80, num_steps - 1):
            summary = _write_evaluation(
                folder,
                rng,
                split="val",
                step=step,
                n=40,
                images=images,
                mean=0.35 + skill + 0.35 * step / num_steps,
            )
            rows[step] |= {f"eval/val/{key}": summary[key] for key in ("a50", "a80", "map", "miou")}
        _write_evaluation(
            folder, rng, split="test", step=num_steps - 1, n=80, mean=0.68 + skill, images=images
        )
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(lines)
        return folder

    return make


@pytest.fixture
def make_experiment():
    """Returns a function that makes an experiment in memory: nothing of it lies on disk."""

    def make(ious, *, method="medloc", data_set="synthetic", seeds=(42, 43, 44), rows=(), **config):
        """`ious`: [n], the same for every seed, or one such list a seed."""
        by_seed = np.broadcast_to(np.asarray(ious, float), (len(seeds), np.shape(ious)[-1]))
        finals = []
        for seed, values in zip(seeds, by_seed, strict=True):
            lines = [
                {
                    "id": f"e{index}",
                    "boxes_px": [[0.0, 0.0, 10.0, 10.0]],
                    "target_boxes_px": [[0.0, 0.0, 10.0, 10.0 + index]],
                    "iou": float(value),
                    "completion": "[0,0,10,10]",
                    "valid": True,
                    "label": "ab"[index % 2],
                }
                for index, value in enumerate(values)
            ]
            summary = metrics.summarize(values, np.ones(len(values), bool), seed=0, num_bootstrap=0)
            folder = Path("runs", method, str(seed))
            evaluation = run_folder.Evaluation("test", 9, folder / "eval", summary)
            settings = {
                "method": "sft" if method == "sft" else "grpo",
                "label": method,
                "seed": seed,
                "num_steps": 9,
                "rl": {"group_size": 8, "prompts_per_step": 4},
                "sft": {"batch_size": 4},
                "data": {"manifest": "synthetic"},
            }
            run = run_folder.Run(folder, settings | config, tuple(rows), (), (evaluation,), ())
            finals.append(results.Final(run, evaluation, lines))
        return results.Experiment(method, results.title(method), data_set, tuple(finals))

    return make
