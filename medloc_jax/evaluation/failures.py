# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Failed answers sorted into five kinds by a stated rule: are boxes imprecise, or elsewhere?

An answer fails when its IoU is below 0.5. The first of these that holds is its kind:

1. NO_BOX: the completion holds no box.
2. OFF_TARGET: the centre of the answered box lies outside the true box: the wrong place.
3. TOO_LARGE, TOO_SMALL: moved so that the two centres coincide, the answered box would still fail:
   its size is what is wrong. Which of the two goes by its area against the true one's; a box of
   the right area and the wrong shape goes by that too.
4. SHIFTED: the same box, moved onto the true centre, would not fail: its position is what is wrong,
   though it is centred within the target.

2 is a wrong target, 3 and 4 are imprecise boxes. The paper's Figure 8 shows such failures without a
rule; this one is ours.

Reference: MedLoc-R1 (arXiv 2603.28120), Figure 8.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from medloc_jax.evaluation import metrics, results
from medloc_jax.evaluation.table_files import ResultTable
from medloc_jax.grounding import boxes

NO_BOX, OFF_TARGET = "no box", "centre off target"
TOO_LARGE, TOO_SMALL, SHIFTED = "too large", "too small", "shifted"
KINDS = (NO_BOX, OFF_TARGET, TOO_LARGE, TOO_SMALL, SHIFTED)
THRESHOLD = 0.5

RULE = (
    "An answer fails below IoU 0.5. No box: none can be read. Centre off target: the centre of its "
    "box lies outside the true box. Too large, too small: with the two centres moved together it "
    "would still fail; by area. Shifted: it would not fail then. The first that holds counts. The "
    "rule is ours; the paper's Figure 8 gives none."
)


def kind(prediction: Mapping[str, Any]) -> str | None:
    """The kind of a line of predictions.jsonl, None where the answer does not fail.

    Args:
        prediction: with `valid`, `iou`, `boxes_px` and `target_boxes_px`, xyxy in original pixels.
    """
    if not prediction["valid"] or not prediction["boxes_px"]:
        return NO_BOX
    if prediction["iou"] >= THRESHOLD - metrics.TOLERANCE:
        return None
    x1, y1, x2, y2 = prediction["boxes_px"][0]
    left, top, right, bottom = prediction["target_boxes_px"][0]
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    # Half-open, as boxes are.
    if not (left <= x < right and top <= y < bottom):
        return OFF_TARGET
    dx, dy = (left + right) / 2 - x, (top + bottom) / 2 - y
    moved = [x1 + dx, y1 + dy, x2 + dx, y2 + dy]
    if float(boxes.iou(moved, [left, top, right, bottom])) >= THRESHOLD - metrics.TOLERANCE:
        return SHIFTED
    larger = (x2 - x1) * (y2 - y1) >= (right - left) * (bottom - top)
    return TOO_LARGE if larger else TOO_SMALL


def table(experiments: Sequence[results.Experiment]) -> ResultTable:
    """Failures by kind, over all seeds of a method together."""
    rows, records = [], []
    for experiment in experiments:
        lines = [line for final in experiment.finals for line in final.predictions]
        if not lines:
            continue
        counts = collections.Counter(found for line in lines if (found := kind(line)))
        failed = counts.total()
        row = [experiment.data_set, experiment.name, f"{failed} of {len(lines)}"]
        row += [f"{counts[name]} ({_percent(counts[name], failed)})" for name in KINDS]
        imprecise = sum(counts[name] for name in (TOO_LARGE, TOO_SMALL, SHIFTED))
        rows.append([*row, _percent(imprecise, failed)])
        records.append(
            {
                "data_set": experiment.data_set,
                "method": experiment.name,
                "answers": len(lines),
                "failed": failed,
                **{name: counts[name] for name in KINDS},
                "imprecise": imprecise,
            }
        )
    return ResultTable(
        "failures",
        "Failures by kind",
        ["data", "method", "failed", *KINDS, "imprecise"],
        rows,
        {},
        [
            RULE,
            "All seeds of a method together; in brackets the share of its failures. Imprecise: too "
            "large, too small and shifted together, the boxes that do mean the target.",
        ],
        records,
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "-"
