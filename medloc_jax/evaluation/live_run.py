# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run's folder while the run goes on, which may be on another machine.

Unlike `run_folder`, which reads what is left of a run, this is read again and again: what is not
there yet is no error, and only what has changed is read anew.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from medloc_jax import config as configuration
from medloc_jax import metric_writer, storage

# What a step spends its time on, in this order: metrics speed/<name>_seconds.
PHASES = ("data", "sample", "score", "reference", "update")

_RECENT = 20  # steps over which times and rates are averaged


@dataclasses.dataclass(frozen=True)
class Seen:
    """A run as it stands.

    Attributes:
        workdir: its folder.
        config: its config.json; empty where there is none yet.
        rows: the lines of metrics.jsonl.
        age: seconds since the last line; None where there is none, or the store does not tell.
        checkpoints: steps that are saved.
    """

    workdir: str
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    age: float | None
    checkpoints: Sequence[int]

    @property
    def last(self) -> Mapping[str, Any]:
        """The newest line."""
        return self.rows[-1] if self.rows else {}

    @property
    def step(self) -> int:
        """Of the newest line."""
        return self.last.get("step", 0)

    @property
    def num_steps(self) -> int:
        """Of the whole run; 0 where it is not known."""
        return self.config.get("num_steps", 0)

    @property
    def finished(self) -> bool:
        """Whether the last step is there."""
        return 0 < self.num_steps <= self.step

    def history(self, name: str) -> list[float]:
        """A metric over the steps at which it was logged."""
        return [row[name] for row in self.rows if row.get(name) is not None]

    def recent(self, name: str) -> float | None:
        """Its mean over the last steps."""
        values = self.history(name)[-_RECENT:]
        return statistics.fmean(values) if values else None

    @property
    def step_seconds(self) -> float | None:
        """What a step takes of late, evaluations apart."""
        phases = [self.recent(f"speed/{name}_seconds") for name in PHASES]
        known = [seconds for seconds in phases if seconds is not None]
        return sum(known) if known else None


class Run:
    """Reads a run's folder again and again; only what has changed."""

    def __init__(self, workdir: str):
        """Names the folder.

        Raises:
            ValueError: it is not there.
        """
        self._folder = storage.path(workdir)
        self._workdir = workdir
        if not storage.is_remote(workdir) and not self._folder.is_dir():
            raise ValueError(f"{workdir} is not there: name the --workdir of a run")
        self._state: tuple | None = None
        self._rows: list[Mapping[str, Any]] = []
        self._config: Mapping[str, Any] = {}

    def read(self) -> Seen:
        """The run as it stands now.

        Raises:
            ValueError: a line of metrics.jsonl, other than a torn last one, cannot be read.
        """
        if not self._config:
            self._config = _read_config(self._folder / configuration.FILE)
        file = self._folder / metric_writer.METRICS_FILE
        age = None
        if file.exists():
            stat = file.stat()
            # pathlib and epath name them differently.
            size = getattr(stat, "st_size", None) or getattr(stat, "length", 0)
            changed = getattr(stat, "st_mtime", None) or getattr(stat, "mtime", 0.0)
            if (size, changed) != self._state:
                self._rows = _read_rows(file)
                self._state = (size, changed)
            # epath tells no time of what lies on s3://: 0.
            age = max(0.0, time.time() - changed) if self._rows and changed else None
        folder = self._folder / "checkpoints"
        names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
        steps = sorted(int(name) for name in names if name.isdigit())
        return Seen(self._workdir, self._config, tuple(self._rows), age, tuple(steps))


def _read_config(file: Any) -> Mapping[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not there yet, or half of it
        return {}


def _read_rows(file: Any) -> list[Mapping[str, Any]]:
    lines = file.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break  # it is being written
            raise ValueError(f"{file}:{number} is no JSON: mend or delete the line") from error
    return rows
