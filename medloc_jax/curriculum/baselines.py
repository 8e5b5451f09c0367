# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Schedules whose threshold depends on nothing but progress: the paper's baselines.

References: `fixed` is VLM-R1 as the paper compares with it, before its reward became continuous;
`raw_iou` is VLM-R1 since; `v_triune` is V-Triune (arXiv 2505.18129), Section 3.4 and Eq. 5.
Departures: `fixed` counts `>=` as a hit; `v_triune` has V-Triune's borders, but thresholds that a
weak model can reach, as the MedLoc-R1 paper says it tuned them; V-Triune's own are
`STAGES["v_triune_original"]`. Never report the one as the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from medloc_jax.curriculum import criterion
from medloc_jax.curriculum.schedule import Event, Options, check_state, plain
from medloc_jax.curriculum.step_size import TOLERANCE
from medloc_jax.curriculum.window import checked_ious

# name for `curriculum.stages` -> ((share of the steps up to which, inclusive, IoU), ...)
STAGES = {
    "v_triune": ((0.10, 0.3), (0.25, 0.5), (1.0, 0.7)),
    "v_triune_original": ((0.10, 0.85), (0.25, 0.95), (1.0, 0.99)),
}


class Staged:
    """A threshold by share of the planned steps; with a single stage, a constant one.

    Attributes:
        reward_shape: what a completion earns, for `rewards.combine` (static).
        rivals: not used by these schedules.
        step: updates made so far.
    """

    rivals = 1.0

    def __init__(
        self,
        name: str,
        stages: Sequence[Any],
        reward_shape: str,
        num_steps: int | None = None,
    ) -> None:
        """Starts in the first stage.

        Args:
            name: of the schedule, for the saved state and messages.
            stages: (share of the steps up to which, inclusive, IoU), rising.
            reward_shape: "hit", "raw_iou" or "iou_if_hit".
            num_steps: planned length of the run; needed if there are several stages.

        Raises:
            ValueError: the stages are not sorted or complete, or `num_steps` is missing.
        """
        self.stages = check_stages(stages)
        if len(self.stages) > 1 and (num_steps is None or num_steps < 1):
            raise ValueError(
                f"the {name} schedule goes by progress: num_steps must be 1 or more, not "
                f"{num_steps}"
            )
        self.name = name
        self.reward_shape = reward_shape
        self.num_steps = num_steps if len(self.stages) > 1 else None
        self.step = 0

    @property
    def threshold(self) -> float:
        """IoU in force at the step that is to come, the 1-based `step + 1` of `num_steps`."""
        share = 0.0 if self.num_steps is None else (self.step + 1) / self.num_steps
        return stage_threshold(share, self.stages)

    def thresholds(self, example_ids: Sequence[str]) -> Float32[np.ndarray, " B"]:
        """Returns the threshold of each example: the same for all."""
        return np.full(len(example_ids), self.threshold, dtype=np.float32)

    def update(self, ious: npt.ArrayLike, example_ids: Sequence[str] | None = None) -> Event:
        """Counts the step; the IoUs [B, G] are checked as every schedule's, and otherwise unused.

        Raises:
            ValueError: the IoUs are not [B, G] finite numbers within 0..1.
        """
        checked_ious(ious)
        threshold = self.threshold
        self.step += 1
        return Event(
            step=self.step,
            threshold=threshold,
            next_threshold=self.threshold,
            tightened=self.threshold > threshold,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs, as plain JSON values that restore it exactly."""
        return {"schedule": self.name, "options": self._own_options(), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state of the same schedule with the same options and length.

        Raises:
            ValueError: it is of another schedule, of other options, or incomplete.
        """
        check_state(state, self.name, self._own_options(), ())
        self.step = int(state["step"])

    def _own_options(self) -> dict[str, Any]:
        return {"stages": plain(self.stages), "num_steps": self.num_steps}


def fixed(options: Options, num_steps: int | None) -> Staged:
    """A hit from `threshold_fixed` on, throughout."""
    return Staged("fixed", ((1.0, options.threshold_fixed),), "hit")


def raw_iou(options: Options, num_steps: int | None) -> Staged:
    """The IoU itself is the reward."""
    return Staged("raw_iou", ((1.0, 0.0),), "raw_iou")


def v_triune(options: Options, num_steps: int | None) -> Staged:
    """The IoU where it reaches a threshold that rises twice, at fixed shares of the run."""
    return Staged("v_triune", named_stages(options.stages), "iou_if_hit", num_steps)


def stage_threshold(share: float, stages: Sequence[Sequence[float]]) -> float:
    """Returns the threshold at a share of the run: of the first stage whose border holds it."""
    held = (threshold for border, threshold in stages if share <= border + TOLERANCE)
    return next(held, stages[-1][1])


def named_stages(stages: Sequence[Any] | str) -> Sequence[Any]:
    """Looks up `curriculum.stages` in STAGES if it is a name; other stages pass unchanged."""
    # On the command line a name arrives as a tuple of one, since the option's default is a tuple.
    name = stages[0] if not isinstance(stages, str) and len(stages) == 1 else stages
    if not isinstance(name, str):
        return stages
    if name not in STAGES:
        raise ValueError(
            f"curriculum.stages: {name!r} is neither a tuple nor one of {', '.join(STAGES)}"
        )
    return STAGES[name]


def check_stages(stages: Sequence[Any]) -> tuple[tuple[float, float], ...]:
    """Returns stages as floats.

    Raises:
        ValueError: they are not pairs of numbers, sorted, with rising thresholds, reaching 1.
    """
    rows = []
    for row in stages:
        if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != 2:
            raise ValueError(f"curriculum.stages: {row!r} is not (share of steps, IoU)")
        if not all(criterion.is_number(value) for value in row):
            raise ValueError(f"curriculum.stages: {row!r} does not hold two finite numbers")
        border, threshold = (float(value) for value in row)
        if not (border > 0 and 0 <= threshold <= 1):
            raise ValueError(f"curriculum.stages: {row!r} needs a share above 0 and an IoU in 0..1")
        if rows and (border <= rows[-1][0] or threshold < rows[-1][1]):
            raise ValueError(
                f"curriculum.stages: {row!r} after {rows[-1]!r}; shares must rise, thresholds must "
                "not fall"
            )
        rows.append((border, threshold))
    if not rows or rows[-1][0] < 1:
        raise ValueError("curriculum.stages must reach the end of the run: last share 1.0")
    return tuple(rows)
