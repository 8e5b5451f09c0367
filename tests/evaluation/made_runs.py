# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Made-up runs of many methods and seeds over pictures of the synthetic data set.

Nothing is trained: a method has a skill, and its answers miss the true box by as much as the skill
leaves. The files are those of a real run, so that everything a report draws can be drawn.
"""

import json
from pathlib import Path

import numpy as np

from medloc_jax import methods
from medloc_jax.data import synthetic
from medloc_jax.evaluation import metrics
from medloc_jax.grounding import boxes

# arm -> (skill in [0, 1], curriculum settings)
METHODS = {
    "fixed": (0.45, {"schedule": "fixed"}),
    "fixed_60": (0.42, {"schedule": "fixed"}),
    "fixed_70": (0.38, {"schedule": "fixed"}),
    "fixed_80": (0.30, {"schedule": "fixed"}),
    "raw_iou": (0.62, {"schedule": "raw_iou"}),
    "boxmed": (0.58, {"schedule": "raw_iou"}),
    "v_triune": (0.50, {"schedule": "v_triune"}),
    "v_triune_original": (0.47, {"schedule": "v_triune"}),
    "medground_released": (0.52, {"schedule": "fixed"}),
    "medground_described": (0.55, {"schedule": "fixed"}),
    "medloc": (0.66, {"schedule": "medloc", "step_size": "piecewise"}),
    "medloc_linear": (0.60, {"schedule": "medloc", "step_size": "linear"}),
    "medloc_cosine": (0.57, {"schedule": "medloc", "step_size": "cosine"}),
    "medloc_no_margin": (0.64, {"schedule": "medloc", "step_size": "piecewise"}),
    "adaptive": (0.70, {"schedule": "medloc", "step_size": "piecewise"}),
}
_REASONING = (
    "The image shows a patch of skin with a region of another colour. Its edge is irregular on the "
    "left and fades to the right. The hair that crosses it is not part of it. ",
    "I see a round structure in the lower half. It is darker than what surrounds it. ",
)


def draw_pictures(folder: Path, number: int) -> list[dict]:
    """Writes synthetic pictures below `folder`/images; one entry each: image, label, box, size."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(number):
        picture, query, box = synthetic.render("lesions", 0, index)
        name = f"images/{index:04d}.png"
        picture.save(folder / name)
        size = picture.size
        entries.append(
            {"image": name, "label": query, "box": [float(side) for side in box], "size": size}
        )
    return entries


def _answers(rng, targets, size, skill):
    """Boxes [n, 4] around `targets` [n, 4] of pictures of `size` [n, 2], off by their skill."""
    sides = np.concatenate([targets[:, 2:] - targets[:, :2]] * 2, axis=1)
    noise = rng.normal(0, 1, targets.shape) + rng.normal(0, 1.5, (len(targets), 1))
    answers = targets + noise * sides * (0.28 * (1.05 - skill))
    answers = np.clip(answers, 0, np.concatenate([size, size], axis=1))
    return np.where(answers[:, 2:].repeat(2, 1) > answers[:, :2].repeat(2, 1) + 1, answers, targets)


def _evaluate(folder, rng, pictures, *, split, step, n, skill):
    chosen = [pictures[index % len(pictures)] for index in range(n)]
    targets = np.array([entry["box"] for entry in chosen])
    answers = _answers(rng, targets, np.array([entry["size"] for entry in chosen]), skill)
    ious = np.asarray(boxes.iou(answers, targets), np.float64)
    valid = rng.random(n) < 0.93 + 0.06 * skill
    ious = np.where(valid, ious, 0.0)
    lines = []
    for index, entry in enumerate(chosen):
        numbers = [round(side) for side in answers[index]]
        text = f"<think>{_REASONING[index % 2]}</think><answer>{numbers}</answer>"
        lines.append(
            {
                "id": f"{split}-{index:05d}",
                "image": entry["image"],
                "boxes_px": [answers[index].tolist()] if valid[index] else [],
                "target_boxes_px": [entry["box"]],
                "iou": float(ious[index]),
                "completion": text if valid[index] else "<think>I am not sure </script><b>",
                "valid": bool(valid[index]),
                "reason": "" if valid[index] else "no_box",
                "label": entry["label"],
            }
        )
    summary = metrics.summarize(ious, valid, seed=0, num_bootstrap=20)
    floor = {"a50": 0.21, "a80": 0.02, "map": 0.09, "miou": 0.3, "num_examples": n}
    place = folder / "eval" / f"{split}-{step}"
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(json.dumps(summary | {"floor": floor}))
    (place / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return summary


def _step_row(rng, step, num_steps, threshold, level, schedule):
    iou = float(np.clip(level + rng.normal(0, 0.03), 0, 1))
    reward = iou if schedule == "raw_iou" else float(np.clip(0.5 + 1.4 * (iou - threshold), 0, 1))
    return {
        "step": step,
        "reward/total": reward,
        "iou/raw_mean": iou,
        "curriculum/threshold": threshold,
        "group/zero_advantage_rate": float(
            0.0 if schedule == "raw_iou" else np.clip(0.5 + rng.normal(0, 0.06), 0, 1)
        ),
        "optimizer/grad_norm": float(abs(rng.normal(1, 0.2))),
    }


def _rollout(rng, pictures, step, skill, group=8):
    chosen = [pictures[index] for index in rng.integers(len(pictures), size=8)]
    row = {"step": step, "threshold": 0.5, "ids": [], "completions": [], "boxes_px": [], "ious": []}
    row |= {"rewards": [], "target_boxes_px": []}
    for number, entry in enumerate(chosen):
        targets = np.tile(np.array(entry["box"]), (group, 1))
        sizes = np.tile(np.array(entry["size"]), (group, 1))
        # Examples differ in how hard they are, or agreement could not tell anything.
        answers = _answers(rng, targets, sizes, skill * rng.uniform(0.2, 1.3))
        ious = np.asarray(boxes.iou(answers, targets))
        row["ids"].append(f"train-{step}-{number}")
        row["target_boxes_px"].append(entry["box"])
        row["boxes_px"].append(answers.tolist())
        row["completions"].append([str([round(side) for side in box]) for box in answers])
        row["ious"].append(ious.tolist())
        row["rewards"].append((ious >= 0.5).astype(float).tolist())
    return row


def write_run(
    folder: Path,
    pictures_folder: Path,
    pictures: list[dict],
    *,
    label: str,
    skill: float,
    curriculum: dict,
    seed: int = 0,
    num_steps: int = 120,
    examples: int = 40,
) -> Path:
    """Writes a run's folder and returns it; the pictures are found by the manifest's folder."""
    rng = np.random.default_rng([seed, sum(map(ord, label))])
    folder.mkdir(parents=True)
    schedule = curriculum["schedule"]
    settings = {"window": 30, "refresh_fraction": 0.5, "step_size": "piecewise"}
    template = methods.METHODS.get(label, {}).get("data.template", "medloc")
    config = {
        "method": "grpo",
        "label": label,
        "seed": seed,
        "num_steps": num_steps,
        "model": {"preset": "tiny", "init_from": ""},
        "data": {"manifest": str(pictures_folder / "manifest.jsonl"), "template": template},
        "curriculum": settings | {"step_size_start": 0.2} | curriculum,
        "rl": {"group_size": 8},
    }
    (folder / "config.json").write_text(json.dumps(config))
    rows, threshold = [], 0.3 if schedule == "medloc" else 0.5
    form = curriculum.get("step_size", "")
    for step in range(num_steps):
        if schedule == "medloc" and step and step % 30 == 0:
            threshold = min(0.8, threshold + {"linear": 0.12, "cosine": 0.08}.get(form, 0.15))
        level = 0.3 + (skill - 0.1) * (1 - np.exp(-3 * step / num_steps)) + rng.normal(0, 0.01)
        rows.append(_step_row(rng, step, num_steps, threshold, level, schedule))
    for step in (*range(0, num_steps, num_steps // 4), num_steps - 1):
        reached = 0.2 + (skill - 0.2) * min(1, 1.3 * step / num_steps) + rng.normal(0, 0.02)
        summary = _evaluate(
            folder, rng, pictures, split="val", step=step, n=examples // 2, skill=reached
        )
        rows[step] |= {f"eval/val/{key}": summary[key] for key in ("a50", "a80", "map", "miou")}
    _evaluate(folder, rng, pictures, split="test", step=num_steps - 1, n=examples, skill=skill)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rollouts = [_rollout(rng, pictures, step, skill) for step in range(0, num_steps, 30)]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rollouts))
    return folder


def write_methods(
    root: Path, names=tuple(METHODS), *, seeds=2, pictures=24, **options
) -> list[Path]:
    """A folder root/<arm>/<seed> a run, for methods of METHODS."""
    entries = draw_pictures(root / "pictures", pictures)
    return [
        write_run(
            root / name / str(seed),
            root / "pictures",
            entries,
            label=name,
            skill=METHODS[name][0],
            curriculum=METHODS[name][1],
            seed=seed,
            **options,
        )
        for name in names
        for seed in range(seeds)
    ]


def write_settings(root: Path, key: str, values, *, seeds=2, pictures=24, **options) -> list[Path]:
    """Runs of medloc that differ in one setting of the curriculum."""
    entries = draw_pictures(root / "pictures", pictures)
    constant = {"step_size": "constant"} if key == "step_size_start" else {}
    return [
        write_run(
            root / f"{key}_{value}" / str(seed),
            root / "pictures",
            entries,
            label=f"{key}={value}",
            skill=0.6 - 0.02 * abs(index - len(values) // 2),
            curriculum={"schedule": "medloc", key: value} | constant,
            seed=seed,
            **options,
        )
        for index, value in enumerate(values)
        for seed in range(seeds)
    ]
