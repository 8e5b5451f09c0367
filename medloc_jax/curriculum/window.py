# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The window: the newest IoUs, and the three statistics of them that the criterion reads.

IoUs are kept, not rewards, so that all statistics can be taken under the present threshold; keeping
the rewards as they were given would let old, easier ones inflate the hit rate after an update.

Reference: MedLoc-R1 (arXiv 2603.28120), Eq. 6 (reward mean), 7 (reward std), 8 (IoU margin).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of the entries in a window.

    Attributes:
        reward_mean: mean over the entries of their hit rates.
        reward_std: population standard deviation of those hit rates over the entries.
        iou_margin: mean IoU less the threshold; a completion without an answer counts as IoU 0.
    """

    reward_mean: float
    reward_std: float
    iou_margin: float


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One entry: the IoUs of a step's completions, or of one prompt's.

    Attributes:
        ious: all of them, flat.
        hit_rate: under the threshold that was in force when they were rewarded.
    """

    ious: Float64[np.ndarray, " rows"]
    hit_rate: float


class Window:
    """The newest `size` entries, oldest first."""

    def __init__(self, size: int) -> None:
        """Starts empty."""
        self.size = size
        self.entries: list[Entry] = []

    def push(self, ious: Float64[np.ndarray, "..."], threshold: float) -> None:
        """Appends an entry, and lets the oldest go if there are now too many."""
        ious = ious.reshape(-1)
        self.entries.append(Entry(ious, float(np.mean(hits(ious, threshold)))))
        del self.entries[: -self.size]

    def refresh(self, fraction: float) -> None:
        """Keeps the newest `size - floor(fraction * size)` entries."""
        # 0.29 * 100 is 28.999999999999996: the tolerance makes it the 29 that was meant.
        keep = self.size - math.floor(fraction * self.size + 1e-9)
        self.entries = self.entries[len(self.entries) - min(keep, len(self.entries)) :]

    def statistics(self, threshold: float, *, as_rewarded: bool = False) -> Statistics:
        """Takes the statistics of what is there (at least one entry) under `threshold`.

        Args:
            threshold: IoU in force now.
            as_rewarded: take each entry's hit rate as it was rewarded, not under `threshold`.
        """
        rates = [
            entry.hit_rate if as_rewarded else float(np.mean(hits(entry.ious, threshold)))
            for entry in self.entries
        ]
        mean_iou = np.mean([np.mean(entry.ious) for entry in self.entries])
        return Statistics(
            reward_mean=float(np.mean(rates)),
            reward_std=float(np.std(rates)),
            iou_margin=float(mean_iou - threshold),
        )

    def state(self) -> list[dict]:
        """Returns the entries as plain lists and floats, exactly."""
        return [{"ious": entry.ious.tolist(), "hit_rate": entry.hit_rate} for entry in self.entries]

    def load(self, state: Sequence[dict]) -> None:
        """Replaces the entries by those that `state` returned."""
        self.entries = [
            Entry(np.array(entry["ious"], dtype=np.float64), float(entry["hit_rate"]))
            for entry in state
        ]


def hits(ious: Float64[np.ndarray, " rows"], threshold: float) -> Bool[np.ndarray, " rows"]:
    """Tells which IoUs reach the threshold, decided in float32 as the reward is on the device."""
    return ious.astype(np.float32) >= np.float32(threshold)


def checked_ious(ious: npt.ArrayLike) -> Float64[np.ndarray, "B G"]:
    """Returns IoUs as float64 [B, G].

    Raises:
        ValueError: they are not numbers, ragged, empty, not [B, G], or not all within 0..1.
    """
    try:
        array = np.asarray(ious)
    except ValueError as error:
        raise ValueError("ious are ragged: every prompt needs the same number of them") from error
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"ious have shape {array.shape}: need [B, G], a row of G numbers for each of B prompts"
        )
    if array.dtype.kind not in "fiu":
        raise ValueError(f"ious hold {array.dtype} values: need numbers")
    array = array.astype(np.float64)
    if not np.all((array >= 0) & (array <= 1)):
        bad = array[~((array >= 0) & (array <= 1))][0]
        raise ValueError(f"ious hold {bad}: need finite numbers within 0..1")
    return array
