# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Does a group's agreement tell how right it is? Where it does, agreement can stand for a score.

A group is the completions sampled for one prompt in training. Its agreement is the mean IoU over
all pairs of its boxes (`grounding.consensus.agreement`), which needs no truth; its quality the mean
IoU of its boxes with the true box. A completion without a box agrees with none and has IoU 0.

Groups are training examples, sampled at training's temperature by a policy that was still moving;
only the later half of the lines on file is read.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from medloc_jax.evaluation import results, significance
from medloc_jax.evaluation.table_files import ResultTable
from medloc_jax.grounding import consensus

EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the bins of agreement; the last includes 1


class Groups(NamedTuple):
    """Agreement and mean IoU with the truth of each group, both in [0, 1]."""

    agreement: Float[np.ndarray, " n"]
    iou: Float[np.ndarray, " n"]


class Bin(NamedTuple):
    """The groups whose agreement lies in [low, high)."""

    low: float
    high: float
    count: int
    agreement: float  # means over its groups; NaN where it is empty
    iou: float


def groups(rollouts: Sequence[Mapping[str, Any]]) -> Groups:
    """The groups of the later half of the lines of rollouts.jsonl; none where it holds no box."""
    agreement, iou = [], []
    for line in rollouts[len(rollouts) // 2 :]:
        for said, ious in zip(line.get("boxes_px", ()), line.get("ious", ()), strict=False):
            if len(said) < 2:
                continue
            # null stands for a number that is none: a completion without a box.
            boxes_px = np.asarray(said, np.float64).reshape(-1, 4)
            agreement.append(consensus.agreement(boxes_px))
            iou.append(float(np.mean(np.asarray(ious, np.float64))))
    return Groups(np.asarray(agreement, np.float64), np.asarray(iou, np.float64))


def bins(found: Groups) -> list[Bin]:
    """Groups by their agreement, in bins of EDGES."""
    part = np.clip(np.digitize(found.agreement, EDGES) - 1, 0, len(EDGES) - 2)
    result = []
    for index, (low, high) in enumerate(zip(EDGES, EDGES[1:], strict=False)):
        chosen = part == index
        count = int(chosen.sum())
        means = [float(side[chosen].mean()) if count else float("nan") for side in found]
        result.append(Bin(low, high, count, means[0], means[1]))
    return result


def table(experiments: Sequence[results.Experiment]) -> ResultTable:
    """Mean IoU with the truth by bin of agreement, and their rank correlation."""
    rows, records = [], []
    for experiment in experiments:
        runs = [groups(final.run.rollouts) for final in experiment.finals]
        found = Groups(*(np.concatenate(side) for side in zip(*runs, strict=True)))
        if not len(found.agreement):
            continue
        correlation = significance.spearman(found.agreement, found.iou)
        parts = bins(found)
        rows.append(
            [
                experiment.data_set,
                experiment.name,
                str(len(found.agreement)),
                *(f"{one.iou:.2f} ({one.count})" if one.count else "-" for one in parts),
                "-" if correlation is None else f"{correlation[0]:.2f}",
            ]
        )
        records += [
            {
                "data_set": experiment.data_set,
                "method": experiment.name,
                "low": one.low,
                "high": one.high,
                "groups": one.count,
                "agreement": one.agreement if one.count else None,
                "iou": one.iou if one.count else None,
                "spearman": None if correlation is None else correlation[0],
            }
            for one in parts
        ]
    names = [f"{low:g} to {high:g}" for low, high in zip(EDGES, EDGES[1:], strict=False)]
    return ResultTable(
        "calibration",
        "Agreement of a group against its IoU with the truth",
        ["data", "method", "groups", *names, "Spearman"],
        rows,
        {},
        [
            "By bins of agreement (mean IoU over all pairs of a group's boxes): the mean IoU of "
            "those groups with the truth, in brackets how many groups. Training groups of the "
            "later half of rollouts.jsonl, all seeds together. Spearman: rank correlation over "
            "groups."
        ],
        records,
    )
