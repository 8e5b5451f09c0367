# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reads back what a run left in its folder: config, metrics by step, rollouts, evaluations.

A file that is absent is noted in `Run.missing`; a line that cannot be read is an error, except a
torn last line, which a run that is still going (or was killed) may leave.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

# Schedules whose reward asks for an IoU: `hit` and `iou_if_hit` in rewards/combine.py. The others
# log a threshold of 0 that nothing is compared with.
_WITH_THRESHOLD = ("medloc", "fixed", "v_triune")
_EVALUATION_FOLDER = re.compile(r"(?P<split>.+)-(?P<step>\d+)")


class Series(NamedTuple):
    """One metric over the steps at which it was logged."""

    steps: Int[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One folder `eval/<split>-<step>`; the predictions stay on disk until asked for."""

    split: str
    step: int
    folder: Path
    metrics: dict[str, Any]

    @property
    def floor(self) -> dict[str, Any] | None:
        """The constant-box floor of the split, or None where metrics.json does not hold it."""
        return self.metrics.get("floor")

    @property
    def has_predictions(self) -> bool:
        """Whether predictions.jsonl is there."""
        return (self.folder / "predictions.jsonl").is_file()

    def predictions(self) -> list[dict[str, Any]]:
        """The lines of predictions.jsonl; empty where the file is absent."""
        return _read_jsonl(self.folder / "predictions.jsonl")[0] if self.has_predictions else []


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder, read."""

    folder: Path
    config: dict[str, Any]
    rows: tuple[dict[str, Any], ...]  # metrics.jsonl
    rollouts: tuple[dict[str, Any], ...]
    evaluations: tuple[Evaluation, ...]  # by step, then split
    missing: tuple[str, ...]  # what a reader of the report should know is not there

    @property
    def name(self) -> str:
        """The folder's last part."""
        return self.folder.resolve().name

    @property
    def is_sft(self) -> bool:
        """True for supervised fine-tuning, by the config, else by what was logged."""
        if "method" in self.config:
            return self.config["method"] == "sft"
        return any("sft/loss" in row for row in self.rows)

    @property
    def is_detector(self) -> bool:
        """True for boxes of an outside detector that `medloc evaluate --predictions` scored."""
        return self.config.get("method") == "predictions"

    @property
    def is_trained(self) -> bool:
        """False where no step was taken: a zero-shot row, a detector's boxes."""
        return self.config.get("num_steps") != 0

    @property
    def schedule(self) -> str:
        """The reward schedule of a GRPO run, "" where it is not known."""
        return "" if self.is_sft else str(self.config.get("curriculum", {}).get("schedule", ""))

    @property
    def method(self) -> str:
        """`sft`, the name of the reward schedule, or what config.json says (`predictions`)."""
        return "sft" if self.is_sft else self.schedule or str(self.config.get("method", "grpo"))

    @property
    def has_threshold(self) -> bool:
        """Whether an IoU decides what earns a reward; taken for granted where config.json lacks."""
        return self.schedule in _WITH_THRESHOLD or not self.config

    @property
    def seed(self) -> int | None:
        """The run's seed, None where config.json is absent."""
        return self.config.get("seed")

    @property
    def last_step(self) -> int | None:
        """The last step in metrics.jsonl, None where nothing was logged."""
        return self.rows[-1]["step"] if self.rows else None

    def series(self, key: str) -> Series:
        """The finite values of one metric, by step; empty where it was never logged."""
        points = [(row["step"], float(row[key])) for row in self.rows if _is_number(row.get(key))]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return Series(np.asarray(steps, np.int64), np.asarray(values, np.float64))

    def splits(self) -> tuple[str, ...]:
        """Every split that was evaluated, in alphabetical order."""
        logged = {
            match.group(1)
            for row in self.rows
            for key in row
            if (match := re.fullmatch(r"eval/(.+)/\w+", key))
        }
        return tuple(sorted(logged | {evaluation.split for evaluation in self.evaluations}))

    def of_split(self, split: str) -> tuple[Evaluation, ...]:
        """The evaluation folders of one split, by step."""
        return tuple(entry for entry in self.evaluations if entry.split == split)

    def accuracy(self, split: str, measure: str) -> Series:
        """One measure of one split by step, from metrics.jsonl and the evaluation folders."""
        points = dict(zip(*self.series(f"eval/{split}/{measure}"), strict=True))
        for evaluation in self.of_split(split):
            if _is_number(evaluation.metrics.get(measure)):
                points[evaluation.step] = float(evaluation.metrics[measure])
        steps = sorted(points)
        return Series(
            np.asarray(steps, np.int64), np.asarray([points[k] for k in steps], np.float64)
        )

    def last_evaluation(self) -> Evaluation | None:
        """The latest evaluation that has predictions; of several at one step, the test split."""
        found = [entry for entry in self.evaluations if entry.has_predictions]
        return max(found, key=lambda e: (e.step, e.split == "test", e.split), default=None)

    def image_path(self, prediction: dict[str, Any], evaluation: Evaluation) -> Path | None:
        """Where a prediction's image lies, None where it cannot be found."""
        image = str(prediction.get("image", ""))
        # Paths in the files are relative to where the run was started: it may have moved since.
        roots = []
        if "image_folder" in evaluation.metrics:
            roots.append(Path(str(evaluation.metrics["image_folder"])))
        manifest = str(self.config.get("data", {}).get("manifest", "synthetic"))
        if manifest != "synthetic":
            roots.append(Path(manifest).parent)
        data = self.folder / "data"
        roots += [data, *sorted(path for path in data.glob("*") if path.is_dir())]
        return next((root / image for root in roots if (root / image).is_file()), None)


def load(folder: str | Path) -> Run:
    """Reads a run's folder.

    Raises:
        ValueError: no such folder, a broken line, or neither metrics nor evaluations in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the --workdir of a `medloc train` run")
    missing: list[str] = []

    config: dict[str, Any] = {}
    if (folder / "config.json").is_file():
        config = _read_json(folder / "config.json")
    else:
        missing.append("config.json: method and seed are guessed or left out")

    rows: list[dict[str, Any]] = []
    if (folder / "metrics.jsonl").is_file():
        rows, torn = _read_jsonl(folder / "metrics.jsonl")
        if torn:
            missing.append("the last line of metrics.jsonl is cut off (is the run still going?)")
        for number, row in enumerate(rows, start=1):
            if not isinstance(row.get("step"), int):
                raise ValueError(
                    f'{folder / "metrics.jsonl"}: line {number}: no integer "step"; '
                    "is this the metrics file of a run?"
                )
        rows.sort(key=lambda row: row["step"])
    else:
        missing.append("metrics.jsonl: no curves over the steps")

    rollouts: list[dict[str, Any]] = []
    if (folder / "rollouts.jsonl").is_file():
        rollouts, _ = _read_jsonl(folder / "rollouts.jsonl")

    evaluations, notes = _load_evaluations(folder)
    missing += notes
    if not rows and not evaluations:
        raise ValueError(
            f"{folder}: neither metrics.jsonl nor eval/*/metrics.json has anything in it; "
            "give the --workdir of a run that has taken a step, or run `medloc evaluate` first"
        )
    return Run(folder, config, tuple(rows), tuple(rollouts), evaluations, tuple(missing))


def _load_evaluations(folder: Path) -> tuple[tuple[Evaluation, ...], list[str]]:
    evaluations, notes = [], []
    for child in sorted((folder / "eval").glob("*")):
        match = _EVALUATION_FOLDER.fullmatch(child.name)
        if not match or not child.is_dir():
            continue
        if not (child / "metrics.json").is_file():
            notes.append(f"eval/{child.name}/metrics.json: this evaluation is left out")
            continue
        if not (child / "predictions.jsonl").is_file():
            notes.append(f"eval/{child.name}/predictions.jsonl: no histogram or images from it")
        metrics = _read_json(child / "metrics.json")
        evaluations.append(Evaluation(match["split"], int(match["step"]), child, metrics))
    if not evaluations:
        notes.append("eval/: no evaluation has been written")
    return tuple(sorted(evaluations, key=lambda e: (e.step, e.split))), notes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); restore or remove the file") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object; restore or remove the file")
    return content


def _read_jsonl(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The objects of a JSONL file, and whether a torn last line was dropped."""
    lines = path.read_bytes().split(b"\n")
    objects = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline after it: the writer was interrupted here
                return objects, True
            raise ValueError(
                f"{path}: line {number}: not JSON ({error}); mend or remove the line"
            ) from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}: line {number}: not a JSON object; mend or remove the line")
        objects.append(value)
    return objects, False


def groups_by_seed(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that differ only in their seed, together; a run without a config stands alone."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = (
            json.dumps(_without_seed(run.config), sort_keys=True)
            if run.config
            else str(run.folder.resolve())
        )
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _without_seed(config: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """The config less its seed; the run it was started from counts by its config, not by its path.

    Three seeds, each with a warm start of its own, are then still one group.
    """
    # Each training of an outside detector has its own file of boxes (outside_predictions.DIGESTS).
    beside = ("seed", "predictions_sha256")
    rest = {key: value for key, value in config.items() if key not in beside}
    start = start_config(config, depth)
    if start is not None:
        rest["model"] = config["model"] | {"init_from": start}
    return rest


def start_config(config: dict[str, Any], depth: int = 0) -> dict[str, Any] | None:
    """The config, less the seed, of what a run was started from; None where that is not known."""
    init_from = str(config.get("model", {}).get("init_from", ""))
    start = Path(init_from) / "config.json"
    if not init_from or not start.is_file() or depth >= 8:
        return None
    return _without_seed(_read_json(start), depth + 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
