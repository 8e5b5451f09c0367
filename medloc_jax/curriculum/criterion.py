# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The criterion: whether the policy is good enough, by enough, and steadily enough to tighten.

Reference: MedLoc-R1 (arXiv 2603.28120), Eq. 9 and Appendix B. Departures: S bounds the standard
deviation of Eq. 7, though the text calls it a variance; the appendix's last stage, printed as
">= 0.80", starts at 0.75, which closes a gap and lets it act before the target of 0.80.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from medloc_jax.curriculum.step_size import TOLERANCE
from medloc_jax.curriculum.window import Statistics

CRITERIA = ("reward", "margin", "stability")


@dataclasses.dataclass(frozen=True)
class Regime:
    """What is asked for while the threshold is below `upper` (and not in an earlier regime).

    Attributes:
        upper: IoU, exclusive.
        min_reward: least hit rate of the window (P).
        max_std: largest standard deviation of it (S).
    """

    upper: float
    min_reward: float
    max_std: float


def make_regimes(rows: Sequence[Any], target: float) -> tuple[Regime, ...]:
    """Checks the rows of `curriculum.regimes`.

    Raises:
        ValueError: a row is not three numbers in range, the rows are not sorted, or they end
            before `target`. (Rows name upper ends only, so there can be no gap between them.)
    """
    name = "curriculum.regimes"
    if not rows:
        raise ValueError(f"{name} is empty: give at least ((1.01, min hit rate, max std),)")
    regimes = []
    for row in rows:
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != 3:
            raise ValueError(f"{name}: {row!r} is not (upper threshold, min hit rate, max std)")
        if not all(is_number(value) for value in row):
            raise ValueError(f"{name}: {row!r} does not hold three finite numbers")
        regime = Regime(*(float(value) for value in row))
        if not (0 <= regime.min_reward <= 1 and regime.max_std >= 0):
            raise ValueError(f"{name}: {row!r} needs a hit rate within 0..1 and a std of 0 or more")
        if regimes and regime.upper <= regimes[-1].upper:
            raise ValueError(
                f"{name} is not sorted: {regime.upper} comes after {regimes[-1].upper}; write the "
                "rows by rising upper threshold"
            )
        regimes.append(regime)
    if regimes[-1].upper <= target + TOLERANCE:
        raise ValueError(
            f"{name} ends at {regimes[-1].upper} and leaves thresholds up to the target {target} "
            "uncovered: let the last row reach past it, such as 1.01"
        )
    return tuple(regimes)


def regime_at(threshold: float, regimes: Sequence[Regime]) -> Regime:
    """Returns the regime of a threshold; one on a border belongs to the regime above."""
    return next(regime for regime in regimes if threshold < regime.upper - TOLERANCE)


def blocked_by(
    statistics: Statistics, regime: Regime, margin: float, criteria: Sequence[str]
) -> tuple[str, ...]:
    """Returns which of `criteria` do not hold, in the order of CRITERIA; () = tighten (Eq. 9)."""
    holds = {
        "reward": statistics.reward_mean >= regime.min_reward - TOLERANCE,
        "margin": statistics.iou_margin >= margin - TOLERANCE,
        "stability": statistics.reward_std <= regime.max_std + TOLERANCE,
    }
    return tuple(name for name in CRITERIA if name in criteria and not holds[name])


def expected_std(hit_rate: float, agreement: float, prompts: int, group_size: int) -> float:
    """Returns the std of an entry's hit rate for a policy that does not change.

    Args:
        hit_rate: p, 0..1.
        agreement: correlation of two completions of one prompt, 0..1.
        prompts: M, prompts an entry.
        group_size: G, completions a prompt.
    """
    within = agreement + (1 - agreement) / group_size
    return math.sqrt(hit_rate * (1 - hit_rate) * within / prompts)


def stability_alive(regime: Regime, criteria: Sequence[str], prompts: int, group_size: int) -> bool:
    """Tells whether the stability check could be what holds a policy that does not change.

    True if, at some hit rate that passes the reward check, completions of a prompt that agree fully
    (the worst case) scatter more than S allows. With entries of several prompts that is often
    impossible: at P = 0.8, S = 0.2 from four prompts an entry on.
    """
    least = regime.min_reward if "reward" in criteria else 0.0
    worst = expected_std(max(least, 0.5), 1.0, prompts, group_size)
    return "stability" in criteria and worst > regime.max_std + TOLERANCE


def is_number(value: object) -> bool:
    """Tells whether an option is a finite number (True and False are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
