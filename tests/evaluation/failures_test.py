# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from medloc_jax.evaluation import failures
from medloc_jax.grounding import boxes

_TARGET = [100.0, 100.0, 200.0, 200.0]


def _line(box, valid=True):
    iou = float(boxes.iou(box, _TARGET)) if box else 0.0
    return {
        "id": "e",
        "valid": valid,
        "iou": iou,
        "boxes_px": [box] if box else [],
        "target_boxes_px": [_TARGET],
    }


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([100.0, 100.0, 200.0, 200.0], None),
        ([100.0, 100.0, 200.0, 150.0], None),  # IoU exactly 0.5 does not fail
        ([250.0, 100.0, 350.0, 200.0], failures.OFF_TARGET),  # the right size elsewhere
        ([150.0, 100.0, 250.0, 200.0], failures.OFF_TARGET),  # centre on the open side: outside
        ([100.0, 20.0, 500.0, 420.0], failures.OFF_TARGET),  # large too, but first of all elsewhere
        ([50.0, 50.0, 260.0, 260.0], failures.TOO_LARGE),
        ([120.0, 120.0, 170.0, 170.0], failures.TOO_SMALL),
        ([145.0, 100.0, 245.0, 200.0], failures.SHIFTED),
        ([90.0, 145.0, 210.0, 155.0], failures.TOO_SMALL),  # a wrong shape goes by its area
        ([0.0, 130.0, 300.0, 170.0], failures.TOO_LARGE),
    ],
)
def test_each_kind_by_the_stated_rule(box, kind):
    assert failures.kind(_line(box)) == kind


def test_no_box_comes_first():
    assert failures.kind(_line(None, valid=False)) == failures.NO_BOX


def test_kinds_are_counted_over_all_seeds_and_add_up(make_experiment):
    experiment = make_experiment([0.9, 0.1, 0.1], seeds=(1, 2))
    for final in experiment.finals:
        final.predictions[2]["valid"] = False
    # The answer [0, 0, 10, 10] to the target [0, 0, 10, 11], whatever IoU is written beside it.
    table = failures.table([experiment])
    assert list(table.rows[0]) == [
        *("synthetic", "MedLoc (piecewise)", "4 of 6"),
        *("2 (50%)", "0 (0%)", "0 (0%)", "0 (0%)", "2 (50%)", "50%"),
    ]
    record = table.records[0]
    assert sum(record[kind] for kind in failures.KINDS) == record["failed"] == 4
    assert failures.RULE in table.notes
