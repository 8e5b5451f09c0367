# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from medloc_jax.curriculum import make_schedule

IOUS = np.full((2, 4), 0.9)


def test_the_rivals_grow_with_the_steps_and_the_threshold_stays():
    made = make_schedule("rivals", num_steps=50, rivals_start=1.0, rivals_end=6.0)
    assert (made.reward_shape, made.threshold) == ("rivals", 0.0)
    seen, events = [], []
    for _ in range(55):
        seen.append(made.rivals)
        events.append(made.update(IOUS))
    assert [seen[step] for step in (0, 10, 50, 54)] == [1.0, 2.0, 6.0, 6.0]
    assert (np.diff(seen[:51]) > 0).all()
    assert not any(event.tightened for event in events)
    assert [event.step for event in events] == list(range(1, 56))
    assert events[0].metrics() == {"curriculum/threshold": 0.0, "curriculum/tightened": 0.0}
    with pytest.raises(ValueError, match="ious"):
        made.update([[2.0]])


def test_rivals_that_stay_need_no_length():
    made = make_schedule("rivals", rivals_start=4.0, rivals_end=4.0)
    for _ in range(3):
        made.update(IOUS)
        assert made.rivals == 4.0


def test_resumes_and_refuses_other_options():
    whole, before, after = (make_schedule("rivals", num_steps=7) for _ in range(3))
    want = [(whole.rivals, whole.update(IOUS)) for _ in range(7)]
    got = [(before.rivals, before.update(IOUS)) for _ in range(3)]
    saved = json.loads(json.dumps(before.state_dict()))
    after.load_state_dict(saved)
    assert got + [(after.rivals, after.update(IOUS)) for _ in range(4)] == want
    with pytest.raises(ValueError, match="rivals_end was 6.0 and is 2.0: set them back"):
        make_schedule("rivals", num_steps=7, rivals_end=2.0).load_state_dict(saved)
    with pytest.raises(ValueError, match="num_steps was 7 and is 8 .*goes by the share of the run"):
        make_schedule("rivals", num_steps=8).load_state_dict(saved)
    with pytest.raises(ValueError, match="is of schedule 'rivals'"):
        make_schedule("raw_iou").load_state_dict(saved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rivals_start": 0.0}, "rivals_start is 0.0: it must be above 0"),
        ({"rivals_end": -1.0}, "rivals_end is -1.0"),
        ({"rivals_end": "many"}, "rivals_end is 'many'"),
        ({"num_steps": None}, "num_steps must be 1 or more"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_schedule("rivals", **{"num_steps": 10, **options})
