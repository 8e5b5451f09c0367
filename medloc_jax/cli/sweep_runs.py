# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The runs of a sweep: which there are, and how each is started.

A run is `medloc train` with a folder and every difference from its experiment file spelt out, so
that its line can be copied to another machine.
"""

import dataclasses
import functools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medloc_jax import config as configuration
from medloc_jax import methods
from medloc_jax.cli import job as jobs
from medloc_jax.evaluation import comparability

WARM_START = "warm_start"
TUNING = "tuning"
# Fields that every run has for itself -> what to do instead of setting them for all.
NOT_SET = {
    "seed": "every run has its own; use --seeds",
    "label": "every run is called by its arm; name the arms in the sweep's file",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: its folder within the sweep's.
        arm: it belongs to; "" for the warm start.
        kind: "warm_start", "tuning" or "run".
        folder: its --workdir.
        experiment: file, and variant where there is one.
        changes: dotted field -> value, on top of the experiment.
        tried: the value that a tuning run tries.
        complete: whether its tuned value is known, or there is none.
        withheld: the split that a tuning run must not look at: its arm is judged by it.
    """

    name: str
    arm: str
    kind: str
    folder: str
    experiment: str
    changes: Mapping[str, Any]
    tried: Any = None
    complete: bool = True
    withheld: str = ""

    @property
    def arguments(self) -> list[str]:
        """What follows `medloc train`."""
        return [
            f"--config={self.experiment}",
            f"--workdir={self.folder}",
            *(f"--config.{field}={_written(value)}" for field, value in self.changes.items()),
        ]

    @property
    def line(self) -> str:
        """The command, for a shell."""
        return shlex.join(["medloc", "train", *self.arguments])


class Plan:
    """What a sweep asks for.

    Attributes:
        sweep: the list of runs, as `config.default_sweep` declares it.
        workdir: the folder of all runs, as it was given.
        arms: those that were asked for.
        seeds: those that were asked for; of an arm with seeds of its own, the shared ones.
    """

    def __init__(
        self,
        sweep: Any,
        workdir: str,
        *,
        only: Sequence[str] = (),
        seeds: Sequence[int] = (),
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes the list.

        Args:
            sweep: the list of runs.
            workdir: the folder of all runs.
            only: names of arms; () = all.
            seeds: in place of the list's; () = those.
            changes: dotted field -> value or text, of all runs and of the warm start.

        Raises:
            ValueError: an unknown or repeated arm, or a sweep without runs.
        """
        self.sweep, self.workdir = sweep, workdir.rstrip("/") or workdir
        self._changes = dict(changes or {})
        names = [arm.name for arm in sweep.arms]
        if not names or not (seeds or sweep.seeds):
            raise ValueError("the sweep has no arms, or no seeds: nothing to run")
        for name in names:
            if names.count(name) > 1 or not _is_folder_name(name):
                raise ValueError(
                    f"arm {name!r}: arms need different names of letters, digits, - and _, and "
                    f"neither {WARM_START!r} nor {TUNING!r}"
                )
        for name in only:
            if name not in names:
                raise ValueError(f"--only={name}: no such arm; there are {', '.join(names)}")
        self.arms = [arm for arm in sweep.arms if not only or arm.name in only]
        self._seeds = tuple(seeds)
        for field, cure in NOT_SET.items():
            if field in self._changes:
                raise ValueError(f"--set={field}: {cure}")
        if sweep.reference and sweep.reference not in names:
            raise ValueError(
                f"reference {sweep.reference!r} is no arm of this sweep; there are "
                f"{', '.join(names)}"
            )
        for kind in sweep.allow:
            if kind not in comparability.KINDS:
                raise ValueError(f"allow {kind!r}: choose of {', '.join(comparability.KINDS)}")
        if sweep.tune_seed in (seeds or sweep.seeds) and sweep.tune_values:
            raise ValueError(
                f"tune_seed {sweep.tune_seed} is also a seed of the runs: choose another, so that "
                "no run is one that was chosen by"
            )

    def kept(self) -> Iterator[str]:
        """What of the command line's changes does not reach a run, and why."""
        given = set(self._changes)
        for arm in self.arms:
            own = methods.fields_of(arm.method)
            names = [field for field in own if not isinstance(own[field], methods.Like)]
            for field in sorted({*names, *dict(arm.changes)} & given):
                yield f"{arm.name} keeps its own {field}: that is what the arm stands for"
        tuned = [(arm.name, self.tune_field(arm)) for arm in self.arms]
        for field in sorted({field for _, field in tuned if field} & given):
            names = ", ".join(name for name, of in tuned if of == field)
            yield f"--set={field} does not reach {names}: its value is chosen by tuning"
        if "eval.final_split" in given and any(field for _, field in tuned):
            yield "--set=eval.final_split does not reach the tries: they look at no final split"
        if self.sweep.warm_start:
            apart = ", ".join(sorted(given - set(self._for_all(data_only=True))))
            if apart:
                yield f"--set of {apart} does not reach the warm start: use warm_start_changes"

    def seeds(self, arm: configuration.Arm) -> tuple[int, ...]:
        """The seeds of an arm's runs."""
        own = arm.seeds or tuple(self.sweep.seeds)
        if not self._seeds:
            return own
        # One that needs a single run keeps it, whatever the seeds of the others are.
        return self._seeds[: len(own)] if arm.seeds else self._seeds

    def warm_start(self) -> Run | None:
        """The run that all others start from; None where there is none."""
        if not self.sweep.warm_start:
            return None
        changes = {**dict(self.sweep.warm_start_changes), **self._for_all(data_only=True)}
        folder = f"{self.workdir}/{WARM_START}"
        return Run(WARM_START, "", WARM_START, folder, self.sweep.warm_start, changes)

    def tuning(self, arm: configuration.Arm) -> list[Run]:
        """The tries of an arm; the final split is not looked at."""
        field, values = self._tune(arm)
        if not values:
            return []
        withheld = expected(self.runs(arm)[0]).eval.final_split
        runs = []
        for value in values:
            name = f"{TUNING}/{arm.name}/{_folder_name(value, values)}"
            last = {"seed": self.sweep.tune_seed, "eval.final_split": "", field: value}
            run = self._run(name, arm, TUNING, last, tried=value)
            runs.append(dataclasses.replace(run, withheld=withheld))
        return runs

    def runs(self, arm: configuration.Arm, chosen: Any = None) -> list[Run]:
        """The runs of an arm, one a seed.

        Args:
            arm: of the list.
            chosen: the value that tuning chose; None where nothing is tuned.
        """
        field, values = self._tune(arm)
        tuned = {field: chosen} if values and chosen is not None else {}
        runs = [
            self._run(f"{arm.name}/{seed}", arm, "run", {"seed": seed, **tuned})
            for seed in self.seeds(arm)
        ]
        complete = bool(tuned) or not values
        return [dataclasses.replace(run, complete=complete) for run in runs]

    def _run(
        self, name: str, arm: configuration.Arm, kind: str, last: dict[str, Any], tried: Any = None
    ) -> Run:
        own = methods.fields_of(arm.method)  # what makes it that method; only the arm changes it
        shared = {**dict(self.sweep.changes), **self._for_all()}
        changes = {field: value for field, value in shared.items() if field not in own}
        changes |= dict(arm.changes)
        if self.sweep.warm_start:
            changes["model.init_from"] = f"{self.workdir}/{WARM_START}"
        changes |= {**last, "label": arm.name}
        experiment = f"{arm.base or self.sweep.base}:{arm.method}"
        run = Run(name, arm.name, kind, f"{self.workdir}/{name}", experiment, changes, tried)
        # A method's field that follows another has to follow what was changed here, too.
        config, follows = expected(run), {}
        for field, value in own.items():
            if isinstance(value, methods.Like) and field not in changes:
                now = configuration.get_field(config, value.field)
                if configuration.get_field(config, field) != now:
                    follows[field] = now
        return dataclasses.replace(run, changes={**changes, **follows}) if follows else run

    def _for_all(self, *, data_only: bool = False) -> dict[str, Any]:
        """What the command line sets; of it, what a warm start shares."""
        shared = ("data.", "model.preset", "model.init_from", "model.tokenizer")
        return {
            field: value
            for field, value in self._changes.items()
            if not data_only or field.startswith(shared)
        }

    def _tune(self, arm: configuration.Arm) -> tuple[str, tuple[Any, ...]]:
        """The field that is chosen for an arm, and its values; () where there is no choice."""
        if arm.tune:
            field, values = arm.tune
            return field, tuple(values)
        if arm.method == "zero_shot":
            return self.sweep.tune_field, ()
        return self.sweep.tune_field, tuple(self.sweep.tune_values)

    def tune_field(self, arm: configuration.Arm) -> str:
        """The field that is chosen for an arm; "" where nothing is."""
        field, values = self._tune(arm)
        return field if values else ""


def expected(run: Run) -> Any:
    """The configuration that a run is to be trained with; shared, so not to be changed.

    Raises:
        ValueError: one line; the experiment file or a change cannot be read.
    """
    arguments = [argument for argument in run.arguments if not argument.startswith("--workdir")]
    fields = configuration.default_config()
    for field in run.changes:
        configuration.get_field(fields, field)  # ml_collections would not tell its full name
    try:
        config = _parsed(tuple(arguments))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{run.name}: {' '.join(str(error).split())}") from error
    # An arm may be a setting, which no method's name tells.
    assert not run.arm or config.label == run.arm
    return config


@functools.cache
def _parsed(arguments: tuple[str, ...]) -> Any:
    return jobs.parse(arguments, "train", lambda values: None).config


def _is_folder_name(name: str) -> bool:
    return name.replace("-", "_").isidentifier() and name not in (WARM_START, TUNING, "data")


def _folder_name(value: Any, values: Sequence[Any]) -> str:
    """A number as it is written; anything else by its place in the list."""
    if isinstance(value, int | float | str) and "/" not in str(value):
        return str(value)
    return str(list(values).index(value))


def _written(value: Any) -> str:
    """A value as ml_collections reads it back from a command line."""
    return value if isinstance(value, str) else repr(value)


def every(plan: Plan, chosen: Mapping[str, Any]) -> Iterator[Run]:
    """All runs in the order in which they are started: warm start, tuning, runs by seed.

    Args:
        plan: of the sweep.
        chosen: arm -> value, of the arms that have been tuned.
    """
    warm = plan.warm_start()
    if warm is not None:
        yield warm
    for arm in plan.arms:
        yield from plan.tuning(arm)
    # By seed, so that a sweep that is stopped half way has compared all arms.
    by_arm = [plan.runs(arm, chosen.get(arm.name)) for arm in plan.arms]
    for place in range(max(map(len, by_arm))):
        for runs in by_arm:
            yield from runs[place : place + 1]
