# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""MedLoc-R1's reward schedule: tighten the threshold whenever the window passes the criterion.

Reference: MedLoc-R1 (arXiv 2603.28120), Section 3.2 (Eq. 6 to 13) and Appendix B.
Departures, beyond those listed in `window`, `criterion` and `step_size`:
* The criterion is tested on a full window only (`min_fill`): one entry has no spread to speak of.
* An entry holds all prompts of an optimizer step on all hosts; the paper's formulas have one image
  an entry, which is `window_unit = "prompt"` (then, too, at most one update an optimizer step).
* Linear and cosine steps use Appendix B's regimes; the paper gives them none of their own.

A schedule lives on the host, in float64: `threshold` is what to reward with; `update` takes the
IoUs that were rewarded, and may raise it. Steps are counted from 1.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from medloc_jax.curriculum import criterion
from medloc_jax.curriculum.step_size import STEP_SIZES, StepOptions, next_threshold
from medloc_jax.curriculum.window import Statistics, Window, checked_ious

WINDOW_UNITS = ("step", "prompt")
WINDOW_REWARDS = ("recompute", "as_rewarded")

# Table 3's strategies, as differences from the defaults: one step and one regime throughout. The
# appendix calls a largest std of 0.40 "a small stability margin", though it is the loosest here.
FIXED_STRATEGIES = {
    "conservative": {
        "step_size": "constant",
        "step_size_start": 0.05,
        "regimes": ((1.01, 0.80, 0.15),),
    },
    "moderate": {
        "step_size": "constant",
        "step_size_start": 0.10,
        "regimes": ((1.01, 0.70, 0.25),),
    },
    "aggressive": {
        "step_size": "constant",
        "step_size_start": 0.15,
        "regimes": ((1.01, 0.60, 0.40),),
    },
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The knobs of `config.curriculum`, explained in `medloc_jax/config.py`, with its defaults.

    They are declared again because this package knows nothing of configs; a test compares the two.
    """

    threshold_start: float = 0.3
    threshold_target: float = 0.8
    threshold_fixed: float = 0.5
    step_size: str = "piecewise"
    step_sizes: tuple[float, ...] = (0.15, 0.10, 0.05)
    boundaries: tuple[float, ...] = (0.55, 0.75)
    step_size_start: float = 0.2
    snap_eps: float = 0.0
    window: int = 30
    window_unit: str = "step"
    window_rewards: str = "recompute"
    min_fill: int = 0
    refresh_fraction: float = 0.5
    margin: float = 0.10
    criteria: tuple[str, ...] = ("reward", "margin", "stability")
    regimes: tuple[Any, ...] = (  # looked at by `criterion.make_regimes`
        (0.60, 0.80, 0.20),
        (0.75, 0.75, 0.35),
        (1.01, 0.55, 0.40),
    )
    # looked at by `baselines.check_stages`
    stages: tuple[Any, ...] | str = ((0.10, 0.3), (0.25, 0.5), (1.0, 0.7))
    rivals_start: float = 1.0
    rivals_end: float = 6.0


@dataclasses.dataclass(frozen=True)
class Event:
    """What one `update` saw and did.

    Attributes:
        step: 1-based.
        threshold: in force at that step.
        next_threshold: in force from the next step on.
        tightened: the second is higher than the first.
        blocked_by: the criteria that did not hold, if they were tested.
        tested: whether they were: the window was full enough, and the target not reached.
        window_fill: entries in the window; 0 for a schedule without one.
        statistics: of that window, before it was refreshed; None without one.
        stability_alive: whether the stability check could bind at all; None without a window.
    """

    step: int
    threshold: float
    next_threshold: float
    tightened: bool
    blocked_by: tuple[str, ...] = ()
    tested: bool = False
    window_fill: int = 0
    statistics: Statistics | None = None
    stability_alive: bool | None = None

    def metrics(self) -> dict[str, float]:
        """Returns the `curriculum/*` metrics of the step; window metrics only if it has one."""
        named = {
            "curriculum/threshold": self.threshold,
            "curriculum/tightened": float(self.tightened),
        }
        if self.statistics is not None:
            named["curriculum/window_reward_mean"] = self.statistics.reward_mean
            named["curriculum/window_reward_std"] = self.statistics.reward_std
            named["curriculum/window_iou_margin"] = self.statistics.iou_margin
            named["curriculum/stability_alive"] = float(bool(self.stability_alive))
            for name in criterion.CRITERIA:
                named[f"curriculum/blocked_by_{name}"] = float(name in self.blocked_by)
        return named


class MedLoc:
    """The curriculum of MedLoc-R1.

    Attributes:
        reward_shape: what a completion earns, for `rewards.combine` (static).
        rivals: not used by this schedule.
        threshold: IoU in force now.
        step: updates made so far.
        history: (step, threshold from the next step on) of every tightening.
    """

    reward_shape = "hit"
    rivals = 1.0

    def __init__(self, options: Options) -> None:
        """Starts at `threshold_start` with an empty window.

        Raises:
            ValueError: an option is out of range, or two contradict each other.
        """
        _check(options)
        self.options = options
        self.regimes = criterion.make_regimes(options.regimes, options.threshold_target)
        self.threshold = float(options.threshold_start)
        self.step = 0
        self.history: list[tuple[int, float]] = []
        self.window = Window(options.window)

    def thresholds(self, example_ids: Sequence[str]) -> Float32[np.ndarray, " B"]:
        """Returns the threshold of each example: the same for all."""
        return np.full(len(example_ids), self.threshold, dtype=np.float32)

    def update(self, ious: npt.ArrayLike, example_ids: Sequence[str] | None = None) -> Event:
        """Takes in one step's IoUs and tightens the threshold if the criterion holds.

        Args:
            ious: [B, G] in 0..1, of all hosts, in one fixed order; no answer counts as 0.
            example_ids: of the B prompts; not used by this schedule.

        Returns:
            What happened.

        Raises:
            ValueError: the IoUs are not [B, G] finite numbers within 0..1.
        """
        rows = checked_ious(ious)
        for entry in rows if self.options.window_unit == "prompt" else [rows]:
            self.window.push(entry, self.threshold)
        self.step += 1

        regime = criterion.regime_at(self.threshold, self.regimes)
        statistics = self.window.statistics(
            self.threshold, as_rewarded=self.options.window_rewards == "as_rewarded"
        )
        fill = len(self.window.entries)
        threshold, blocked = self.threshold, ()
        tested = (
            fill >= (self.options.min_fill or self.options.window)
            and threshold < self.options.threshold_target
        )
        if tested:
            blocked = criterion.blocked_by(
                statistics, regime, self.options.margin, self.options.criteria
            )
            if not blocked:
                self._tighten()
        return Event(
            step=self.step,
            threshold=threshold,
            next_threshold=self.threshold,
            tightened=self.threshold > threshold,
            blocked_by=blocked,
            tested=tested,
            window_fill=fill,
            statistics=statistics,
            stability_alive=criterion.stability_alive(
                regime,
                self.options.criteria,
                1 if self.options.window_unit == "prompt" else rows.shape[0],
                rows.shape[1],
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs, as plain JSON values that restore it exactly."""
        return {
            "schedule": "medloc",
            "options": self._own_options(),
            "step": self.step,
            "threshold": self.threshold,
            "history": [list(change) for change in self.history],
            "window": self.window.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state of the same schedule with the same options.

        Raises:
            ValueError: it is of another schedule, of other options, or incomplete.
        """
        check_state(state, "medloc", self._own_options(), ("threshold", "history", "window"))
        self.step = int(state["step"])
        self.threshold = float(state["threshold"])
        self.history = [(int(step), float(threshold)) for step, threshold in state["history"]]
        self.window.load(state["window"])

    def _tighten(self) -> None:
        options = self.options
        moved = next_threshold(self.threshold, options.step_size, _step_options(options))
        # A shrinking step may round to nothing just below the target: then nothing has changed.
        if moved > self.threshold:
            self.threshold = moved
            self.history.append((self.step, moved))
            self.window.refresh(options.refresh_fraction)

    def _own_options(self) -> dict[str, Any]:
        others = ("threshold_fixed", "stages", "rivals_start", "rivals_end")
        return plain({k: v for k, v in vars(self.options).items() if k not in others})


def plain(value: Any) -> Any:
    """Returns options as they look after a round trip through JSON: tuples become lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def check_state(
    state: Mapping[str, Any], schedule: str, options: Mapping[str, Any], keys: Sequence[str]
) -> None:
    """Checks that a saved state belongs to this schedule with these options.

    Raises:
        ValueError: it does not, or one of `keys` is missing.
    """
    if "schedule" in state and state["schedule"] != schedule:
        raise ValueError(
            f"the saved curriculum state is of schedule {state['schedule']!r}, but this run has "
            f"{schedule!r}: set curriculum.schedule back, or start in another workdir"
        )
    missing = [key for key in ("schedule", "options", "step", *keys) if key not in state]
    if missing:
        raise ValueError(f"the saved curriculum state has no {', '.join(missing)}: it is not whole")
    saved = state["options"]
    changed = [
        f"{name} was {saved.get(name)!r} and is {options.get(name)!r}"
        for name in sorted({*saved, *options})
        if saved.get(name) != options.get(name)
    ]
    if changed:
        length = saved.get("num_steps") != options.get("num_steps")
        why = f" (the {schedule} schedule goes by the share of the run)" if length else ""
        raise ValueError(
            f"the saved curriculum state has other options: {'; '.join(changed)}{why}: set them "
            "back, or start in another workdir"
        )


def _step_options(options: Options) -> StepOptions:
    names = [field.name for field in dataclasses.fields(StepOptions)]
    return StepOptions(**{name: getattr(options, name) for name in names})


def _check(options: Options) -> None:
    """Raises ValueError unless the options of MedLoc are in range and agree."""
    start, target = options.threshold_start, options.threshold_target
    _need(0 <= start <= target <= 1, "0 <= threshold_start <= threshold_target <= 1", start, target)
    for name, known in (
        ("step_size", STEP_SIZES),
        ("window_unit", WINDOW_UNITS),
        ("window_rewards", WINDOW_REWARDS),
    ):
        value = getattr(options, name)
        _need(value in known, f"{name} to be one of {', '.join(known)}", value)
    for name in options.criteria:
        _need(name in criterion.CRITERIA, f"criteria out of {', '.join(criterion.CRITERIA)}", name)
    sizes, borders = options.step_sizes, options.boundaries
    _need(
        len(sizes) == len(borders) + 1, "one more of step_sizes than of boundaries", sizes, borders
    )
    _need(list(borders) == sorted(set(borders)), "boundaries to rise", borders)
    for name, size in (
        *(("step_sizes", size) for size in sizes),
        ("step_size_start", options.step_size_start),
    ):
        _need(math.isfinite(size) and size > 0, f"{name} to be positive", size)
    _need(0 <= options.snap_eps < 1, "snap_eps within 0..1", options.snap_eps)
    _need(options.window >= 1, "window to be 1 or more", options.window)
    _need(0 <= options.min_fill <= options.window, "min_fill within 0..window", options.min_fill)
    _need(0 <= options.refresh_fraction <= 1, "refresh_fraction in 0..1", options.refresh_fraction)
    _need(math.isfinite(options.margin), "a finite margin", options.margin)


def _need(holds: bool, what: str, *values: Any) -> None:
    if not holds:
        got = ", ".join(repr(value) for value in values)
        raise ValueError(f"config.curriculum needs {what}; got {got}")
