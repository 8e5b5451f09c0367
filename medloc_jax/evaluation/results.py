# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What finished runs amount to, by method and data set: the numbers behind every table.

A method is a run's `config.label`, else `sft`, `zero_shot` or its reward schedule. Its experiment
on a data set is all the runs that differ in their seed alone. What counts of a run is its last
evaluation of the split, at the last step: never the best one on the way.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medloc_jax import config as config_module
from medloc_jax import methods
from medloc_jax.evaluation import metrics, run_folder

# What each schedule reads of config.curriculum, and each form of medloc's step size.
_READ = {
    "medloc": (
        *("threshold_start", "threshold_target", "step_size", "window", "window_unit"),
        *("window_rewards", "min_fill", "refresh_fraction", "margin", "criteria", "regimes"),
    ),
    "fixed": ("threshold_fixed",),
    "raw_iou": (),
    "v_triune": ("stages",),
    "rivals": ("rivals_start", "rivals_end"),
}
_READ_BY_FORM = {
    "piecewise": ("step_sizes", "boundaries"),
    "linear": ("step_size_start", "snap_eps"),
    "cosine": ("step_size_start", "snap_eps"),
    "constant": ("step_size_start",),
}
# Settings that do not change what is learnt: they name a group only where no other differs.
_BESIDE = ("label", "checkpoint.", "log.", "mesh.", "watchdog.", "eval.", "data.num_")
_MOST_SETTINGS = 3  # that a name tells

MEASURES = {"a50": "A@0.5", "a80": "A@0.8", "map": "mAP", "miou": "mIoU"}


@dataclasses.dataclass(frozen=True)
class Final:
    """A run's last evaluation of a split, its predictions read; none where the file is absent."""

    run: run_folder.Run
    evaluation: run_folder.Evaluation
    predictions: Sequence[Mapping[str, Any]]

    @property
    def seed(self) -> int | str:
        """The run's seed; its name where config.json is absent."""
        return self.run.name if self.run.seed is None else self.run.seed

    def scores(self, measure: str) -> dict[str, float]:
        """One measure of every example, by id: 0 to 1, of which the run's number is the mean."""
        return {
            str(line["id"]): value
            for line, value in zip(
                self.predictions, metrics.per_example(ious(self.predictions), measure), strict=True
            )
        }


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The runs of one method on one data set: all alike but for the seed."""

    method: str
    name: str  # as tables print it, unique within the data set
    data_set: str
    finals: tuple[Final, ...]

    def values(self, measure: str) -> dict[int | str, float]:
        """One measure by seed, fractions in [0, 1]; a run that lacks it is left out."""
        found: dict[int | str, Any] = {
            final.seed: final.evaluation.metrics.get(measure) for final in self.finals
        }
        return {seed: float(value) for seed, value in found.items() if _is_number(value)}

    def scores(self, measure: str, seeds: Sequence[int | str]) -> dict[str, float]:
        """One measure by example, the mean over the runs of these seeds; {} where one has none."""
        columns = [final.scores(measure) for final in self.finals if final.seed in seeds]
        if not columns or not all(columns):
            return {}
        shared = [key for key in columns[0] if all(key in column for column in columns)]
        return {key: statistics.fmean(column[key] for column in columns) for key in shared}


def collect(runs: Sequence[run_folder.Run], split: str) -> tuple[list[Experiment], list[str]]:
    """Groups runs into experiments, data set by data set, in the order that they were named.

    Returns:
        The experiments, and what could not be taken.

    Raises:
        ValueError: two runs of an experiment have one seed, or predictions.jsonl and metrics.json
            of a run tell different numbers.
    """
    missing = []
    by_data_set: dict[str, list[Final]] = {}
    for run, name in zip(runs, run_names(runs), strict=True):
        entries = run.of_split(split)
        if not entries:
            missing.append(f"{name}: no evaluation of {split}")
            continue
        final = Final(run, entries[-1], entries[-1].predictions())
        if not final.predictions:
            missing.append(f"{name}: no predictions of {split}: no test over its examples")
        _check_agreement(final)
        by_data_set.setdefault(data_set(run, final.predictions), []).append(final)

    experiments = []
    for name, finals in by_data_set.items():
        by_folder = {final.run.folder: final for final in finals}
        groups = run_folder.groups_by_seed([final.run for final in finals])
        for group, label in zip(groups, group_labels(groups), strict=True):
            chosen = tuple(by_folder[run.folder] for run in group)
            _check_seeds(chosen)
            experiments.append(Experiment(method(group[0]), label, name, chosen))
    return experiments, missing


def method(run: run_folder.Run) -> str:
    """The name of a run's method or arm: its label, else what the config amounts to."""
    if run.config.get("label"):
        return str(run.config["label"])
    return run.method if run.is_trained or run.is_sft else "zero_shot"


def departures(config: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """The settings in which a run is not the method that it is called; {} where it is.

    Looked at are the fields that methods.METHODS sets, and what the method's schedule reads of the
    curriculum, whose values are otherwise the defaults. A setting that config.json does not hold
    (an older version's, or there is none) is not held against the run.

    Args:
        config: of the run.
        name: of the method; "" = the config's label, else its schedule.
    """
    name = name or str(config.get("label") or "")
    if not name:
        name = method(run_folder.Run(Path(), dict(config), (), (), (), ()))
    if name not in methods.METHODS:
        return {}
    flat = config_module.flatten(config)
    expected = {"method": "grpo"} | _curriculum_of(name) | methods.METHODS[name]
    found = {}
    for key, value in expected.items():
        # One field like another is a budget: `comparability` looks at that.
        if isinstance(value, methods.Like) or key.startswith(_BESIDE):
            continue
        if key in flat and _plain(flat[key]) != _plain(value):
            found[key] = flat[key]
    if flat.get("num_steps") == 0 and name != "zero_shot":
        found.setdefault("num_steps", 0)
    return found


def run_title(run: run_folder.Run) -> str:
    """A run's method as tables print it; where the run is another, its name and what differs."""
    name = method(run)
    differing = departures(run.config, name)
    return f"{name}, {_told(differing)}" if differing else title(name)


def run_names(runs: Sequence[run_folder.Run]) -> list[str]:
    """The runs' folders, with as many of the last parts as tell them apart: "fixed/42"."""
    folders = [run.folder.resolve() for run in runs]
    for depth in range(1, max((len(folder.parts) for folder in folders), default=0)):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        # A sweep names a run's folder by its seed alone, which says too little.
        if len(set(names)) == len(set(folders)) and not any(name.isdigit() for name in names):
            return names
    return [str(folder) for folder in folders]


def title(name: str) -> str:
    """A method as tables print it."""
    return methods.TITLES.get(name, name)


def group_labels(groups: Sequence[Sequence[run_folder.Run]]) -> list[str]:
    """A name for each group: its method, and where that is not enough, the settings that differ."""
    names = [run_title(group[0]) for group in groups]
    flat = [config_module.flatten(group[0].config) for group in groups]
    labels = []
    for index, name in enumerate(names):
        rivals = [other for other, rival in enumerate(names) if rival == name]
        keys = sorted({key for other in rivals for key in flat[other] if key != "seed"})
        differing = [key for key in keys if len({str(flat[o].get(key)) for o in rivals}) > 1]
        differing = [key for key in differing if not key.startswith(_BESIDE)] or differing
        label = name
        if len(rivals) > 1:
            settings = {key: flat[index].get(key) for key in differing[:_MOST_SETTINGS]}
            label = f"{label}, {_told(settings) or groups[index][0].name}"
        labels.append(label)
    # Two groups may still share a name, when more than three settings differ.
    return [
        label if labels.count(label) == 1 else f"{label} [{group[0].name}]"
        for label, group in zip(labels, groups, strict=True)
    ]


def data_set(run: run_folder.Run, predictions: Sequence[Mapping[str, Any]]) -> str:
    """The data set of a run: the `source` of its examples, drawn pictures with their variant."""
    data = run.config.get("data", {})
    manifest = str(data.get("manifest", ""))
    sources = {str(line["source"]) for line in predictions if line.get("source")}
    if not sources and manifest not in ("", "synthetic"):
        sources = {_manifest_source(Path(manifest))}
    name = "+".join(sorted(sources)) or manifest or "unknown"
    variant = data.get("synthetic", {}).get("variant", "")
    return f"{name} {variant}".strip() if name == "synthetic" else name


def ious(predictions: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The IoU of every line, 0 where the completion held no box."""
    return np.asarray([line["iou"] if line["valid"] else 0.0 for line in predictions], np.float64)


def _curriculum_of(name: str) -> dict[str, Any]:
    """The defaults of what a method's schedule reads of the curriculum."""
    own = methods.METHODS[name]
    if name == "zero_shot" or own.get("method") == "sft":
        return {}
    defaults: dict[str, Any] = config_module.default_config().to_dict()["curriculum"]
    read = ("schedule", *_READ[own.get("curriculum.schedule", defaults["schedule"])])
    if "step_size" in read:
        read += _READ_BY_FORM[own.get("curriculum.step_size", defaults["step_size"])]
    return {f"curriculum.{key}": defaults[key] for key in read}


def _plain(value: Any) -> Any:
    """A value as JSON has it: tuples are lists there."""
    return json.loads(json.dumps(value, default=str))


def _told(settings: Mapping[str, Any]) -> str:
    """Settings in a name: the first few, and how many more there are."""
    items = list(settings.items())
    more = f" and {len(items) - _MOST_SETTINGS} more" if len(items) > _MOST_SETTINGS else ""
    return ", ".join(f"{key}={value}" for key, value in items[:_MOST_SETTINGS]) + more


def _manifest_source(manifest: Path) -> str:
    """The `source` of a manifest's first line; where it is gone, the name of its folder."""
    path = manifest / "manifest.jsonl" if manifest.is_dir() else manifest
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            try:
                return str(json.loads(file.readline())["source"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f'{path}: line 1 has no "source": mend the manifest') from error
    return manifest.parent.name if manifest.suffix else manifest.name


def _check_agreement(final: Final) -> None:
    """The two files of an evaluation must tell the same."""
    stated: Any = final.evaluation.metrics.get("a50")
    if not final.predictions or not _is_number(stated):
        return
    counted = statistics.fmean(final.scores("a50").values())
    if abs(counted - float(stated)) > 1e-6:
        raise ValueError(
            f"{final.evaluation.folder}: metrics.json says A@0.5 {stated:.4f}, "
            f"predictions.jsonl {counted:.4f}: they are of different evaluations; run "
            "`medloc evaluate` again"
        )


def _check_seeds(finals: Sequence[Final]) -> None:
    by_seed: dict[int | str, str] = {}
    for final in finals:
        other = by_seed.setdefault(final.seed, str(final.run.folder))
        if other != str(final.run.folder):
            raise ValueError(
                f"{other} and {final.run.folder} are the same experiment with the same seed "
                f"{final.seed}: name only one of them, or a seed would count twice"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
