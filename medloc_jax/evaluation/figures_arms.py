# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What figures compare: arms (a method or a setting, with its runs over seeds), and their means."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from medloc_jax import config as config_module
from medloc_jax.evaluation import results, run_folder


class NotThere(Exception):
    """The runs do not hold what a figure needs; the text says what, and what would give it."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seed."""

    title: str  # as tables and legends print it
    runs: tuple[run_folder.Run, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """The config of its first run."""
        return self.runs[0].config

    @property
    def name(self) -> str:
        """Of the method or the arm, as a sweep or a config file gave it."""
        return results.method(self.runs[0])


def by_data_set(runs: Sequence[run_folder.Run]) -> dict[str, list[run_folder.Run]]:
    """Runs by the data that they were last evaluated on: other data, other figures."""
    found: dict[str, list[run_folder.Run]] = {}
    for run in runs:
        last = run.last_evaluation()
        name = results.data_set(run, last.predictions() if last else [])
        found.setdefault(name, []).append(run)
    return found


def arms(runs: Sequence[run_folder.Run]) -> list[Arm]:
    """Groups runs by all but their seed, in the order that they were named."""
    groups = run_folder.groups_by_seed(runs)
    labels = results.group_labels(groups)
    return [Arm(label, tuple(group)) for label, group in zip(labels, groups, strict=True)]


class Band(NamedTuple):
    """A metric over the steps that all runs of an arm logged."""

    steps: Int[np.ndarray, " n"]
    mean: Float[np.ndarray, " n"]
    deviation: Float[np.ndarray, " n"]  # sample standard deviation over runs; 0 for one run
    num_runs: int


def band(all_series: Sequence[run_folder.Series]) -> Band:
    """Mean and deviation over runs, at the steps that each of them has; runs without any left out.

    A mean over whichever runs happen to be there would jump where one of them ends.
    """
    there = [series for series in all_series if len(series.steps)]
    if not there:
        return Band(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), 0)
    steps = there[0].steps
    for series in there[1:]:
        steps = np.intersect1d(steps, series.steps)
    rows = np.stack([series.values[np.isin(series.steps, steps)] for series in there])
    deviation = rows.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(len(steps))
    return Band(steps, rows.mean(axis=0), deviation, len(rows))


def curve(run: run_folder.Run, key: str) -> run_folder.Series:
    """A logged metric by its name; the threshold is empty where nothing is compared with it."""
    series = run.series(key)
    # Where the reward asks for no threshold, a line of it would say what is not so.
    if key == "curriculum/threshold" and not run.has_threshold:
        return run_folder.Series(series.steps[:0], series.values[:0])
    return series


def split_over_steps(arms: Sequence[Arm]) -> str:
    """The split that was evaluated at the most steps, `val` of equals; "" where none was twice."""
    counts: dict[str, int] = {}
    for run in (run for arm in arms for run in arm.runs):
        for split in run.splits():
            counts[split] = max(counts.get(split, 0), len(run.accuracy(split, "a50").steps))
    best = max(counts, key=lambda split: (counts[split], split == "val"), default="")
    return best if counts.get(best, 0) > 1 else ""


def last_evaluations(arms: Sequence[Arm], *, predictions: bool = False) -> tuple[str, list[Arm]]:
    """The split that a comparison of results stands on, and the arms that have it.

    `test` where every arm has it, else the split that most arms have.

    Args:
        arms: what is compared.
        predictions: only evaluations whose predictions.jsonl is there count.

    Returns:
        The split ("" where there is none), and the arms with their runs that were evaluated on it.
    """
    having: dict[str, list[Arm]] = {}
    for arm in arms:
        found: dict[str, list[run_folder.Run]] = {}
        for run in arm.runs:
            for split in {e.split for e in run.evaluations if e.has_predictions or not predictions}:
                found.setdefault(split, []).append(run)
        for split, runs in found.items():
            having.setdefault(split, []).append(Arm(arm.title, tuple(runs)))
    split = max(having, key=lambda name: (len(having[name]), name == "test"), default="")
    return split, having.get(split, [])


def last_predictions(run: run_folder.Run, split: str) -> list[dict[str, Any]]:
    """The predictions of the last evaluation of a split that has any."""
    found = [entry for entry in run.of_split(split) if entry.has_predictions]
    return found[-1].predictions() if found else []


def counted_iou(prediction: Mapping[str, Any]) -> float:
    """The IoU that counts: 0 where the answer did not parse."""
    return float(prediction["iou"]) if prediction["valid"] else 0.0


# Settings that belong to another one, or that tuning chooses for each arm.
_BESIDE = ("label", "seed", "optim.learning_rate")
_OF_A_FORM = (
    *("curriculum.step_sizes", "curriculum.boundaries", "curriculum.step_size_start"),
    "curriculum.threshold_start",  # the paper's linear and cosine forms start lower
)


def by_setting(arms: Sequence[Arm], key: str) -> dict[Any, Arm]:
    """The largest family of arms that differ in one setting alone, by its values in their order.

    The label, the seed and the tuned learning rate may differ, and with the step-size form the
    settings that only some forms read, and where they start.

    Args:
        arms: what a report compares.
        key: dotted name of the setting in config.json.

    Returns:
        value -> arm; empty where no two arms differ in it alone.
    """
    ignored = {*_BESIDE, key, *(_OF_A_FORM if key == "curriculum.step_size" else ())}
    families: dict[str, dict[Any, Arm]] = {}
    for arm in arms:
        settings = config_module.flatten(arm.config)
        if key not in settings or settings.get("curriculum.schedule") != "medloc":
            continue
        value = settings[key]
        rest = {name: each for name, each in settings.items() if name not in ignored}
        # A warm start counts by its config: each seed may have one in a folder of its own.
        start = run_folder.start_config(dict(arm.config))
        rest |= {"model.init_from": start} if start is not None else {}
        identity = json.dumps(rest, sort_keys=True, default=str)
        families.setdefault(identity, {}).setdefault(value, arm)
    family = max(families.values(), key=len, default={})
    if len(family) < 2:
        return {}
    numeric = all(isinstance(value, int | float) for value in family)
    return dict(sorted(family.items())) if numeric else family
