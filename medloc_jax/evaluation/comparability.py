# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whether runs may stand in one table: the same test examples, and the same budget.

A difference is refused with the runs and the fields that differ, unless it is allowed by name; then
it is told in the report. Runs on different data sets stand in different columns and are not held
against each other.

* `split`: the ids of the examples that were scored, and their true boxes.
* `budget`: optimizer steps, the step that was scored, prompts a step (SFT: examples a step), group
  size, updates a rollout, the warm start and the training data.

Two things are not held against a run: a zero-shot row (no steps: it has no budget to compare, only
a start), and the group size and updates of SFT, which has none.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medloc_jax.evaluation import results, run_folder

KINDS = ("budget", "split")
_MOST_NAMED = 4  # runs named for each value of a field


class Difference(NamedTuple):
    """A field in which runs of one data set differ."""

    kind: str  # an entry of KINDS
    data_set: str
    field: str
    values: tuple[tuple[str, tuple[str, ...]], ...]  # (value, the runs that have it)

    def __str__(self) -> str:
        """In words, the runs named."""
        told = "; ".join(f"{value} in {_named(names)}" for value, names in self.values)
        return f"{self.data_set}: {self.field} is {told}"


def check(
    experiments: Sequence[results.Experiment], allow: Collection[str] = ()
) -> list[Difference]:
    """Finds what keeps runs from being compared.

    Args:
        experiments: as `results.collect` gives them.
        allow: entries of KINDS that may differ.

    Returns:
        The differences that were allowed, for the report to tell.

    Raises:
        ValueError: runs differ in what was not allowed, or `allow` names something else.
    """
    unknown = sorted(set(allow) - set(KINDS))
    if unknown:
        raise ValueError(f"--allow={unknown[0]}: choose of {', '.join(KINDS)}")
    found = differences(experiments)
    refused = [difference for difference in found if difference.kind not in allow]
    if refused:
        kinds = sorted({difference.kind for difference in refused})
        named = " | ".join(str(difference) for difference in refused)
        raise ValueError(
            f"these runs are not comparable, they differ in {' and '.join(kinds)}: {named}. Leave "
            f"the odd ones out, or give --allow={','.join(kinds)}: the report then says what "
            "differs"
        )
    return found


def differences(experiments: Sequence[results.Experiment]) -> list[Difference]:
    """Every field in which runs of one data set differ."""
    found = []
    for data_set in dict.fromkeys(experiment.data_set for experiment in experiments):
        finals = [
            final
            for experiment in experiments
            if experiment.data_set == data_set
            for final in experiment.finals
        ]
        names = results.run_names([final.run for final in finals])
        facts = {
            "split": [_split(final) for final in finals],
            "budget": [_budget(final) for final in finals],
        }
        for kind, columns in facts.items():
            for field in dict.fromkeys(field for column in columns for field in column):
                values: dict[str, list[str]] = {}
                for name, column in zip(names, columns, strict=True):
                    if field in column:
                        values.setdefault(column[field], []).append(name)
                if len(values) > 1:
                    told = tuple((value, tuple(who)) for value, who in values.items())
                    found.append(Difference(kind, data_set, field, told))
    return found


def _split(final: results.Final) -> dict[str, str]:
    facts = {"number of examples": str(final.evaluation.metrics.get("num_examples", "unknown"))}
    if final.predictions:
        asked = sorted((str(line["id"]), line.get("target_boxes_px")) for line in final.predictions)
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        facts["set of examples and true boxes"] = f"#{digest[:8]}"
    return facts


def _budget(final: results.Final) -> dict[str, str]:
    run = final.run
    config = run.config
    if run.is_detector:
        return {}  # an outside detector's boxes: how it was trained is not told here
    facts = {
        "training data": _training_data(run),
        "warm start": _start(run),
    }
    if config.get("num_steps") == 0:
        return facts
    facts["num_steps"] = _told(config.get("num_steps"))
    facts["step that was scored"] = str(final.evaluation.step)
    if run.is_sft:
        facts["prompts per step"] = _told(config.get("sft", {}).get("batch_size"))
    else:
        rl = config.get("rl", {})
        facts["prompts per step"] = _told(rl.get("prompts_per_step"))
        facts["rl.group_size"] = _told(rl.get("group_size"))
        facts["rl.num_updates"] = _told(rl.get("num_updates"))
    return facts


def _training_data(run: run_folder.Run) -> str:
    data = run.config.get("data", {})
    manifest = _told(data.get("manifest"))
    told = [manifest if manifest in ("synthetic", "unknown") else str(Path(manifest).resolve())]
    if manifest == "synthetic":
        told += [f"{key}={value}" for key, value in sorted(data.get("synthetic", {}).items())]
    if "val_fraction" in data:
        told.append(f"val_fraction={data['val_fraction']}")
    return ", ".join(told)


def _start(run: run_folder.Run) -> str:
    """What a run started from: by its config where that is a run, so that a copy counts as one."""
    source = str(run.config.get("model", {}).get("init_from", ""))
    if not source:
        # Random weights differ by what the model is, not by where it lies.
        return f"random weights of {_told(run.config.get('model', {}).get('preset'))}"
    config = run_folder.start_config(run.config)
    if config is None:
        return source
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return f"a run with config #{digest[:8]}"


def _told(value: Any) -> str:
    return "unknown" if value is None else str(value)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
