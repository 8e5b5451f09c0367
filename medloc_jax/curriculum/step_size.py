# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step sizes: how far the threshold moves when the criterion holds.

Reference: MedLoc-R1 (arXiv 2603.28120), Eq. 10 (update), 11 (piecewise), 12 (linear), 13 (cosine).
Departures: the result is rounded to 1e-6, so that 0.3 + 0.15 is 0.45 and not 0.44999999999999996;
the target is taken when it is within 1e-6; linear and cosine steps shrink with the gap and never
close it, so `snap_eps` may (it is off by default).
"""

import dataclasses
import math

ROUNDING = 6  # decimals of a threshold
TOLERANCE = 1e-9  # in comparisons with the thresholds and bounds of a config


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """The knobs of the step sizes, named and explained in `medloc_jax/config.py`."""

    threshold_start: float
    threshold_target: float
    step_sizes: tuple[float, ...]
    boundaries: tuple[float, ...]
    step_size_start: float
    snap_eps: float


def piecewise(threshold: float, options: StepOptions) -> float:
    """Returns the step of the stage that the threshold is in (Eq. 11)."""
    stage = sum(threshold >= boundary - TOLERANCE for boundary in options.boundaries)
    return options.step_sizes[stage]


def linear(threshold: float, options: StepOptions) -> float:
    """Returns a step that shrinks in proportion to the way left (Eq. 12)."""
    return options.step_size_start * (1 - progress(threshold, options))


def cosine(threshold: float, options: StepOptions) -> float:
    """Returns a step that shrinks as half a cosine wave over the way (Eq. 13)."""
    return options.step_size_start * (1 + math.cos(math.pi * progress(threshold, options))) / 2


def constant(threshold: float, options: StepOptions) -> float:
    """Returns the same step everywhere (Tables 3 and 4)."""
    return options.step_size_start


STEP_SIZES = {"piecewise": piecewise, "linear": linear, "cosine": cosine, "constant": constant}
SHRINKING = ("linear", "cosine")  # those that `snap_eps` is for


def progress(threshold: float, options: StepOptions) -> float:
    """Returns the share of the way from start to target, 0..1."""
    way = options.threshold_target - options.threshold_start
    return (threshold - options.threshold_start) / way


def next_threshold(threshold: float, name: str, options: StepOptions) -> float:
    """Returns the threshold after one update (Eq. 10): never lower, never above the target.

    Args:
        threshold: IoU in force, below the target.
        name: an entry of STEP_SIZES.
        options: the knobs.
    """
    target = options.threshold_target
    moved = round(threshold + STEP_SIZES[name](threshold, options), ROUNDING)
    near = max(10**-ROUNDING + TOLERANCE, options.snap_eps if name in SHRINKING else 0.0)
    if target - moved < near:
        return target
    # A target or start with more decimals than are kept must not turn rounding into a fall.
    return max(moved, threshold)
