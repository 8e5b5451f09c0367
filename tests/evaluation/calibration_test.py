# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from medloc_jax.evaluation import calibration

_BOX = [0.0, 0.0, 10.0, 10.0]
_HALF = [0.0, 0.0, 10.0, 5.0]  # IoU 0.5 with _BOX
_NONE = [None] * 4


def _line(*groups):
    return {
        "step": 1,
        "boxes_px": [boxes for boxes, _ in groups],
        "ious": [ious for _, ious in groups],
    }


def test_agreement_is_the_mean_over_pairs_and_no_box_agrees_with_none():
    line = _line(
        ([_BOX, _BOX, _HALF], [0.9, 0.9, 0.3]),  # pairs 1, 0.5, 0.5
        ([_BOX, _BOX, _NONE], [0.5, 0.5, 0.0]),  # pairs 1, 0, 0
    )
    found = calibration.groups([line])
    assert found.agreement == pytest.approx([2 / 3, 1 / 3])
    assert found.iou == pytest.approx([0.7, 1 / 3])


def test_only_the_later_half_is_read_and_old_files_give_nothing():
    early, late = _line(([_BOX, _BOX], [1.0, 1.0])), _line(([_BOX, _HALF], [0.2, 0.4]))
    assert calibration.groups([early, late]).iou == pytest.approx([0.3])
    assert len(calibration.groups([{"step": 1, "ious": [[0.1, 0.2]]}]).iou) == 0
    assert len(calibration.groups([]).iou) == 0


def test_bins_hold_every_group_once():
    agreement = np.array([0.0, 0.2, 0.59, 0.6, 1.0])
    parts = calibration.bins(calibration.Groups(agreement, np.arange(5.0)))
    assert [one.count for one in parts] == [1, 1, 1, 1, 1]
    assert [one.iou for one in parts] == [0, 1, 2, 3, 4]


def test_table_tells_agreement_that_knows_from_agreement_that_does_not(make_experiment):
    knows = [([_BOX, [0.0, 0.0, 10.0, h]], [h / 10, h / 10]) for h in (1.0, 3.0, 5.0, 7.0, 9.0)]
    against = [(boxes, [1 - ious[0]] * 2) for boxes, ious in knows]
    names = []
    for groups in (knows, against):
        experiment = make_experiment([0.5], seeds=(1,))
        run = dataclasses.replace(experiment.finals[0].run, rollouts=(_line(*groups),))
        final = dataclasses.replace(experiment.finals[0], run=run)
        table = calibration.table([dataclasses.replace(experiment, finals=(final,))])
        names.append(table.rows[0][-1])
    assert names == ["1.00", "-1.00"]
    assert calibration.table([make_experiment([0.5])]).rows == []
