# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc curriculum --config=F --ious=FILE [--json]`: replays a schedule over logged IoUs.

FILE has one JSON object a line, `{"ious": [[...G], ...B]}`, with or without a "step" of its own;
other members, such as those of a run's rollouts.jsonl, are left alone. Each counts as one step.
"""

import collections
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from medloc_jax import curriculum
from medloc_jax.curriculum import criterion, schedule, window

USAGE = "medloc curriculum --config=configs/demo.py --ious=FILE [--json] [--config.NAME=VALUE ...]"


def main(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
        argv: what follows `medloc curriculum`.

    Returns:
        The exit code.

    Raises:
        ValueError: a wrong command line, config or IoU file; one line with the cure.
    """
    values = _parse(argv)
    config = values.config
    options = config.curriculum
    rewards = curriculum.make_schedule(options.schedule, num_steps=config.num_steps, **options)
    steps = _read_steps(Path(values.ious))

    events = []
    if not values.json:
        print(_HEADER)
    for count, (label, ious) in enumerate(steps, start=1):
        event = rewards.update(ious)
        events.append(event)
        step = count if label is None else label
        if values.json:
            print(_json_line(step, event))
        else:
            print(_row(step, event, options.window, options.threshold_target))
    if not values.json:
        print(_summary(events))
    return 0


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    """Reads the flags; --config and --ious must be there, and nothing may be left over."""
    command = ["medloc curriculum", *argv]
    values = flags.FlagValues()
    flags.DEFINE_string("ious", None, "JSONL of {'ious': [[...G], ...B]}", flag_values=values)
    flags.DEFINE_boolean("json", False, "print JSON lines, not a table", flag_values=values)
    try:
        # `sys_argv` too: overrides are looked for there, not among the flags that are parsed.
        config_flags.DEFINE_config_file(
            "config", None, "a file of configs/", flag_values=values, sys_argv=command
        )
        rest = values(command)[1:]
        # A config that could not be loaded says so when it is first looked at.
        loaded = values.config is not None and values.config.curriculum is not None
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        # A misspelt option is an AttributeError around a KeyError, whose text is a repr.
        inner = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
        reason = " ".join(str(inner.args[0] if len(inner.args) == 1 else inner).split())
        raise ValueError(f"{reason}; the command is `{USAGE}`") from error
    if rest:
        raise ValueError(f"{rest[0]!r} is not understood; the command is `{USAGE}`")
    for name, given in (("config", loaded), ("ious", values.ious)):
        if not given:
            raise ValueError(f"--{name}=FILE is missing; the command is `{USAGE}`")
    return values


def _read_steps(path: Path) -> list[tuple[int | None, Any]]:
    """Reads (step or None, IoUs) of every line; all are checked before any is used."""
    try:
        # Not splitlines(): JSON strings may hold other characters that it takes for line ends.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read --ious={path}: {error}") from error
    if lines == [""]:
        raise ValueError(f'{path} is empty: need one {{"ious": [[...], ...]}} a line')
    steps = []
    for number, line in enumerate(lines, start=1):
        try:
            step, ious = _read_step(line)
            last = steps[-1][0] if steps else None
            if step is not None and last is not None and step != last + 1:
                raise ValueError(
                    f"step {step} follows step {last}, and a schedule sees every step: log the run "
                    "with log.rollouts_every=1"
                )
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        steps.append((step, ious))
    return steps


def _read_step(line: str) -> tuple[int | None, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}): mend or delete the line") from error
    if not isinstance(record, dict) or "ious" not in record:
        raise ValueError('need an object with "ious": [[...G], ...B]')
    step = record.get("step")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int)):
        raise ValueError(f'"step" is {step!r}: need a whole number, or none')
    return step, window.checked_ious(record["ious"])


def _json_line(step: int, event: schedule.Event) -> str:
    return json.dumps(
        {
            "step": step,
            "threshold": event.threshold,
            "tightened": event.tightened,
            "blocked_by": list(event.blocked_by),
        }
    )


_HEADER = f"{'step':>6} {'threshold':>9} {'hit rate':>8} {'std':>6} {'margin':>7}  what happened"


def _row(step: int, event: schedule.Event, window_size: int, target: float) -> str:
    cells = f"{'-':>8} {'-':>6} {'-':>7}"
    if event.statistics is not None:
        seen = event.statistics
        cells = f"{seen.reward_mean:8.3f} {seen.reward_std:6.3f} {seen.iou_margin:+7.3f}"
    note = ""
    if event.tightened:
        note = f"tightened to {event.next_threshold:g}"
    elif event.blocked_by:
        note = "blocked by " + ", ".join(event.blocked_by)
    elif event.statistics is not None and not event.tested:
        reached = event.threshold >= target
        note = "at the target" if reached else f"window {event.window_fill}/{window_size}"
    return f"{step:>6} {event.threshold:9.4g} {cells}  {note}".rstrip()


def _summary(events: Sequence[schedule.Event]) -> str:
    updates = sum(event.tightened for event in events)
    text = (
        f"threshold {events[0].threshold:g} -> {events[-1].next_threshold:g} in "
        f"{len(events)} steps, tightened {updates} times"
    )
    tests = sum(event.tested for event in events)
    if not tests:
        return text
    blocked = collections.Counter(name for event in events for name in event.blocked_by)
    by_name = ", ".join(f"{name} {blocked[name]}" for name in criterion.CRITERIA)
    text += f"; of {tests} tests, blocked by: {by_name}"
    if not any(event.stability_alive for event in events):
        text += "\nthe stability check could not bind: entries hold too many prompts, or it is off"
    return text
