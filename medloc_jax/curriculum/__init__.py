# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reward schedules: which IoU earns a reward now, and when that gets harder (numpy, host).

schedule = make_schedule("medloc", num_steps=1000, step_size="piecewise")
schedule.reward_shape, schedule.threshold        # what to reward with
event = schedule.update(ious)                    # [B, G] of this step, all hosts
"""

import dataclasses
from typing import Any

from medloc_jax.curriculum import baselines, criterion
from medloc_jax.curriculum.rivals import Rivals
from medloc_jax.curriculum.schedule import MedLoc, Options

Schedule = MedLoc | baselines.Staged | Rivals

SCHEDULES = {  # name -> (options, planned steps) -> schedule
    "medloc": lambda options, num_steps: MedLoc(options),
    "fixed": baselines.fixed,
    "raw_iou": baselines.raw_iou,
    "v_triune": baselines.v_triune,
    "rivals": Rivals,
}


def make_schedule(name: str, *, num_steps: int | None = None, **options: Any) -> Schedule:
    """Makes a reward schedule.

    Args:
        name: an entry of SCHEDULES.
        num_steps: planned optimizer steps; only v_triune and rivals need it.
        **options: as in `config.curriculum`, whole or in part. Those that this schedule does not
            use are accepted, so that one config serves all of them.

    Raises:
        ValueError: an unknown schedule or option, or a bad value.
    """
    if name not in SCHEDULES:
        raise ValueError(f"curriculum.schedule {name!r} is none of {', '.join(SCHEDULES)}")
    if options.pop("schedule", name) != name:
        raise ValueError(f"make_schedule({name!r}, ...) was given the options of another schedule")
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise ValueError(
            f"curriculum has no option {', '.join(unknown)}; there are {', '.join(defaults)}"
        )
    typed = {key: _typed(key, value, defaults[key]) for key, value in options.items()}
    return SCHEDULES[name](Options(**typed), num_steps)


def stability_note(schedule: Schedule, *, prompts: int, group_size: int) -> str:
    """A warning where the stability check is asked for and can never hold the threshold; else "".

    Args:
        schedule: any schedule.
        prompts: prompts of a step.
        group_size: completions of a prompt.
    """
    if not isinstance(schedule, MedLoc) or "stability" not in schedule.options.criteria:
        return ""
    entry = 1 if schedule.options.window_unit == "prompt" else prompts
    criteria = schedule.options.criteria
    if any(criterion.stability_alive(r, criteria, entry, group_size) for r in schedule.regimes):
        return ""
    return (
        f"note: with {prompts} prompts in a window entry the stability check cannot bind; "
        'curriculum.window_unit="prompt" makes it one prompt an entry'
    )


def _typed(name: str, value: Any, default: Any) -> Any:
    """Returns an option as the type of its default; raises ValueError where it is of another."""
    if isinstance(default, tuple):
        if isinstance(value, str) and name == "stages":
            return value
        if isinstance(value, list | tuple):
            if not isinstance(default[0], float):
                return tuple(tuple(item) if isinstance(item, list) else item for item in value)
            if all(criterion.is_number(item) for item in value):
                return tuple(float(item) for item in value)
    elif isinstance(default, float):
        if criterion.is_number(value):
            return float(value)
    elif isinstance(value, type(default)) and not isinstance(value, bool):
        return value
    raise ValueError(f"curriculum.{name} is {value!r}; it must be like {default!r}")
