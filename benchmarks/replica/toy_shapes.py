# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the toy tries: every shape of the reward, and every way to turn rewards into advantages.

`SHAPES` is the table. All shapes are of IoUs alone; MedLoc's threshold is moved by the schedule of
`medloc_jax.curriculum` itself.

Letters: S seeds, B prompts, G completions of a prompt.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from medloc_jax import methods
from medloc_jax.curriculum import schedule

KL_WEIGHT = 0.04
RECENT = 10  # steps that the window of the window_ shapes goes back; MedLoc's own has 30
STAGES = methods.METHODS["v_triune"]["curriculum.stages"]
EPSILON = 1e-4  # added to a deviation that is divided by


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a reward may look at.

    Attributes:
        ious: of the completions that are to be rewarded.
        progress: share of the steps that are done, 0..1.
        window: IoUs of the newest steps, this one among them.
        threshold: MedLoc's, of each seed; NaN for a shape without it.
        own_thresholds: of each prompt the median IoU when it was drawn last; NaN the first time.
    """

    ious: Float[np.ndarray, "S B G"]
    progress: float
    window: Float[np.ndarray, "S entries"]
    threshold: Float[np.ndarray, "S 1 1"]
    own_thresholds: Float[np.ndarray, "S B 1"]

    def quantile(self, share: float) -> Float[np.ndarray, "S 1 1"]:
        """The IoU that this share of the window does not pass."""
        return np.quantile(self.window, share, axis=1)[:, None, None]


Reward = Callable[[Seen], Float[np.ndarray, "S B G"]]


def raw_iou(seen: Seen) -> np.ndarray:
    """The IoU."""
    return seen.ious


def hit(threshold: float) -> Reward:
    """1 from a fixed IoU on."""
    return lambda seen: np.where(seen.ious >= threshold, 1.0, 0.0)


def medloc_hit(seen: Seen) -> np.ndarray:
    """1 from MedLoc's threshold on."""
    return np.where(seen.ious >= seen.threshold, 1.0, 0.0)


def medloc_iou(seen: Seen) -> np.ndarray:
    """The IoU from MedLoc's threshold on."""
    return np.where(seen.ious >= seen.threshold, seen.ious, 0.0)


def staged_iou(seen: Seen) -> np.ndarray:
    """The IoU from V-Triune's threshold on, as methods.py has it."""
    threshold = next(level for end, level in STAGES if seen.progress < end or end >= 1)
    return np.where(seen.ious >= threshold, seen.ious, 0.0)


def medloc_ramp(width: float) -> Reward:
    """From 0 to 1 over `width` of IoU, with MedLoc's threshold in the middle."""
    return lambda seen: np.clip((seen.ious - seen.threshold) / width + 0.5, 0, 1)


def medloc_mixed(seen: Seen) -> np.ndarray:
    """The IoU at first, MedLoc's hit at the end."""
    return (1 - seen.progress) * seen.ious + seen.progress * medloc_hit(seen)


def power(start: float, end: float) -> Reward:
    """A power of the IoU that moves with the steps."""
    return lambda seen: seen.ious ** _moving(start, end, seen)


def ramp(low: float, high: float) -> Reward:
    """From 0 at one IoU to 1 at another."""
    return lambda seen: np.clip((seen.ious - low) / (high - low), 0, 1)


def log_error(floor: float) -> Reward:
    """Minus the logarithm of the error 1 - IoU: halving the error always pays about the same."""
    return lambda seen: -np.log(1 - seen.ious + floor)


def rivals(start: float, end: float) -> Reward:
    """The share of its siblings that a completion beats, to the power k: our schedule `rivals`."""
    return lambda seen: share_beaten(seen.ious) ** _moving(start, end, seen)


def share_beaten(ious: Float[np.ndarray, "S B G"]) -> Float[np.ndarray, "S B G"]:
    """Of the G - 1 siblings, those that are worse; a tie is not worse."""
    beaten = np.sum(ious[..., :, None] > ious[..., None, :], axis=-1)
    return beaten / (ious.shape[-1] - 1)


def best_of_group(seen: Seen) -> np.ndarray:
    """1 for the best of the group."""
    return np.where(seen.ious >= seen.ious.max(axis=-1, keepdims=True), 1.0, 0.0)


def window_hit(share: float) -> Reward:
    """1 from a quantile of the window on."""
    return lambda seen: np.where(seen.ious >= seen.quantile(share), 1.0, 0.0)


def window_iou_if_hit(share: float) -> Reward:
    """The IoU from a quantile of the window on."""
    return lambda seen: np.where(seen.ious >= seen.quantile(share), seen.ious, 0.0)


def window_above(share: float) -> Reward:
    """By how much the IoU is above a quantile of the window."""
    return lambda seen: np.maximum(seen.ious - seen.quantile(share), 0)


def window_share(exponent: float) -> Reward:
    """The share of the window that is not better (its distribution function), to a power."""

    def reward(seen: Seen) -> np.ndarray:
        ranked = np.sort(seen.window, axis=1)
        places = [
            np.searchsorted(window, ious, side="right")
            for window, ious in zip(ranked, seen.ious, strict=True)
        ]
        return (np.stack(places) / ranked.shape[1]) ** exponent

    return reward


def with_iou(reward: Reward, weight: float) -> Reward:
    """Another reward, mixed with the IoU."""
    return lambda seen: (1 - weight) * seen.ious + weight * reward(seen)


def own_hit(seen: Seen) -> np.ndarray:
    """1 from the example's own median of last time on; the window's median the first time."""
    first_time = np.isnan(seen.own_thresholds)
    threshold = np.where(first_time, seen.quantile(0.5), seen.own_thresholds)
    return np.where(seen.ious >= threshold, 1.0, 0.0)


def _moving(start: float, end: float, seen: Seen) -> float:
    return start + (end - start) * seen.progress


DIVISORS = {  # variance of each group's rewards [S, B, 1] -> what its advantages are divided by
    "group": lambda variance: np.sqrt(variance) + EPSILON,
    "batch": lambda variance: np.sqrt(variance.mean(axis=1, keepdims=True)) + EPSILON,
    "nothing": lambda variance: 1.0,
}

GROUP_WEIGHTS = {  # IoUs [S, B, G] -> weight of each group's advantages [S, B, 1], any scale
    "equal": lambda ious: np.ones_like(ious[..., :1]),
    "low": lambda ious: 1 - ious.mean(axis=-1, keepdims=True),
    "high": lambda ious: ious.mean(axis=-1, keepdims=True),
    "middle": lambda ious: np.exp(-(((ious.mean(axis=-1, keepdims=True) - 0.7) / 0.2) ** 2)),
    "gap": lambda ious: ious.max(axis=-1, keepdims=True) - ious.mean(axis=-1, keepdims=True),
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A row of the table.

    Attributes:
        about: what it is, in a few words.
        reward: what a completion earns.
        criteria: what MedLoc's threshold asks before it moves; None for a shape without it.
        divided_by: an entry of DIVISORS.
        group_weight: an entry of GROUP_WEIGHTS.
        negative: weight of the advantages below 0, 0..2; those above get 2 less that.
        kl_weight: of the divergence from the warm start.
        times_prompts: how many times the prompts are drawn that are trained on: groups with a
            signal are taken first.
    """

    about: str
    reward: Reward
    criteria: tuple[str, ...] | None = None
    divided_by: str = "group"
    group_weight: str = "equal"
    negative: float = 1.0
    kl_weight: float = KL_WEIGHT
    times_prompts: int = 1

    def advantages(
        self, rewards: Float[np.ndarray, "S B G"], ious: Float[np.ndarray, "S B G"]
    ) -> Float[np.ndarray, "S B G"]:
        """Centres and scales rewards group by group; 0 in a group without a signal."""
        centred = rewards - rewards.mean(axis=-1, keepdims=True)
        variance = rewards.var(axis=-1, ddof=1, keepdims=True)
        scaled = centred / DIVISORS[self.divided_by](variance)
        weight = GROUP_WEIGHTS[self.group_weight](ious)
        # Of mean 1 in the batch, so that the KL term weighs the same against all.
        scaled *= weight / np.maximum(weight.mean(axis=1, keepdims=True), 1e-6)
        scaled *= np.where(scaled < 0, self.negative, 2 - self.negative)
        return np.where(has_signal(rewards)[..., None], scaled, 0.0)


def has_signal(rewards: Float[np.ndarray, "S B G"]) -> np.ndarray:
    """Tells which groups hold different rewards: [S, B]."""
    return rewards.max(axis=-1) != rewards.min(axis=-1)


class History:
    """What the steps so far leave behind, for each seed."""

    def __init__(
        self, num_seeds: int, num_examples: int, criteria: Sequence[str] | None = None
    ) -> None:
        """Starts empty; `criteria` are those of MedLoc's threshold, None if nothing asks for it."""
        self.window: list[np.ndarray] = []  # of a step each, [S, B * G], oldest first
        self.medians = np.full((num_seeds, num_examples), np.nan)
        self.schedules = []
        if criteria is not None:
            options = schedule.Options(criteria=tuple(criteria))
            self.schedules = [schedule.MedLoc(options) for _ in range(num_seeds)]

    def seen(
        self, ious: Float[np.ndarray, "S B G"], rows: Int[np.ndarray, "S B"], progress: float
    ) -> Seen:
        """What the reward of these completions, of the examples `rows`, may look at."""
        newest = [*self.window, ious.reshape(len(ious), -1)][-RECENT:]
        thresholds = [one.threshold for one in self.schedules] or [np.nan] * len(ious)
        return Seen(
            ious=ious,
            progress=progress,
            window=np.concatenate(newest, axis=1),
            threshold=np.array(thresholds)[:, None, None],
            own_thresholds=np.take_along_axis(self.medians, rows, axis=1)[..., None],
        )

    def update(self, ious: Float[np.ndarray, "S B G"], rows: Int[np.ndarray, "S B"]) -> None:
        """Takes a step's IoUs in, after they are rewarded."""
        self.window = [*self.window, ious.reshape(len(ious), -1)][-RECENT:]
        np.put_along_axis(self.medians, rows, np.median(ious, axis=-1), axis=1)
        for seed, one in enumerate(self.schedules):
            one.update(ious[seed])


REFERENCE = "raw_iou"
ALL = ("reward", "margin", "stability")
NO_MARGIN = ("reward", "stability")

SHAPES = {
    REFERENCE: Shape("the IoU", raw_iou),
    "hit_50": Shape("1 if IoU >= 0.5", hit(0.5)),
    "hit_60": Shape("1 if IoU >= 0.6", hit(0.6)),
    "hit_70": Shape("1 if IoU >= 0.7", hit(0.7)),
    "medloc": Shape("1 if IoU >= MedLoc's threshold", medloc_hit, ALL),
    "medloc_no_margin": Shape("the same without its margin check", medloc_hit, NO_MARGIN),
    "medloc_iou": Shape("the IoU if >= MedLoc's threshold, else 0", medloc_iou, ALL),
    "medloc_iou_no_margin": Shape("the same without its margin check", medloc_iou, NO_MARGIN),
    "staged_iou": Shape("the IoU if >= 0.3, then 0.5, then 0.7, else 0 (V-Triune)", staged_iou),
    "medloc_ramp": Shape(
        "0 to 1 from 0.25 below MedLoc's threshold to 0.25 above", medloc_ramp(0.5), ALL
    ),
    "medloc_mixed": Shape(
        "(1 - u) IoU + u (1 if IoU >= MedLoc's threshold), u the share of the steps done",
        medloc_mixed,
        ALL,
    ),
    "medloc_resampled": Shape(
        "medloc; of twice the prompts, groups with a signal first: costs twice the completions",
        medloc_hit,
        ALL,
        times_prompts=2,
    ),
    "power_3": Shape("IoU ** 3", power(3, 3)),
    "power_1_8": Shape("IoU ** p, p from 1 to 8 over the steps", power(1, 8)),
    "ramp": Shape("0 to 1 from IoU 0.4 to 0.95", ramp(0.4, 0.95)),
    "log_error": Shape("-log(1.1 - IoU)", log_error(0.1)),
    "rivals_4": Shape("share of the siblings beaten, ** 4", rivals(4, 4)),
    "rivals_1_6": Shape("share of the siblings beaten, ** k, k from 1 to 6", rivals(1, 6)),
    "rivals_6_1": Shape("share of the siblings beaten, ** k, k from 6 to 1", rivals(6, 1)),
    "best": Shape("1 for the best of the group", best_of_group),
    "window_hit": Shape("1 if IoU >= the window's median", window_hit(0.5)),
    "window_iou_if_hit": Shape(
        "the IoU if >= the window's 0.4 quantile, else 0", window_iou_if_hit(0.4)
    ),
    "window_above": Shape("the IoU above the window's 0.25 quantile, else 0", window_above(0.25)),
    "window_share": Shape("share of the window that is not better", window_share(1)),
    "window_share_2": Shape("the same, ** 2", window_share(2)),
    "window_blend": Shape(
        "0.7 IoU + 0.3 (1 if IoU >= the window's 0.6 quantile)", with_iou(window_hit(0.6), 0.3)
    ),
    "own_hit": Shape("1 if IoU >= this example's median when it was drawn last", own_hit),
    "own_blend": Shape("0.7 IoU + 0.3 own_hit", with_iou(own_hit, 0.3)),
    "undivided": Shape(
        "the IoU, advantages not divided by a deviation", raw_iou, divided_by="nothing"
    ),
    "divided_by_batch": Shape(
        "the IoU, advantages divided by the batch's deviation", raw_iou, divided_by="batch"
    ),
    "weight_low": Shape("the IoU, groups weighed by 1 - mean IoU", raw_iou, group_weight="low"),
    "weight_high": Shape("the IoU, groups weighed by mean IoU", raw_iou, group_weight="high"),
    "weight_middle": Shape(
        "the IoU, groups weighed by how near 0.7 their mean IoU is", raw_iou, group_weight="middle"
    ),
    "weight_gap": Shape(
        "the IoU, groups weighed by best less mean IoU", raw_iou, group_weight="gap"
    ),
    "negative_half": Shape("the IoU, advantages below 0 times 0.5", raw_iou, negative=0.5),
    "negative_more": Shape("the IoU, advantages below 0 times 1.5", raw_iou, negative=1.5),
    "no_kl": Shape("the IoU, without the KL term", raw_iou, kl_weight=0.0),
}
