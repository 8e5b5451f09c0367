# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from medloc_jax import config
from medloc_jax.curriculum import baselines, make_schedule

IOUS = np.full((2, 4), 0.9)


def test_stages_of_the_config_are_the_named_ones():
    assert config.default_config().curriculum.stages == baselines.STAGES["v_triune"]


@pytest.mark.parametrize(
    ("share", "want"),
    [(0.0, 0.85), (0.10, 0.85), (0.1001, 0.95), (0.25, 0.95), (0.2501, 0.99), (1.0, 0.99)]
    + [(1.5, 0.99)],
)
def test_v_triune_borders(share, want):
    assert baselines.stage_threshold(share, baselines.STAGES["v_triune_original"]) == want


def test_v_triune_goes_by_the_share_of_steps():
    made = make_schedule("v_triune", num_steps=100)
    assert made.reward_shape == "iou_if_hit"
    events = [made.update(IOUS) for _ in range(105)]
    in_force = {event.step: event.threshold for event in events}
    assert [in_force[step] for step in (1, 10, 11, 25, 26, 100, 105)] == [
        *(0.3, 0.3, 0.5, 0.5, 0.7, 0.7, 0.7)
    ]
    assert [event.step for event in events if event.tightened] == [10, 25]
    assert events[0].metrics() == {"curriculum/threshold": 0.3, "curriculum/tightened": 0.0}


def test_v_triune_borders_survive_float_division():
    for num_steps in (10, 30, 70, 1000, 4900):
        made = make_schedule("v_triune", num_steps=num_steps)
        made.step = num_steps // 10 - 1
        assert made.threshold == 0.3
        made.step += 1
        assert made.threshold == 0.5


@pytest.mark.parametrize("stages", ["v_triune_original", ("v_triune_original",)])
def test_original_stages_by_name(stages):
    assert make_schedule("v_triune", num_steps=10, stages=stages).threshold == 0.85


@pytest.mark.parametrize(
    ("name", "threshold", "shape"), [("fixed", 0.55, "hit"), ("raw_iou", 0.0, "raw_iou")]
)
def test_constant_schedules(name, threshold, shape):
    made = make_schedule(name, threshold_fixed=0.55)
    assert (made.threshold, made.reward_shape) == (threshold, shape)
    assert not any(made.update(IOUS, ["a", "b"]).tightened for _ in range(50))
    assert made.threshold == threshold
    with pytest.raises(ValueError, match="ious"):
        made.update([[2.0]])


@pytest.mark.parametrize("name", ["fixed", "raw_iou", "v_triune"])
def test_resumes(name):
    whole, before, after = (make_schedule(name, num_steps=20) for _ in range(3))
    want = [whole.update(IOUS) for _ in range(20)]
    got = [before.update(IOUS) for _ in range(7)]
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert got + [after.update(IOUS) for _ in range(13)] == want


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": None}, "num_steps"),
        ({"num_steps": 0}, "num_steps"),
        ({"stages": "original"}, "'original' is neither"),
        ({"stages": ("original",)}, "'original' is neither"),
        ({"stages": ()}, "reach the end"),
        ({"stages": ((0.5, 0.5),)}, "reach the end"),
        ({"stages": ((0.5, 0.5), (0.4, 0.6), (1.0, 0.7))}, "shares must rise"),
        ({"stages": ((0.5, 0.5), (1.0, 0.4))}, "thresholds must not fall"),
        ({"stages": ((0.5, 0.5), (1.0, 1.4))}, "IoU in 0..1"),
        ({"stages": ((0.5, 0.5), (1.0,))}, "share of steps"),
        ({"stages": ((0.5, 0.5), (1.0, None))}, "finite numbers"),
    ],
)
def test_bad_stages_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_schedule("v_triune", **{"num_steps": 10, **options})
