# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Run a list of experiments: every arm once a seed, tuned and from a warm start where it says so.

    medloc sweep --config=configs/sweeps/table3.py --workdir=runs/table3 [--only=arm,arm]
        [--seeds=42,43] [--jobs=2] [--set=data.manifest=PATH] [--print] [--config.base=FILE ...]

The same command goes on where it stopped: finished runs are skipped, others continue from their
last checkpoint. --print gives one line a run instead, for a cluster. A run that fails is told, its
output is in RUN/log.txt, the others go on, and the exit code is 1.
"""

import contextlib
import fcntl
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from medloc_jax import storage
from medloc_jax.cli import job as jobs
from medloc_jax.cli import sweep_launch, sweep_process, sweep_runs, sweep_state, verb_flags

RECORD = "sweep.json"
_LOCK = ".sweep.lock"


def main(argv: Sequence[str], command: Sequence[str] = sweep_launch.COMMAND) -> int:
    """Runs the verb.

    Args:
        argv: what follows `medloc sweep`.
        command: that takes the arguments of `medloc train`.

    Returns:
        0: all runs are finished; 1: one failed; 130 and 143: stopped by Ctrl-C or SIGTERM.

    Raises:
        ValueError: a wrong command line, or a sweep that cannot be run; one line with the cure.
    """
    if verb_flags.wants_help(argv):
        print(help_text())
        return 0
    given = jobs.parse(argv, "sweep", _define)
    if storage.is_remote(given.workdir):
        raise ValueError(
            f"--workdir={given.workdir}: a sweep keeps its runs on this machine; --print gives "
            "lines whose --workdir you may change"
        )
    if given.jobs < 1:
        raise ValueError(f"--jobs={given.jobs}: give 1 or more")
    plan = sweep_runs.Plan(
        given.config,
        given.workdir,
        only=[name for name in given.only if name],
        seeds=_seeds(given.seeds),
        changes=_changes(given.set),
    )
    sweep_state.check(list(sweep_runs.every(plan, {})))
    for note in plan.kept():
        print(f"# {note}")
    if given.print:
        _print(plan)
        return 0
    workdir = Path(given.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with _alone(workdir) as lock:
        return _run(plan, argv, given.jobs, command, lock)


def help_text() -> str:
    """What --help says."""
    values = flags.FlagValues()
    what = "the sweep's file; --config.FIELD=VALUE changes what it says"
    flags.DEFINE_string("config", None, what, flag_values=values)
    _define(values)
    return f"{(__doc__ or '').strip()}\n\n{verb_flags.help_text(values)}"


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "the folder of all runs", flag_values=values)
    flags.DEFINE_list("only", [], "names of arms; default: all", flag_values=values)
    flags.DEFINE_list("seeds", [], "in place of the sweep's", flag_values=values)
    flags.DEFINE_integer("jobs", 1, "runs at a time; they share the cores", flag_values=values)
    flags.DEFINE_multi_string("set", [], "FIELD=VALUE of every run", flag_values=values)
    flags.DEFINE_bool("print", False, "one launch line a run; start nothing", flag_values=values)
    flags.mark_flags_as_required(["config", "workdir"], flag_values=values)


def _seeds(texts: Sequence[str]) -> tuple[int, ...]:
    try:
        seeds = tuple(int(text) for text in texts if text)
    except ValueError as error:
        raise ValueError(f"--seeds={','.join(texts)}: give whole numbers, as in 42,43") from error
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds={','.join(texts)}: one is there twice")
    return seeds


def _changes(texts: Sequence[str]) -> dict[str, str]:
    changes = {}
    for text in texts:
        field, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set={text}: write --set=FIELD=VALUE, as in --set=num_steps=20")
        field = field.removeprefix("config.")
        if field in changes:
            raise ValueError(f"--set={text}: {field} is set twice")
        changes[field] = value
    return changes


def _print(plan: sweep_runs.Plan) -> None:
    """One line a run, in the order in which they depend on one another."""
    chosen, untuned = {}, []
    for arm in plan.arms:
        tries = plan.tuning(arm)
        # By the tries themselves: what was once chosen may have been so from other values.
        if tries and all(map(_is_finished, tries)):
            chosen[arm.name] = sweep_state.choose(plan, arm, tries)
        elif tries:
            untuned.append(arm.name)
    kind = ""
    for run in sweep_runs.every(plan, chosen):
        if run.arm in untuned and run.kind == "run":
            continue
        if run.kind != kind:
            kind = run.kind
            print(f"# {_HEADS[kind]}")
        print(run.line)
    if untuned:
        print(
            f"# The runs of {', '.join(untuned)} need a value that the tuning lines choose: run "
            "those, copy their folders here, and run `medloc sweep` or `--print` again."
        )


def _is_finished(run: sweep_runs.Run) -> bool:
    return sweep_state.status(run, sweep_runs.expected(run)) == sweep_state.FINISHED


_HEADS = {
    sweep_runs.WARM_START: "The warm start: all others need it.",
    sweep_runs.TUNING: "Tuning: tries on val.",
    "run": "The runs.",
}


def _run(
    plan: sweep_runs.Plan, argv: Sequence[str], num_jobs: int, command: Sequence[str], lock: int
) -> int:
    record = Path(plan.workdir) / RECORD
    noted = _noted(record)
    commit = sweep_process.commit()
    launcher = sweep_launch.Launcher(
        plan,
        num_jobs=num_jobs,
        command=command,
        say=lambda text: print(text, flush=True),
        save=lambda now: sweep_state.write_json(record, _account(now, argv, commit, noted)),
        pass_fds=(lock,),
        commit=commit,
        before={entry["name"]: entry for entry in noted.get("runs", ())},
    )
    again = f"medloc sweep {' '.join(argv)}"
    try:
        launcher.run()
    except sweep_launch.Stopped as stop:
        left = launcher.count(sweep_launch.WAITING)
        print(f"stopped by {stop}; {left} runs are left. To go on: {again}", flush=True)
        return 128 + stop.number
    failed = [e for e in launcher.entries.values() if e.state == sweep_launch.FAILED]
    print(f"{launcher.count(sweep_launch.FINISHED)} finished, {len(failed)} failed: {plan.workdir}")
    for entry in failed:
        print(f"  failed: {entry.name}: {entry.why}")
    if failed:
        print(f"To try those again: {again}")
    print(f"Report: {_report_line(launcher)}", flush=True)
    return 1 if failed else 0


def _report_line(launcher: sweep_launch.Launcher) -> str:
    """The command of the sweep's report; what it says of the sweep is in sweep.json, too."""
    sweep, words = launcher.plan.sweep, ["medloc", "report", launcher.plan.workdir]
    if sweep.allow:
        words.append(f"--allow={','.join(sweep.allow)}")
    done = {e.arm for e in launcher.entries.values() if e.state == sweep_launch.FINISHED}
    if sweep.reference in done:
        words.append(f"--reference={sweep.reference}")
    return shlex.join(words)


def _account(
    launcher: sweep_launch.Launcher, argv: Sequence[str], commit: str, noted: Mapping[str, Any]
) -> dict[str, Any]:
    """What sweep.json tells; runs of arms that this start does not look at stay in it.

    Of an arm that the sweep no longer has, only what is finished stays: nothing waits for the rest.
    """
    plan, sweep = launcher.plan, launcher.plan.sweep
    there = {"", *(arm.name for arm in sweep.arms)}
    others = [
        run
        for run in noted.get("runs", ())
        if run["name"] not in launcher.entries
        and (run["arm"] in there or run["state"] == sweep_launch.FINISHED)
    ]
    mine = [vars(entry) for entry in launcher.entries.values()]
    tuned = {
        arm.name: {"field": plan.tune_field(arm), "value": launcher.chosen[arm.name]}
        for arm in plan.arms
        if arm.name in launcher.chosen
    }
    arms = {
        arm.name: {
            "method": arm.method,
            "base": arm.base or sweep.base,
            "changes": dict(arm.changes),
            "seeds": list(plan.seeds(arm)),
        }
        for arm in plan.arms
    }
    kept = {name: one for name, one in noted.get("arms", {}).items() if name not in arms}
    order = [arm.name for arm in sweep.arms]
    merged = {**kept, **arms}
    names = [*order, *sorted(set(merged) - set(order))]
    return {
        "command": ["medloc", "sweep", *argv],
        "commit": commit,
        "base": sweep.base,
        "note": sweep.note,
        "allow": list(sweep.allow),
        "reference": sweep.reference,
        "seeds": list(sweep.seeds),
        "warm_start": sweep.warm_start,
        "arms": {name: merged[name] for name in names if name in merged},
        "tuned": {**noted.get("tuned", {}), **tuned},
        "runs": [*others, *mine],
    }


def _noted(record: Path) -> dict[str, Any]:
    """What an earlier start has written; empty where there was none."""
    if not record.is_file():
        return {}
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{record} is no JSON ({error}): remove it") from error


@contextlib.contextmanager
def _alone(workdir: Path) -> Iterator[int]:
    """Holds a lock on a sweep's folder; its runs inherit it, so that they are waited for.

    Raises:
        ValueError: another sweep, or a run that one left behind, is at work there.
    """
    lock = os.open(workdir / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{workdir} has another sweep at work, or a run of one: wait for it, or choose "
                "another --workdir"
            ) from error
        yield lock
    finally:
        os.close(lock)
