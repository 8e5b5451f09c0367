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
   divides a tenth of the groups while the mean IoU is below 0.1.
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
   at tau0, where that has reached the target.

The numbers in the rule are ours: they agree with the runs of this repository, all of small models.
They look at the start and not at what a schedule does later.

Reference: MedLoc-R1 (arXiv 2603.28120), section 3.1.2, which argues from sparse rewards.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from medloc_jax.curriculum import criterion, window

THRESHOLDS = tuple(round(0.1 * k, 1) for k in range(1, 10))
_STARTS = tuple(round(0.05 * k, 2) for k in range(2, 19))  # what tau0 is chosen of
SIZES = ("small", "middle", "large")
_PAPER_START = 0.3

# Of the rule above.
_LEAST_VALID, _LEAST_SPREAD, _LEAST_DIVIDED, _LEAST_IOU = 0.5, 0.5, 0.1, 0.1
_NEAR_BEST = 0.8
_RAW_SPREAD, _RAW_GAIN = 0.9, 0.1
_FEW_GROUPS = 100
# From here on "starts without signal" is said of the paper's threshold.
_NO_SIGNAL = 2 / 3


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Sampled groups.

    Attributes:
        ious: [B, G] in [0, 1]; 0 without an answer.
        valid: [B, G] whether there was a box; None where it is not known.
        areas: [B] of the target boxes; None where they are not known.
        area_unit: "of the image" (a share) or "px^2".
    """

    ious: Float64[np.ndarray, "B G"]
    valid: Bool[np.ndarray, "B G"] | None = None
    areas: Float64[np.ndarray, " B"] | None = None
    area_unit: str = "of the image"


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Reads a file of `{"ious": [[...G], ...B]}` lines, such as a run's rollouts.jsonl.

    Raises:
        ValueError: it cannot be read, is empty, or a line is none; names the file and the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read --ious={path}: {error}") from error
    if lines == [""]:
        raise ValueError(f'{path} is empty: need one {{"ious": [[...], ...]}} a line')
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not JSON ({error}): mend the line") from error
        if not isinstance(record, dict) or "ious" not in record:
            raise ValueError(f'{path}:{number}: need an object with "ious": [[...G], ...B]')
        records.append(record)
    return records


def from_records(
    records: Sequence[Mapping[str, Any]],
    where: str,
    image_sizes: Mapping[str, tuple[int, int]] | None = None,
) -> Groups:
    """Joins the groups of several lines.

    Args:
        records: lines with "ious" [B][G], and perhaps "boxes_px" [B][G][4] (null or none of an
            answer without a box), "target_boxes_px" [B][4] and "ids" [B].
        where: the file, for messages.
        image_sizes: (width, height) of the images by example id; areas are in px^2 where one is
            not there.

    Raises:
        ValueError: no records, IoUs that are none, or groups of different sizes; names the line.
    """
    if not records:
        raise ValueError(f"{where} has no groups: log some with log.rollouts_every")
    parts = []
    for number, record in enumerate(records, start=1):
        try:
            parts.append(window.checked_ious(record["ious"]))
        except (ValueError, KeyError) as error:
            reason = 'no "ious"' if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{where}: line {number} of those read: {reason}") from error
        if parts[-1].shape[1] != parts[0].shape[1]:
            raise ValueError(
                f"{where}: line {number} of those read has groups of {parts[-1].shape[1]}, those "
                f"before have {parts[0].shape[1]}: diagnose them one by one"
            )
    ious = np.concatenate(parts)
    valid = areas = None
    if all("boxes_px" in record for record in records):
        said = [[_is_box(box) for box in group] for one in records for group in one["boxes_px"]]
        valid = np.array(said, np.bool_)
        if valid.shape != ious.shape:
            raise ValueError(f"{where}: boxes_px and ious are not of the same completions")
    unit = "of the image"
    if all("target_boxes_px" in record for record in records):
        boxes = np.array([box for one in records for box in one["target_boxes_px"]], np.float64)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        ids = [name for one in records for name in one.get("ids", ())]
        sizes = [(image_sizes or {}).get(name) for name in ids]
        if len(sizes) == len(areas) and all(sizes):
            areas = areas / np.prod(np.array(sizes, np.float64), axis=1)
        else:
            unit = "px^2"
    return Groups(ious, valid, areas, unit)


def _is_box(box: Any) -> bool:
    """Whether a completion's box is one; rollouts.jsonl has nulls where there was none."""
    return bool(box) and all(side is not None for side in box)


def measure(groups: Groups) -> dict[str, Any]:
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
    groups: Groups,
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
        `schedule` ("sft_first", "raw_iou", "medloc" or "fixed"); `threshold_start`, `margin` (None
        where SFT comes first); `surplus`: by regime, of the IoUs as they are; `reasons`, and
        `warnings`: sentences.
    """
    raw = _raw(groups.ious)
    starts = [at_threshold(groups.ious, threshold) for threshold in _STARTS]
    most = max(one["signal"] for one in starts)
    start = [one for one in starts if one["signal"] >= _NEAR_BEST * most][-1]
    why = _too_early(groups, raw, starts)
    warnings = ([] if why else _of_the_paper(groups, start)) + _of_the_count(groups)
    if why:
        return {
            **dict.fromkeys(("threshold_start", "margin")),
            **{"schedule": "sft_first", "surplus": [], "reasons": [why], "warnings": warnings},
        }
    surplus = _surplus(groups.ious, regimes, start["threshold"], target)
    least = min((one["surplus"] for one in surplus), default=margin)
    fitting = min(margin, max(0.0, math.floor(100 * least + 1e-9) / 100))
    schedule, reason = _schedule(start, raw, target, normalised=normalised)
    return {
        "schedule": schedule,
        "threshold_start": start["threshold"],
        "margin": fitting,
        "surplus": surplus,
        "reasons": [
            reason,
            f"threshold {start['threshold']:.2f} is the strictest with at least "
            f"{_NEAR_BEST:.0%} of the largest signal: {start['signal']:.3f} of {most:.3f}",
        ],
        "warnings": warnings,
    }


def _too_early(
    groups: Groups, raw: Mapping[str, float], starts: Sequence[Mapping[str, float]]
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


def _of_the_paper(groups: Groups, start: Mapping[str, float]) -> list[str]:
    """A warning where the paper's tau0 would waste most groups, and tau0 fewer."""
    paper = at_threshold(groups.ious, _PAPER_START)
    if paper["zero_advantage_rate"] < _NO_SIGNAL:
        return []
    side = "hit it already" if paper["all_hit"] > paper["all_miss"] else "miss it altogether"
    return [
        f"the paper's tau0 = {_PAPER_START} starts nearly without signal: "
        f"{paper['zero_advantage_rate']:.0%} of the groups have no advantage (most {side}); "
        f"at {start['threshold']:.2f} it is {start['zero_advantage_rate']:.0%}"
    ]


def _of_the_count(groups: Groups) -> list[str]:
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
