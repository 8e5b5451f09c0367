# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What lies in the folders of a sweep's runs: how far each has come, and what tuning chose.

Only the folders count, not the account in sweep.json: runs may come from other machines.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medloc_jax import config as configuration
from medloc_jax import metric_writer, storage
from medloc_jax.cli import sweep_runs, validate

CHOSEN = "chosen.json"

# Differences that leave a finished run what it was. The length and what is evaluated are not among
# them: a shorter run is another result.
FREE = tuple(name for name in validate.FREE if name not in ("num_steps", "eval.", "label")) + (
    "eval.batch_size",
)


def check(runs: Sequence[sweep_runs.Run]) -> None:
    """Refuses runs that cannot work, and folders that hold others than are asked for now.

    Raises:
        ValueError: one line that names the run, the fields and the cure.
    """
    for run in runs:
        config = sweep_runs.expected(run)
        try:
            validate.check(config)
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from error
        if run.kind == sweep_runs.TUNING and config.eval.split in ("test", run.withheld):
            raise ValueError(
                f"{run.name}: eval.split={config.eval.split}: tuning must not look at test; set "
                "eval.split=val, or leave this arm untuned, as arm(..., tune=(FIELD, ())) does"
            )
        changed = differences(run, config) if run.complete else []
        if changed and _holds_work(run):
            shown = "; ".join(changed[:4]) + ("; ..." if len(changed) > 4 else "")
            raise ValueError(
                f"{run.folder} holds a run of another configuration ({shown}): remove or rename "
                "that folder, or choose another --workdir"
            )


def _holds_work(run: sweep_runs.Run) -> bool:
    """Whether something would be lost, or taken for what it is not: a result, or a checkpoint."""
    if status(run, configuration.read(run.folder)) == FINISHED:
        return True
    saved = Path(run.folder) / "checkpoints"
    return saved.is_dir() and any(saved.iterdir())


def differences(run: sweep_runs.Run, config: Any) -> list[str]:
    """The fields in which the run in the folder is not the one that is asked for."""
    if not (Path(run.folder) / configuration.FILE).is_file():
        return []
    before = configuration.read(run.folder)
    free = FREE
    # The sweep's folder may have been moved or named otherwise since: its warm start is the same.
    ours = f"/{sweep_runs.WARM_START}"
    if config.model.init_from.endswith(ours) and before.model.init_from.endswith(ours):
        free += ("model.init_from",)
    # A run notes where its tokenizer came from.
    if not config.model.tokenizer:
        free += ("model.tokenizer",)
    return validate.differences(before, config, free)


FINISHED, STARTED, NEW = "finished", "started", "new"


def status(run: sweep_runs.Run, config: Any) -> str:
    """How far a run has come: FINISHED, STARTED or NEW.

    Finished: the line of its last step is there, with the evaluations of that step.
    """
    folder = Path(run.folder)
    if not (folder / configuration.FILE).is_file():
        return NEW
    last = last_line(run)
    done = last.get("step") == config.num_steps
    for split in sorted({config.eval.split, config.eval.final_split} - {""}):
        evaluation = folder / "eval" / f"{split}-{config.num_steps}" / "metrics.json"
        done = done and evaluation.is_file()
    if run.kind == sweep_runs.WARM_START:  # the others need its weights
        done = done and (folder / "checkpoints" / str(config.num_steps)).is_dir()
    return FINISHED if done else STARTED


def last_line(run: sweep_runs.Run) -> dict[str, Any]:
    """The last whole line of a run's metrics; empty where there is none."""
    path = Path(run.folder) / metric_writer.METRICS_FILE
    if not path.is_file():
        return {}
    for line in reversed(path.read_bytes().split(b"\n")):
        try:
            return json.loads(line)
        except ValueError:
            continue  # the end of the file, or a line that is being written
    return {}


def choose(plan: sweep_runs.Plan, arm: configuration.Arm, tries: Sequence[sweep_runs.Run]) -> Any:
    """Picks the value whose try is best on the watched split; writes chosen.json.

    Of equals, the first of the list wins.

    Args:
        plan: of the sweep.
        arm: whose tries they are.
        tries: finished.

    Returns:
        The value.

    Raises:
        ValueError: a try has no such measure.
    """
    found = []
    for run in tries:
        config = sweep_runs.expected(run)
        measure = f"eval/{config.eval.split}/{plan.sweep.tune_measure}"
        value = last_line(run).get(measure)
        if value is None:
            raise ValueError(f"{run.folder} has no {measure} at its last step to choose by")
        found.append({"value": run.tried, "measure": measure, "result": value, "run": run.name})
    best = max(found, key=lambda one: one["result"])  # the first of equals
    record = {
        "arm": arm.name,
        "field": plan.tune_field(arm),
        "chosen": best["value"],
        "seed": plan.sweep.tune_seed,
        "tries": found,
    }
    write_json(Path(plan.workdir) / sweep_runs.TUNING / arm.name / CHOSEN, record)
    return best["value"]


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def link_drawings(run: sweep_runs.Run, workdir: str) -> None:
    """Draws the synthetic pictures of a run once for all runs, into WORKDIR/data."""
    from medloc_jax.data import synthetic

    data = sweep_runs.expected(run).data
    if data.manifest != "synthetic" or storage.is_remote(workdir):
        return
    made, link = data.synthetic, Path(run.folder) / "data"
    if link.exists() or link.is_symlink():
        return
    name = f"{made.variant}-{made.num_train}-{made.num_test}-{made.seed}"
    synthetic.write(Path(workdir) / "data" / name, **made.to_dict())
    link.parent.mkdir(parents=True, exist_ok=True)
    depth = len(Path(run.name).parts)
    link.symlink_to(Path(*[".."] * depth, "data", name), target_is_directory=True)
