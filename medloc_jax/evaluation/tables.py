# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of a report: a header and rows of texts, from what a run left in its files."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from medloc_jax.evaluation import run_folder

MEASURES = {"a50": "A@0.5", "a80": "A@0.8", "map": "mAP", "miou": "mIoU", "valid_rate": "valid"}

# What a reader wants to know of a run before its curves, by the config's path.
_FACTS = (
    "seed", "num_steps", "model.preset", "model.init_from", "data.manifest", "data.template",
    "curriculum.step_size", "rl.prompts_per_step", "rl.group_size", "rl.temperature",
    "rl.kl_weight", "sft.batch_size", "optim.learning_rate",
)  # fmt: skip


def facts(run: run_folder.Run) -> tuple[list[str], list[list[str]]]:
    """The settings of one run that matter most, as its config.json has them."""
    rows = [["method", run.method]]
    skipped = ("rl.", "curriculum.") if run.is_sft else ("sft.",)
    for key in _FACTS:
        value: Any = run.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value not in (None, "") and not key.startswith(skipped):
            rows.append([key, str(value)])
    if run.last_step is not None:
        rows.append(["last step logged", str(run.last_step)])
    return ["setting", "value"], rows


def evaluations(run: run_folder.Run, missing: list[str]) -> tuple[list[str], list[list[str]]]:
    """First and last evaluation of every split, each split with its floor."""
    rows = []
    for split in run.splits():
        entries = run.of_split(split)
        if not entries:
            missing.append(f"eval/{split}-*/metrics.json: only the curves know this split")
            continue
        shown = entries if len(entries) == 1 else (entries[0], entries[-1])
        for entry in shown:
            rows.append([split, f"step {entry.step}", *measures(entry.metrics)])
        floor = entries[-1].floor
        if floor:
            rows.append([split, "floor", *measures(floor)])
        else:
            missing.append(f"the floor in eval/{entries[-1].folder.name}/metrics.json")
    return ["split", "", "examples", *MEASURES.values()], rows


def measures(metrics: Mapping[str, Any]) -> list[str]:
    """The number of examples and every measure of one metrics.json, in per cent, with intervals."""
    return [
        str(metrics.get("num_examples", "")),
        *(
            # No interval of the valid rate: the table is wide, and nothing hangs on it.
            percent(metrics.get(name), None if name == "valid_rate" else metrics.get(f"{name}_ci"))
            for name in MEASURES
        ),
    ]


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """0.5413 -> "54.1", with its interval "54.1 [49.1, 58.8]"; "-" where there is none."""
    if value is None:
        return "-"
    text = f"{100 * value:.1f}"
    return text + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and sample standard deviation in per cent, "54.1 ± 1.2"; one value has no deviation."""
    if not values:
        return "-"
    text = f"{100 * statistics.fmean(values):.1f}"
    return text + (f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else "")


def threshold_path(threshold: run_folder.Series) -> str:
    """The values that the threshold took, each with the first step it was in force."""
    parts, before = [], None
    for step, value in zip(threshold.steps, threshold.values, strict=True):
        if before is None or value != before:
            parts.append(f"{value:g} from step {step}")
        before = value
    if len(parts) > 20:  # a threshold that moves at every step is better seen than read
        parts = [*parts[:2], "…", *parts[-2:]]
    return ", ".join(parts)


def rollout_title(rollout: Mapping[str, Any]) -> str:
    """Which group `rollout_rows` shows, and what earned a reward then."""
    parts = [f"step {rollout.get('step', '?')}"]
    for key, name in (("ids", "example"), ("prompts", "prompt")):
        if rollout.get(key):
            parts.append(f"{name} {rollout[key][0]!r}")
    if rollout.get("threshold") is not None:
        parts.append(f"threshold {rollout['threshold']:g}")
    return ", ".join(parts) + "."


def rollout_rows(rollout: Mapping[str, Any], *, longest: int) -> list[list[str]]:
    """The first group of a rollout on file: completion, IoU, reward."""
    columns = [_first_group(rollout.get(key)) for key in ("completions", "ious", "rewards")]
    completions, ious, rewards = columns
    rows = []
    for index, completion in enumerate(completions):
        text = str(completion)
        rows.append(
            [
                text if len(text) <= longest else text[: longest - 1] + "…",
                *(
                    f"{values[index]:.3f}" if index < len(values) else "-"
                    for values in (ious, rewards)
                ),
            ]
        )
    return rows


def _first_group(values: Any) -> list[Any]:
    """The first prompt's entries, whether the list is [G] or [B][G]."""
    if not isinstance(values, list):
        return []
    return values[0] if values and isinstance(values[0], list) else values
