# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Is there anything to learn from? What the IoUs of sampled groups say before GRPO is started.

A group teaches only where its completions earn different rewards. With p the share of a group's
completions that reach a threshold, its rewards have the variance p(1 - p): nothing where all hit or
all miss. The mean of p(1 - p) over the groups is the *signal* here. The variance of the reward over
all completions is that and what lies between the groups, of which the policy learns nothing.

The rule of the recommendation, in order:

1. **SFT first** where GRPO would have next to nothing to compare: fewer than half of the
   completions have a box, or fewer than half of the groups have two different IoUs, or no threshold
   divides a tenth of the groups while the mean IoU is below 0.1. But where fewer than half of the
   groups have two different IoUs and the mean IoU is 0.7 or more, the policy has converged or is
   sampled too cold, and no schedule is recommended.
2. **tau0** is the largest of 0.10, 0.15, ... 0.90 whose signal is at least 0.8 of the largest: of
   thresholds that teach about the same, the strictest leaves the shortest way to go.
3. **margin** is the mean IoU's surplus over the threshold at the moment when the hit rate reaches
   the P of a regime, as the IoUs are spread now: the mean less their (1 - P) quantile. A larger
   margin would hold the threshold back after the hit rate has agreed. Of the regimes between tau0
   and the target the least surplus counts, rounded down, between 0 and the configured margin.
4. **schedule**. Divided by the group's deviation, any difference counts in full: raw_iou where at
   least 0.9 of the groups have two different IoUs and that is at least 0.1 more groups than tau0
   divides. Not divided (`rl.advantage_std=none`), the size of the difference counts: raw_iou where
   the variance of the IoU within groups is above the signal at tau0. Else medloc from tau0; fixed
   at tau0, where that has reached the target, from which there is no curriculum.

The numbers in the rule are ours: they agree with the runs of this repository, all of small models.
They look at the start and not at what a schedule does later.

Reference: MedLoc-R1 (arXiv 2603.28120), section 3.1.2, which argues from sparse rewards.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from medloc_jax.curriculum import criterion, window
from medloc_jax.evaluation import sampled_groups

THRESHOLDS = tuple(round(0.1 * k, 1) for k in range(1, 10))
_STARTS = tuple(round(0.05 * k, 2) for k in range(2, 19))  # what tau0 is chosen of
SIZES = ("small", "middle", "large")
_PAPER_START = 0.3

# Of the rule above.
_LEAST_VALID, _LEAST_SPREAD, _LEAST_DIVIDED, _LEAST_IOU = 0.5, 0.5, 0.1, 0.1
_HIGH_IOU = 0.7  # of answers that are alike because they are good
_NEAR_BEST = 0.8
_RAW_SPREAD, _RAW_GAIN = 0.9, 0.1
_FEW_GROUPS = 100
# From here on "nearly no signal" is said of the paper's threshold.
_NO_SIGNAL = 2 / 3


def measure(groups: sampled_groups.Groups) -> dict[str, Any]:
    """What the groups amount to, as JSON.

    Returns:
        `num_groups`, `group_size`, `mean_iou`, `valid_rate` (None where unknown); `by_threshold`,
        one object for each of THRESHOLDS (see `at_threshold`); `raw_iou` (see `_raw`); `by_size`:
        for each third of the groups by target area `name`, `areas` [least, greatest], `area_unit`,
        `num_groups`, `by_threshold` and `raw_iou`; empty where areas are unknown or fewer than 3.
    """
    by_size = []
    if groups.areas is not None and len(groups.areas) >= len(SIZES):
        order = np.argsort(groups.areas, kind="stable")
        for name, rows in zip(SIZES, np.array_split(order, len(SIZES)), strict=True):
            extent = [float(groups.areas[rows[0]]), float(groups.areas[rows[-1]])]
            told = {"name": name, "areas": extent, "area_unit": groups.area_unit}
            by_size.append(told | {"num_groups": len(rows)} | _tables(groups.ious[rows]))
    return {
        "num_groups": groups.ious.shape[0],
        "group_size": groups.ious.shape[1],
        "mean_iou": float(groups.ious.mean()),
        "valid_rate": None if groups.valid is None else float(groups.valid.mean()),
        **_tables(groups.ious),
        "by_size": by_size,
    }


def _tables(ious: Float64[np.ndarray, "B G"]) -> dict[str, Any]:
    table = [at_threshold(ious, threshold) for threshold in THRESHOLDS]
    return {"by_threshold": table, "raw_iou": _raw(ious)}


def at_threshold(ious: Float64[np.ndarray, "B G"], threshold: float) -> dict[str, float]:
    """A reward of 1 from the threshold on.

    Returns:
        `hit_rate`; `all_hit` and `all_miss`: shares of groups; `zero_advantage_rate`, their sum;
        `reward_variance`: over all completions; `signal`: its part within groups, the mean of
        p(1 - p), which with G completions a group is expected to be (G - 1)/G of the policy's own.
    """
    rates = window.hits(ious.ravel(), threshold).reshape(ious.shape).mean(axis=1)
    all_hit, all_miss = float(np.mean(rates == 1)), float(np.mean(rates == 0))
    mean = float(rates.mean())
    return {
        "threshold": threshold,
        "hit_rate": mean,
        "all_hit": all_hit,
        "all_miss": all_miss,
        "zero_advantage_rate": all_hit + all_miss,
        "reward_variance": mean * (1 - mean),
        "signal": float(np.mean(rates * (1 - rates))),
    }


def _raw(ious: Float64[np.ndarray, "B G"]) -> dict[str, float]:
    """The IoU itself as the reward: the same measures."""
    as_rewarded = ious.astype(np.float32)  # in which the device tells equal from different
    spread = as_rewarded.max(axis=1) != as_rewarded.min(axis=1)
    return {
        "zero_advantage_rate": float(1 - spread.mean()),
        "reward_variance": float(ious.var()),
        "signal": float(ious.var(axis=1).mean()),
        "within_group_std": float(ious.std(axis=1).mean()),
    }


def recommend(
    groups: sampled_groups.Groups,
    *,
    regimes: Sequence[Sequence[float]],
    target: float,
    margin: float,
    normalised: bool = True,
) -> dict[str, Any]:
    """Applies the rule of the module's docstring.

    Args:
        groups: sampled at the training temperature.
        regimes: as `curriculum.regimes`.
        target: as `curriculum.threshold_target`.
        margin: as `curriculum.margin`.
        normalised: whether advantages are divided by their group's deviation.

    Returns:
        `schedule` ("sft_first", "no_differences", "raw_iou", "medloc" or "fixed");
        `threshold_start`, `margin` (None with the first two); `threshold_target`, as given;
        `surplus`: by regime, of the IoUs as they are; `reasons`, and `warnings`: sentences.
    """
    raw = _raw(groups.ious)
    starts = [at_threshold(groups.ious, threshold) for threshold in _STARTS]
    most = max(one["signal"] for one in starts)
    start = [one for one in starts if one["signal"] >= _NEAR_BEST * most][-1]
    instead, why = _too_late(groups, raw) or _too_early(groups, raw, starts)
    warnings = ([] if why else _of_the_paper(groups, start)) + _of_the_count(groups)
    if why:
        return {
            **dict.fromkeys(("threshold_start", "margin")),
            **{"schedule": instead, "threshold_target": target, "surplus": []},
            **{"reasons": [why], "warnings": warnings},
        }
    surplus = _surplus(groups.ious, regimes, start["threshold"], target)
    least = min((one["surplus"] for one in surplus), default=margin)
    fitting = min(margin, max(0.0, math.floor(100 * least + 1e-9) / 100))
    schedule, reason = _schedule(start, raw, target, normalised=normalised)
    return {
        "schedule": schedule,
        "threshold_start": start["threshold"],
        "threshold_target": target,
        "margin": fitting,
        "surplus": surplus,
        "reasons": [
            reason,
            f"threshold {start['threshold']:.2f} is the strictest with at least "
            f"{_NEAR_BEST:.0%} of the largest signal: {start['signal']:.3f} of {most:.3f}",
        ],
        "warnings": warnings,
    }


def _too_late(groups: sampled_groups.Groups, raw: Mapping[str, float]) -> tuple[str, str] | None:
    """What to say of answers that are alike because they are good; None of others."""
    spread, mean = 1 - raw["zero_advantage_rate"], float(groups.ious.mean())
    if spread >= _LEAST_SPREAD or mean < _HIGH_IOU:
        return None
    return "no_differences", (
        f"only {spread:.0%} of the groups have two different IoUs, and the mean IoU is {mean:.2f}: "
        "the policy has converged, or is sampled too cold (rl.temperature)"
    )


def _too_early(
    groups: sampled_groups.Groups, raw: Mapping[str, float], starts: Sequence[Mapping[str, float]]
) -> tuple[str, str]:
    """("sft_first", why), or ("", "") where SFT need not come first."""
    why = _why_sft(groups, raw, starts)
    return ("sft_first" if why else "", why)


def _why_sft(
    groups: sampled_groups.Groups, raw: Mapping[str, float], starts: Sequence[Mapping[str, float]]
) -> str:
    """Why SFT should come first; "" where it need not."""
    valid = None if groups.valid is None else float(groups.valid.mean())
    divided = 1 - min(one["zero_advantage_rate"] for one in starts)
    spread, mean = 1 - raw["zero_advantage_rate"], float(groups.ious.mean())
    if valid is not None and valid < _LEAST_VALID:
        return f"only {valid:.0%} of the completions have a box: teach the form of the answer"
    if spread < _LEAST_SPREAD:
        return f"only {spread:.0%} of the groups have two different IoUs: no reward tells them"
    if divided < _LEAST_DIVIDED and mean < _LEAST_IOU:
        return (
            f"the best threshold divides {divided:.0%} of the groups, and the mean IoU is "
            f"{mean:.2f}: boxes are not near the target yet"
        )
    return ""


def _of_the_paper(groups: sampled_groups.Groups, start: Mapping[str, float]) -> list[str]:
    """A warning where the paper's tau0 would waste most groups, and tau0 fewer."""
    paper = at_threshold(groups.ious, _PAPER_START)
    if paper["zero_advantage_rate"] < _NO_SIGNAL:
        return []
    side = "hit it already" if paper["all_hit"] > paper["all_miss"] else "miss it altogether"
    return [
        f"the paper's tau0 = {_PAPER_START} has nearly no signal here: "
        f"{paper['zero_advantage_rate']:.0%} of the groups have no advantage (most {side}); "
        f"at {start['threshold']:.2f} it is {start['zero_advantage_rate']:.0%}"
    ]


def _of_the_count(groups: sampled_groups.Groups) -> list[str]:
    """A warning where there are too few groups to tell shares apart."""
    count = len(groups.ious)
    if count >= _FEW_GROUPS:
        return []
    return [f"only {count} groups: a share of 50% is known to +-{1.96 * 0.5 / count**0.5:.0%}"]


def _surplus(
    ious: Float64[np.ndarray, "B G"],
    regimes: Sequence[Sequence[float]],
    start: float,
    target: float,
) -> list[dict[str, float]]:
    """Mean IoU less the threshold that the share P reaches, for the regimes on the way."""
    rows, lower = [], 0.0
    for regime in criterion.make_regimes(regimes, target):
        if regime.upper > start and lower < target:
            reached = float(np.quantile(ious, 1 - regime.min_reward))
            surplus = float(ious.mean()) - reached
            told = {"below": regime.upper, "min_hit_rate": regime.min_reward}
            rows.append(told | {"surplus": surplus})
        lower = regime.upper
    return rows


def _schedule(
    start: Mapping[str, float], raw: Mapping[str, float], target: float, *, normalised: bool
) -> tuple[str, str]:
    """The schedule, and why."""
    spread, divided = 1 - raw["zero_advantage_rate"], 1 - start["zero_advantage_rate"]
    told = (
        f"{spread:.0%} of the groups have two different IoUs, and threshold "
        f"{start['threshold']:.2f} divides {divided:.0%}"
    )
    if normalised and spread >= _RAW_SPREAD and spread >= divided + _RAW_GAIN:
        return "raw_iou", f"{told}: a binary reward would leave groups unused"
    if not normalised:
        told = (
            f"advantages are not divided by their deviation; IoUs vary by {raw['signal']:.3f} "
            f"within groups, and the reward at tau0 by {start['signal']:.3f}"
        )
        if raw["signal"] > start["signal"]:
            return "raw_iou", told
    if start["threshold"] >= target:
        return "fixed", f"{told}; tau0 has reached the target of {target:g} already"
    return "medloc", told
