# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A threshold for every group, from the group itself: beat the best of k of your siblings.

This is ours, and in no paper. MedLoc-R1 rewards a hit, 1[IoU >= tau], and looks for one tau that
separates good completions from bad ones. But advantages are differences within a group, and images
differ more than the completions of one (in a run of the tiny model on HAM10000: a standard
deviation of 0.14 between the mean IoUs of groups, of 0.06 within one). So whatever tau is, it lies
beside the IoUs of many groups, which have no hits, or nothing else, and teach nothing: four in ten
of them in that run at the best tau. A threshold of the group's own separates them all.

Averaged over every tau in 0..1, hits give the IoU itself, the mean of 1[IoU >= tau]: that is why
the raw IoU has signal in all groups. Most of its thresholds lie beside a given group, but those
give all its members the same and cancel. Here the threshold is drawn where it separates, from the
group: let it be the best IoU of k siblings, drawn at random, and reward what is above it. Over all
draws (with replacement) that is

    r_i = P(all k rivals are worse) = (share of the siblings with a lower IoU) ** k.

There is signal in every group whose IoUs are not all the same, and the threshold rises with the
policy by itself, for every image at its own pace: no window, no criterion, no target. The
curriculum is k, which moves from `rivals_start` to `rivals_end` in proportion to the steps: k = 1
rewards the rank, so that all differences count; the larger k, the more goes to the few best. Any
function that rises with the IoU gives the same reward.

What it gives up: how much better, which the raw IoU tells. And since advantages are divided by the
group's spread, any reward that rises with the IoU weighs all groups alike and differs from the raw
IoU in the shape within a group alone: there is less to win over it than over a threshold for all.
Real runs won nothing over it: on both data sets of benchmarks/replica this schedule is above
MedLoc-R1's in mAP, and below the raw IoU.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from medloc_jax.curriculum.schedule import Event, Options, check_state
from medloc_jax.curriculum.window import checked_ious


class Rivals:
    """The schedule without a threshold of its own.

    Attributes:
        reward_shape: what a completion earns, for `rewards.combine` (static).
        threshold: 0: every IoU may earn.
        step: updates made so far.
    """

    reward_shape = "rivals"
    threshold = 0.0

    def __init__(self, options: Options, num_steps: int | None = None) -> None:
        """Starts at `rivals_start`.

        Args:
            options: of which `rivals_start` and `rivals_end` count.
            num_steps: planned length of the run; needed where the two differ.

        Raises:
            ValueError: a number of rivals is not above 0, or `num_steps` is missing.
        """
        self.ends = (options.rivals_start, options.rivals_end)
        for name, value in zip(("rivals_start", "rivals_end"), self.ends, strict=True):
            if not value > 0:
                raise ValueError(f"config.curriculum.{name} is {value}: it must be above 0")
        moves = self.ends[0] != self.ends[1]
        if moves and (num_steps is None or num_steps < 0):
            raise ValueError(
                "the rivals schedule goes by progress: num_steps must be 1 or more, not "
                f"{num_steps}"
            )
        self.num_steps = num_steps if moves else None
        self.step = 0

    @property
    def rivals(self) -> float:
        """How many siblings have to be beaten (k) at the step to come; it need not be whole."""
        if not self.num_steps:
            return self.ends[0]
        start, end = self.ends
        return start + (end - start) * min(self.step / self.num_steps, 1.0)

    def thresholds(self, example_ids: Sequence[str]) -> Float32[np.ndarray, " B"]:
        """Returns the threshold of each example: 0."""
        return np.zeros(len(example_ids), np.float32)

    def update(self, ious: npt.ArrayLike, example_ids: Sequence[str] | None = None) -> Event:
        """Counts the step; the IoUs [B, G] are checked as every schedule's, and otherwise unused.

        Raises:
            ValueError: the IoUs are not [B, G] finite numbers within 0..1.
        """
        checked_ious(ious)
        self.step += 1
        return Event(self.step, self.threshold, self.threshold, tightened=False)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs, as plain JSON values that restore it exactly."""
        return {"schedule": "rivals", "options": self._own_options(), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state of the same schedule with the same options and length.

        Raises:
            ValueError: it is of another schedule, of other options, or incomplete.
        """
        check_state(state, "rivals", self._own_options(), ())
        self.step = int(state["step"])

    def _own_options(self) -> dict[str, Any]:
        start, end = self.ends
        return {"rivals_start": start, "rivals_end": end, "num_steps": self.num_steps}
