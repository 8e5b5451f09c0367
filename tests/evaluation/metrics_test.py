# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medloc_jax.evaluation import metrics

_PACKS = Path(__file__).resolve().parents[2] / "../shared/data"


def _all_valid(ious):
    return np.ones(len(ious), np.bool_)


def test_values_on_a_hand_made_split():
    ious = np.array([0.5, 0.8, 0.95, 0.49, 1.0])
    valid = np.array([True, True, True, True, False])  # the last one did not parse
    summary = metrics.summarize(ious, valid, seed=0)
    assert summary["num_examples"] == 5
    assert summary["a50"] == pytest.approx(3 / 5)
    assert summary["a80"] == pytest.approx(2 / 5)
    # Of the ten thresholds 0.50 reaches one, 0.80 seven, 0.95 all.
    assert summary["map"] == pytest.approx((1 + 7 + 10) / 10 / 5)
    assert summary["miou"] == pytest.approx((0.5 + 0.8 + 0.95 + 0.49) / 5)
    assert summary["valid_rate"] == pytest.approx(4 / 5)


def test_map_has_ten_thresholds_from_50_to_95():
    assert metrics.MAP_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@pytest.mark.parametrize("threshold", metrics.MAP_THRESHOLDS)
def test_an_iou_on_the_threshold_counts_whatever_float_it_became(threshold):
    ious = np.array([threshold, np.nextafter(threshold, 0), threshold - 1e-6])
    assert metrics.accuracy_at(ious, threshold) == pytest.approx(2 / 3)


def test_interval_is_the_binomial_one_and_the_seed_repeats_it():
    ious = np.repeat([1.0, 0.0], [120, 280])
    summary = metrics.summarize(ious, _all_valid(ious), seed=3)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert summary["a50_ci"] == pytest.approx([0.3 - half, 0.3 + half], abs=0.008)
    assert metrics.summarize(ious, _all_valid(ious), seed=3) == summary
    assert metrics.summarize(ious, _all_valid(ious), seed=4)["miou_ci"] != summary["miou_ci"]


def test_interval_does_not_depend_on_the_block_size(monkeypatch):
    ious = np.linspace(0, 1, 50)
    whole = metrics.summarize(ious, _all_valid(ious), seed=0, num_bootstrap=300)
    monkeypatch.setattr(metrics, "_BOOTSTRAP_CELLS", 50 * 7)
    assert metrics.summarize(ious, _all_valid(ious), seed=0, num_bootstrap=300) == whole


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30),
    st.integers(0, 5),
)
def test_properties(rows, seed):
    ious, valid = (np.array(column) for column in zip(*rows, strict=True))
    summary = metrics.summarize(ious, valid, seed=seed, num_bootstrap=50)
    assert 0 <= summary["a80"] <= summary["a50"] <= summary["valid_rate"] <= 1
    assert summary["map"] <= summary["a50"]
    for name in ("a50", "a80", "map", "miou", "valid_rate"):
        low, high = summary[f"{name}_ci"]
        assert 0 <= low <= high <= 1 + 1e-12
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.5])
def test_an_iou_that_is_none_is_refused_unless_the_answer_is_invalid(bad):
    ious = np.array([0.5, bad])
    with pytest.raises(ValueError, match="example 1"):
        metrics.summarize(ious, np.array([True, True]), seed=0)
    assert metrics.summarize(ious, np.array([True, False]), seed=0)["miou"] == 0.25


def test_no_examples_is_an_error():
    with pytest.raises(ValueError, match="no examples"):
        metrics.summarize(np.zeros(0), np.zeros(0, np.bool_), seed=0)
    with pytest.raises(ValueError, match="no examples"):
        metrics.accuracy_at(np.zeros(0), 0.5)


def _example(box, width, height):
    return types.SimpleNamespace(id="a", boxes_px=(box,), width=width, height=height)


def test_floor_takes_the_median_in_fractions_of_the_image():
    # In fractions (.1 .2 .5 .6), (.2 .2 .6 .6), (.9 .9 1 1): the median is (.2 .2 .6 .6).
    train = [
        _example((10.0, 10.0, 50.0, 30.0), 100, 50),
        _example((40.0, 20.0, 120.0, 60.0), 200, 100),
        _example((9.0, 9.0, 10.0, 10.0), 10, 10),
    ]
    evaluated = [_example((200.0, 20.0, 600.0, 60.0), 1000, 100), _example((0.0, 0, 1, 1), 10, 10)]
    floor = metrics.constant_box_floor(train, evaluated)
    assert floor["box_unit"] == pytest.approx([0.2, 0.2, 0.6, 0.6])
    assert floor["a80"] == 0.5 and floor["miou"] == pytest.approx(0.5)


def test_floor_refuses_two_targets_and_empty_splits():
    two = types.SimpleNamespace(id="b7", boxes_px=((0, 0, 1, 1), (1, 1, 2, 2)), width=4, height=4)
    one = _example((0.0, 0.0, 1.0, 1.0), 4, 4)
    with pytest.raises(ValueError, match="'b7'.*one_box"):
        metrics.constant_box_floor([two], [one])
    with pytest.raises(ValueError, match="got 0 and 1"):
        metrics.constant_box_floor([], [one])


@pytest.mark.parametrize(
    ("pack", "a50", "a80", "miou"),
    [
        ("ham10000", 0.54, 0.04, 0.51),
        ("busi", 0.06, 0.0, 0.20),
        ("ph2", 0.56, 0.04, 0.53),
        ("brain_mri", 0.02, 0.0, 0.10),
    ],
)
def test_floor_of_published_packs(pack, a50, a80, miou):
    manifest = _PACKS / pack / "manifest.jsonl"
    if not manifest.is_file():
        pytest.skip(f"{manifest} is not here")
    examples = [types.SimpleNamespace(**json.loads(line)) for line in manifest.open()]
    floor = metrics.constant_box_floor(
        [example for example in examples if example.split == "train"],
        [example for example in examples if example.split == "test"],
    )
    found = [round(floor[name], 2) for name in ("a50", "a80", "miou")]
    assert found == [a50, a80, miou]
