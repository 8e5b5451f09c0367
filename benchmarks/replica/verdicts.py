# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rules that turn the finished runs of a sweep into a verdict on a claim, the same for everybody.

A claim holds only where both intervals of the difference are above 0 (over trainings: paired by
seed; over test examples: paired by id) and the difference is as large as the smallest effect that
counts. It does not hold where the interval over trainings excludes an effect of that size. All else
is not decided, and so is everything below MIN_PAIRS seeds. Of several parts all must hold; one that
does not is enough against, at a level corrected for their number (Bonferroni).
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from readings import Reading, accuracy, step_seconds
from scipy import stats

from medloc_jax import curriculum
from medloc_jax.evaluation import (
    comparability,
    contrasts,
    failures,
    results,
    run_folder,
    significance,
    sweep_folder,
)

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"
NO_RUN, UNTESTABLE = "no run yet", "not testable here"
MIN_PAIRS = 3  # seeds that a verdict needs
MIN_FAILURES = 20  # failed answers of a run, below which their kinds say nothing
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The finished runs of a sweep's folder on one data set."""

    folder: Path
    account: Mapping[str, Any]  # sweep.json
    data_set: str
    arms: Mapping[str, results.Experiment]
    lacking: tuple[str, ...]

    @property
    def file(self) -> str:
        """The sweep file that the runs come from, without its variant."""
        for word in self.account.get("command", ()):
            if str(word).startswith("--config="):
                return str(word).removeprefix("--config=").rpartition(":")[0] or str(word)[9:]
        return ""

    @property
    def commits(self) -> list[str]:
        """The commits that the finished runs were made at."""
        runs = [one for one in self.account["runs"] if one["state"] == "finished"]
        return sorted({str(one.get("commit") or "unknown") for one in runs})


def read(folder: Path) -> list[Sweep]:
    """Reads a sweep's folder, data set by data set; [] where no run is finished.

    Raises:
        ValueError: it is no sweep's folder, a file is broken, or the runs of an arm differ in more
            than their seed.
    """
    if not sweep_folder.is_sweep(folder):
        raise ValueError(f"{folder}: no {sweep_folder.FILE}; name the --workdir of `medloc sweep`")
    account = json.loads((folder / sweep_folder.FILE).read_text(encoding="utf-8"))
    there = sweep_folder.read(folder)
    experiments, missing = results.collect([run_folder.load(run) for run in there.finished], "test")
    sweeps = []
    for data_set in dict.fromkeys(one.data_set for one in experiments):
        arms: dict[str, results.Experiment] = {}
        for one in experiments:
            if one.data_set == data_set and one.method in arms:
                raise ValueError(
                    f"{folder}: the runs of {one.method} differ in more than their seed ({one.name}"
                    f"; {arms[one.method].name}): remove the ones that are not meant"
                )
            if one.data_set == data_set:
                arms[one.method] = one
        sweeps.append(Sweep(folder, account, data_set, arms, (*there.lacking, *missing)))
    return sweeps


# Differences.


class Part(NamedTuple):
    """One difference that a verdict hangs on."""

    against: str
    reading: str
    effect: str
    over_seeds: str
    over_examples: str
    seeds: int
    verdict: str


class Finding(NamedTuple):
    """A verdict, why, and the differences behind it."""

    verdict: str
    why: str = ""
    parts: tuple[Part, ...] = ()


def seed_interval(test: significance.TTest, level: float = LEVEL) -> tuple[float, float] | None:
    """The interval of a mean paired difference over trainings, by Student's t.

    None where the pairs cannot tell; runs that are all the same to the last digit differ by 0.
    """
    if test.t is None or test.df < 1:
        return (0.0, 0.0) if test.df >= 1 and test.effect == 0 else None
    error = test.effect / test.t if test.t else 0.0
    half = abs(error) * float(stats.t.ppf(0.5 + level / 2, test.df))
    return (test.effect - half, test.effect + half) if error else None


def _examples(
    ours: results.Experiment, theirs: results.Experiment, measure: str, seeds: Sequence[int | str]
) -> significance.Interval | None:
    x, y = contrasts.pair_examples(ours, theirs, measure, seeds)
    return significance.paired_bootstrap(x, y, seed=contrasts.BOOTSTRAP_SEED) if len(x) else None


def _bracket(interval: tuple[float, float] | None, told: Callable[[float], str]) -> str:
    return "-" if interval is None else f"[{told(interval[0])}, {told(interval[1])}]"


def _conclude(parts: Sequence[Part]) -> Finding:
    verdicts = [part.verdict for part in parts]
    against = [f"{p.against}, {p.reading}" for p in parts if p.verdict == FAILS]
    if against:
        more = f" and {len(against) - 3} more" if len(against) > 3 else ""
        return Finding(FAILS, "against: " + "; ".join(against[:3]) + more, tuple(parts))
    if verdicts and set(verdicts) == {HOLDS}:
        return Finding(HOLDS, "", tuple(parts))
    lacking = list(dict.fromkeys(part.against for part in parts if not part.seeds))
    few = [part.seeds for part in parts if part.seeds < MIN_PAIRS]
    if lacking:
        why = f"no pair of seeds against {', '.join(lacking)}"
    elif few:
        why = f"too few seeds: {min(few)}, and {MIN_PAIRS} are needed"
    else:
        why = "an interval includes 0, or effects that count and such that do not"
    return Finding(OPEN, why, tuple(parts))


# The rules.


@dataclasses.dataclass(frozen=True)
class Better:
    """One arm is better than each of others, in every reading."""

    ours: str
    rivals: tuple[str, ...]
    readings: tuple[Reading, ...]
    allow: tuple[str, ...] = ()  # kinds of `comparability` in which the arms differ by design

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that it needs."""
        return (self.ours, *self.rivals)

    def judge(self, sweep: Sweep) -> Finding:
        """The verdict from the sweep's finished runs."""
        lacking = [name for name in self.arms if name not in sweep.arms]
        if self.ours in lacking or set(self.rivals) <= set(lacking):
            return Finding(NO_RUN, f"no finished run of {', '.join(lacking)}")
        comparability.check([sweep.arms[n] for n in self.arms if n in sweep.arms], self.allow)
        level = 1 - (1 - LEVEL) / (len(self.rivals) * len(self.readings))
        parts = [
            self._part(sweep.arms[self.ours], sweep.arms[name], reading, level)
            if name in sweep.arms
            else Part(results.title(name), reading.title, "no run", "-", "-", 0, OPEN)
            for name in self.rivals
            for reading in self.readings
        ]
        return _conclude(parts)

    def _part(
        self,
        ours: results.Experiment,
        theirs: results.Experiment,
        reading: Reading,
        level: float,
    ) -> Part:
        seeds, a, b = contrasts.pair_seeds(ours, theirs, reading.of)
        test = significance.paired_t_test(a, b)
        interval, strict = seed_interval(test), seed_interval(test, level)
        examples = _examples(ours, theirs, reading.measure, seeds) if reading.measure else None
        verdict = OPEN
        if len(seeds) >= MIN_PAIRS and interval and strict:
            # A measure of answers has to hold over them, too: without predictions it cannot.
            steady_examples = not reading.measure or (examples is not None and examples.low > 0)
            if interval[0] > 0 and steady_examples and test.effect >= reading.smallest:
                verdict = HOLDS
            elif strict[1] < reading.smallest:
                verdict = FAILS
        return Part(
            theirs.name,
            reading.title,
            reading.told(test.effect) if len(seeds) else "-",
            _bracket(interval, reading.told),
            _bracket(examples and (examples.low, examples.high), reading.told),
            len(seeds),
            verdict,
        )


@dataclasses.dataclass(frozen=True)
class Close:
    """Others end within `smallest` of one arm, in every reading: 95 % intervals lie inside."""

    ours: str
    rivals: tuple[str, ...]
    readings: tuple[Reading, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that it needs."""
        return (self.ours, *self.rivals)

    def judge(self, sweep: Sweep) -> Finding:
        """The verdict from the sweep's finished runs."""
        lacking = [name for name in self.arms if name not in sweep.arms]
        if lacking:
            return Finding(NO_RUN, f"no finished run of {', '.join(lacking)}")
        comparability.check([sweep.arms[name] for name in self.arms])
        level = 1 - (1 - LEVEL) / (len(self.rivals) * len(self.readings))
        parts = []
        for name in self.rivals:
            for reading in self.readings:
                ours, theirs = sweep.arms[self.ours], sweep.arms[name]
                seeds, a, b = contrasts.pair_seeds(theirs, ours, reading.of)
                test = significance.paired_t_test(a, b)
                interval, strict = seed_interval(test), seed_interval(test, level)
                examples = _examples(theirs, ours, reading.measure, seeds)
                verdict, most = OPEN, reading.smallest
                if len(seeds) >= MIN_PAIRS and interval and strict:
                    if -most < interval[0] and interval[1] < most:
                        verdict = HOLDS
                    elif strict[0] > most or strict[1] < -most:
                        verdict = FAILS
                told = reading.told
                parts.append(
                    Part(
                        theirs.name,
                        reading.title,
                        told(test.effect) if len(seeds) else "-",
                        _bracket(interval, told),
                        _bracket(examples and (examples.low, examples.high), told),
                        len(seeds),
                        verdict,
                    )
                )
        return _conclude(parts)


@dataclasses.dataclass(frozen=True)
class Imprecise:
    """Of an arm's failed answers, more are imprecise boxes than centred off the target."""

    ours: str
    smallest: float  # by which the shares of the failures differ

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that it needs."""
        return (self.ours,)

    def judge(self, sweep: Sweep) -> Finding:
        """The verdict from the sweep's finished runs."""
        if self.ours not in sweep.arms:
            return Finding(NO_RUN, f"no finished run of {self.ours}")
        shares = []
        for final in sweep.arms[self.ours].finals:
            kinds = [one for line in final.predictions if (one := failures.kind(line))]
            imprecise = sum(one not in (failures.NO_BOX, failures.OFF_TARGET) for one in kinds)
            if len(kinds) >= MIN_FAILURES:
                shares.append((imprecise - kinds.count(failures.OFF_TARGET)) / len(kinds))
        if not shares:
            return Finding(OPEN, f"no run has {MIN_FAILURES} failed answers")
        test = significance.paired_t_test(np.asarray(shares), np.zeros(len(shares)))
        interval = seed_interval(test)
        verdict = OPEN
        if len(shares) >= MIN_PAIRS and interval:
            if interval[0] > 0 and test.effect >= self.smallest:
                verdict = HOLDS
            elif interval[1] < self.smallest:
                verdict = FAILS
        reading = accuracy("a50")  # for its way of telling points
        name = "failures: imprecise less off target"
        part = Part("itself", name, reading.told(test.effect), _bracket(interval, reading.told),
                    "-", len(shares), verdict)  # fmt: skip
        return _conclude([part])


@dataclasses.dataclass(frozen=True)
class Cheap:
    """The schedule's own time is a small share of a step: `update` is timed here, now."""

    ours: str
    limit: float  # share of a step
    updates: int = 200
    clock: Callable[[], float] = time.process_time

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that it needs."""
        return (self.ours,)

    def judge(self, sweep: Sweep) -> Finding:
        """The verdict from the sweep's finished runs."""
        if self.ours not in sweep.arms:
            return Finding(NO_RUN, f"no finished run of {self.ours}")
        shares = []
        for final in sweep.arms[self.ours].finals:
            step = step_seconds(final.run)
            if step:
                shares.append(self._update_seconds(final.run.config) / step)
        if len(shares) < MIN_PAIRS:
            return Finding(OPEN, f"too few seeds: {len(shares)}, and {MIN_PAIRS} are needed")
        below = [share < self.limit for share in shares]
        verdict = HOLDS if all(below) else OPEN if any(below) else FAILS
        # Told as a bound: the clock gives another digit every time.
        bound = next((f"{b:g}" for b in (0.1, 0.3, 1, 3, 10, 30) if 100 * max(shares) < b), "100")
        part = Part("a step", "schedule's share of it", f"under {bound} %", "-", "-",
                    len(shares), verdict)  # fmt: skip
        return Finding(verdict, "", (part,))

    def _update_seconds(self, config: Mapping[str, Any]) -> float:
        rl, options = config["rl"], dict(config["curriculum"])
        schedule = curriculum.make_schedule(
            options.pop("schedule"), num_steps=self.updates, **options
        )
        ious = np.random.default_rng(0).random((rl["prompts_per_step"], rl["group_size"]))
        began = self.clock()
        for _ in range(self.updates):
            schedule.update(ious)
        return (self.clock() - began) / self.updates


Rule = Better | Close | Imprecise | Cheap
