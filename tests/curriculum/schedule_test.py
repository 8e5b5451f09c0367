# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medloc_jax import config
from medloc_jax.curriculum import SCHEDULES, make_schedule, schedule, stability_note

PERFECT = np.ones((8, 8))
MEAN_65 = np.full((8, 8), 0.65)


def run(reward_schedule, ious, steps):
    events = [reward_schedule.update(ious) for _ in range(steps)]
    return [event.step for event in events if event.tightened], events


def test_options_are_those_of_the_config_with_its_defaults():
    declared = config.default_config().curriculum.to_dict()
    assert declared.pop("schedule") in SCHEDULES
    assert dataclasses.asdict(schedule.Options()) == declared


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_whole_config_is_accepted(name):
    options = config.default_config().curriculum
    with options.unlocked():
        options.schedule = name
    made = make_schedule(options.schedule, num_steps=100, **options)
    assert made.reward_shape in ("hit", "raw_iou", "iou_if_hit", "rivals")
    assert made.state_dict()["schedule"] == name
    thresholds = made.thresholds(["a", "b"])
    assert thresholds.dtype == np.float32
    np.testing.assert_array_equal(thresholds, np.full(2, made.threshold, np.float32))


def test_a_policy_that_is_always_right_climbs_at_30_45_60_75():
    made = make_schedule("medloc", num_steps=1000, step_size="piecewise")
    assert (made.threshold, made.reward_shape) == (0.3, "hit")
    steps, events = run(made, PERFECT, 100)
    assert steps == [30, 45, 60, 75]
    assert made.history == [(30, 0.45), (45, 0.6), (60, 0.7), (75, 0.8)]
    assert [events[step - 1].threshold for step in (30, 31, 46, 61, 76)] == [
        *(0.3, 0.45, 0.6, 0.7, 0.8)
    ]
    assert not any(event.tested for event in events[75:])  # nothing is tested at the target
    assert all(event.blocked_by == () for event in events)


def test_a_mean_iou_of_65_stays_at_60_blocked_by_the_margin():
    made = make_schedule("medloc")
    steps, events = run(made, MEAN_65, 300)
    assert steps == [30, 45]
    assert made.threshold == 0.6
    assert all(event.blocked_by == ("margin",) for event in events[59:])
    assert events[-1].statistics.iou_margin == pytest.approx(0.05)
    assert events[-1].metrics() == {
        "curriculum/threshold": 0.6,
        "curriculum/tightened": 0.0,
        "curriculum/window_reward_mean": 1.0,
        "curriculum/window_reward_std": 0.0,
        "curriculum/window_iou_margin": pytest.approx(0.05),
        "curriculum/stability_alive": 0.0,
        "curriculum/blocked_by_reward": 0.0,
        "curriculum/blocked_by_margin": 1.0,
        "curriculum/blocked_by_stability": 0.0,
    }


def test_criteria_can_be_switched_off():
    # Without the margin check, a mean IoU of .65 gets past .60; .70 then asks too much of it.
    steps, events = run(make_schedule("medloc", criteria=("reward",)), MEAN_65, 200)
    assert steps == [30, 45, 60]
    assert events[-1].blocked_by == ("reward",)
    low = np.full((4, 4), 0.2)
    assert run(make_schedule("medloc"), low, 60)[1][-1].blocked_by == ("reward", "margin")
    only = make_schedule("medloc", criteria=["stability"])
    assert run(only, low, 60)[0] == [30, 45, 60]


@pytest.mark.parametrize(
    ("fraction", "want"),
    [(0.5, [30, 45, 60, 75]), (0.25, [30, 37, 44, 51]), (1.0, [30, 60, 90, 120])]
    + [(0.0, [30, 31, 32, 33])],
)
def test_refresh(fraction, want):
    assert run(make_schedule("medloc", refresh_fraction=fraction), PERFECT, 130)[0] == want


def test_min_fill_tests_before_the_window_is_full():
    steps, _ = run(make_schedule("medloc", min_fill=5, refresh_fraction=1.0), PERFECT, 40)
    assert steps == [5, 10, 15, 20]


def test_a_prompt_an_entry_updates_at_most_once_a_step():
    made = make_schedule("medloc", window=32, window_unit="prompt")
    steps, events = run(made, PERFECT, 20)
    assert steps == [4, 6, 8, 10]  # 8 entries a step; 16 of 32 go at each update
    assert [event.window_fill for event in events[:5]] == [8, 16, 24, 32, 24]
    assert run(make_schedule("medloc", window=2, window_unit="prompt"), PERFECT, 4)[0] == [
        *(1, 2, 3, 4)
    ]


def test_stability_is_alive_with_a_prompt_an_entry_only():
    ious = np.zeros((8, 4))
    ious[:, :] = (np.arange(8) < 7)[:, None] * 0.9  # p = .875, full agreement within a prompt
    by_step = make_schedule("medloc")
    by_prompt = make_schedule("medloc", window_unit="prompt")
    last_step, last_prompt = (run(made, ious, 40)[1][-1] for made in (by_step, by_prompt))
    assert (last_step.stability_alive, last_prompt.stability_alive) == (False, True)
    assert by_step.threshold > 0.3
    assert by_prompt.threshold == 0.3
    assert last_prompt.blocked_by == ("stability",)


def test_rewards_recomputed_or_as_they_were_given():
    # Hits at .30 but not at .45: with them in the window, only old rewards let the climb go on.
    weak, strong = np.full((2, 2), 0.42), np.full((2, 2), 0.9)
    steps = {}
    for how in ("recompute", "as_rewarded"):
        made = make_schedule("medloc", window_rewards=how, criteria=("reward",), window=4)
        events = [made.update(ious) for ious in [weak] * 4 + [strong] * 4]
        steps[how] = [event.step for event in events if event.tightened]
    assert steps == {"recompute": [4, 8], "as_rewarded": [4, 6, 8]}


@pytest.mark.parametrize("name", schedule.FIXED_STRATEGIES)
def test_fixed_strategies(name):
    made = make_schedule("medloc", **schedule.FIXED_STRATEGIES[name])
    run(made, PERFECT, 30)
    first = {"conservative": 0.35, "moderate": 0.4, "aggressive": 0.45}[name]
    assert made.threshold == first
    run(made, PERFECT, 200)
    assert made.threshold == 0.8


def test_a_step_that_rounds_to_nothing_is_no_update():
    made = make_schedule(
        "medloc", step_size="constant", step_size_start=1e-9, threshold_start=0.3, window=2
    )
    steps, events = run(made, PERFECT, 6)
    assert steps == [] and made.history == []
    assert events[-1].window_fill == 2


IOUS = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 0.3)), min_size=1, max_size=60
)  # (mean, spread) of each step
KNOBS = st.fixed_dictionaries(
    {
        "step_size": st.sampled_from(["piecewise", "linear", "cosine", "constant"]),
        "window": st.integers(1, 8),
        "window_unit": st.sampled_from(["step", "prompt"]),
        "window_rewards": st.sampled_from(["recompute", "as_rewarded"]),
        "refresh_fraction": st.floats(0, 1),
        "snap_eps": st.floats(0, 0.1),
        "step_size_start": st.floats(1e-8, 1),
        "threshold_start": st.floats(0, 0.5),
        "threshold_target": st.floats(0.5, 1),
        "criteria": st.lists(st.sampled_from(["reward", "margin", "stability"]), unique=True),
    }
)


def draw_ious(means_and_spreads, seed=0):
    random = np.random.default_rng(seed)
    return [
        np.clip(random.normal(mean, spread, size=(3, 4)), 0, 1)
        for mean, spread in means_and_spreads
    ]


@given(IOUS, KNOBS)
def test_the_threshold_never_falls_and_stays_in_its_range(means_and_spreads, knobs):
    made = make_schedule("medloc", **knobs)
    thresholds = [made.threshold]
    for ious in draw_ious(means_and_spreads):
        event = made.update(ious)
        assert event.threshold == thresholds[-1]
        assert event.next_threshold == made.threshold
        assert event.tightened == (made.threshold > event.threshold)
        assert not (event.tightened and event.blocked_by)
        thresholds.append(made.threshold)
    assert thresholds == sorted(thresholds)
    assert knobs["threshold_start"] <= thresholds[0]
    assert thresholds[-1] <= knobs["threshold_target"]


@given(IOUS, KNOBS, st.integers(0, 60))
def test_resumes_bit_for_bit(means_and_spreads, knobs, cut):
    steps = draw_ious(means_and_spreads)
    whole, before, after = (make_schedule("medloc", **knobs) for _ in range(3))
    want = [whole.update(ious) for ious in steps]
    got = [before.update(ious) for ious in steps[:cut]]
    after.load_state_dict(json.loads(json.dumps(before.state_dict(), allow_nan=False)))
    got += [after.update(ious) for ious in steps[cut:]]
    assert got == want  # every field of every event, to the last bit
    assert after.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("name", "other", "changed", "message"),
    [
        ("medloc", "fixed", {}, "schedule 'medloc'.*'fixed'"),
        ("fixed", "medloc", {}, "schedule 'fixed'.*'medloc'"),
        ("medloc", "medloc", {"margin": 0.2}, "margin was 0.1 and is 0.2"),
        ("medloc", "medloc", {"regimes": ((1.01, 0.6, 0.4),)}, "regimes was .* and is"),
        ("fixed", "fixed", {"threshold_fixed": 0.6}, "stages was"),
        ("v_triune", "v_triune", {"num_steps": 20}, "num_steps was 10 and is 20"),
    ],
)
def test_a_state_of_something_else_is_refused(name, other, changed, message):
    state = json.loads(json.dumps(make_schedule(name, num_steps=10).state_dict()))
    with pytest.raises(ValueError, match=message):
        make_schedule(other, **{"num_steps": 10, **changed}).load_state_dict(state)


def test_a_state_that_is_not_whole_is_refused():
    made = make_schedule("medloc")
    state = made.state_dict()
    del state["window"]
    with pytest.raises(ValueError, match="no window"):
        made.load_state_dict(state)


def test_options_of_another_schedule_do_not_matter_to_a_state():
    state = make_schedule("medloc", threshold_fixed=0.6).state_dict()
    make_schedule("medloc").load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margn": 0.1}, "margn"),
        ({"schedule": "fixed"}, "another schedule"),
        ({"threshold_start": 0.9}, "threshold_start <= threshold_target"),
        ({"threshold_target": 1.5}, "threshold_target"),
        ({"step_size": "quadratic"}, "step_size .*piecewise.*'quadratic'"),
        ({"step_sizes": (0.1, 0.1)}, "one more of step_sizes"),
        ({"step_sizes": (0.1, 0.1, 0.0)}, "step_sizes to be positive"),
        ({"step_sizes": (0.1, 0.1, "a")}, "step_sizes"),
        ({"boundaries": (0.75, 0.55)}, "boundaries to rise"),
        ({"step_size_start": -0.1}, "step_size_start"),
        ({"snap_eps": -0.1}, "snap_eps"),
        ({"window": 0}, "window"),
        ({"window": 1.5}, "window is 1.5"),
        ({"window": True}, "window is True"),
        ({"window_unit": "epoch"}, "window_unit"),
        ({"window_rewards": "old"}, "window_rewards"),
        ({"min_fill": 31}, "min_fill"),
        ({"refresh_fraction": 1.5}, "refresh_fraction"),
        ({"margin": "0.1"}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"criteria": ("reward", "std")}, "criteria out of .*'std'"),
        ({"criteria": "reward"}, "criteria"),
        ({"regimes": ((0.6, 0.8, 0.2),)}, "regimes"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_schedule("medloc", **options)


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="'medlock' is none of medloc, fixed"):
        make_schedule("medlock")


def test_a_refused_step_changes_nothing():
    made = make_schedule("medloc")
    made.update(PERFECT)
    before = made.state_dict()
    for bad in (np.full((2, 2), np.nan), np.ones(4), [[0.5, 0.6], [0.5]]):
        with pytest.raises(ValueError, match="ious"):
            made.update(bad)
    assert made.state_dict() == before


@pytest.mark.parametrize(
    ("options", "prompts", "warned"),
    [
        ({}, 8, True),  # .5 / sqrt(8) is below every S
        ({}, 1, False),
        ({"window_unit": "prompt"}, 8, False),
        ({"criteria": ("reward", "margin")}, 8, False),
    ],
)
def test_a_stability_check_that_can_never_bind_is_named(options, prompts, warned):
    schedule = make_schedule("medloc", **options)
    note = stability_note(schedule, prompts=prompts, group_size=8)
    assert ("stability" in note) == warned


def test_baselines_have_no_stability_check_to_warn_of():
    assert stability_note(make_schedule("fixed"), prompts=8, group_size=8) == ""
