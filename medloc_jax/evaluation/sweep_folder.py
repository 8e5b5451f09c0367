# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which runs of a sweep's folder a report is about: the finished ones, and those that are lacking.

`sweep.json` keeps the account. Only entries of kind "run" count: a warm start and the tries of a
tuning are no results. A run that failed, waits or is going on is named, never counted.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

FILE = "sweep.json"
_RUN, _FINISHED = "run", "finished"


class Sweep(NamedTuple):
    """What a sweep's folder holds for a report."""

    finished: tuple[Path, ...]  # folders of runs, in the sweep's order
    lacking: tuple[str, ...]  # one line a run that is not among them, with why
    allow: tuple[str, ...] = ()  # in what its arms differ on purpose
    reference: str = ""  # the arm that the others are taken from; "" where no run of it is finished


def is_sweep(folder: Path) -> bool:
    """Whether this is the folder of a sweep."""
    return (folder / FILE).is_file()


def read(folder: Path) -> Sweep:
    """Reads a sweep's account.

    Raises:
        ValueError: it cannot be read.
    """
    path = folder / FILE
    try:
        account: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        runs: Sequence[dict[str, Any]] = account["runs"]
        allow, reference = tuple(account.get("allow", ())), str(account.get("reference", ""))
        finished, lacking, arms = [], [], set()
        for run in runs:
            name, kind, state = run["name"], run["kind"], run["state"]
            if kind != _RUN:
                continue
            if state == _FINISHED and (folder / name).is_dir():
                finished.append(folder / name)
                arms.add(run.get("arm", ""))
                continue
            why = "its folder is gone" if state == _FINISHED else run.get("why", "")
            lacking.append(f"{name}: {state}" + (f": {why}" if why else ""))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the account of a sweep ({type(error).__name__}: {error}); run the same "
            "`medloc sweep` again, or name the runs' own folders"
        ) from error
    return Sweep(tuple(finished), tuple(lacking), allow, reference if reference in arms else "")


def asked(folders: Sequence[Path]) -> tuple[tuple[str, ...], str]:
    """What the sweeps among these folders ask of a report.

    Returns:
        In what runs may differ, by any of them; and the reference, "" where there is none, or
        where two of them name different ones.

    Raises:
        ValueError: an account cannot be read.
    """
    sweeps = [read(folder) for folder in folders if is_sweep(folder)]
    allow = tuple(sorted({kind for sweep in sweeps for kind in sweep.allow}))
    references = {sweep.reference for sweep in sweeps}
    return allow, references.pop() if len(references) == 1 else ""


def expand(folders: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Folders of runs and of sweeps -> folders of runs, each once, and what is lacking.

    Raises:
        ValueError: a sweep has no finished run, or its account cannot be read.
    """
    runs: list[Path] = []
    lacking: list[str] = []
    for folder in folders:
        if not is_sweep(folder):
            runs.append(folder)
            continue
        sweep = read(folder)
        if not sweep.finished:
            first = f" ({sweep.lacking[0]})" if sweep.lacking else ""
            raise ValueError(
                f"{folder}: no run of this sweep is finished{first}; run `medloc sweep` again"
            )
        runs += sweep.finished
        lacking += [f"{folder.name}/{line}" for line in sweep.lacking]
    return list(dict.fromkeys(runs)), lacking
