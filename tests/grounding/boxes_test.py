# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medloc_jax.grounding import boxes

HAM = boxes.Frame(width=600, height=450, resized_width=588, resized_height=448)
COORDINATE = st.floats(-1e4, 1e4, allow_nan=False, width=32)
ANY_BOX = st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 4)
SIDE = st.floats(0.5, 1e3, width=32)
BOX = st.tuples(COORDINATE, COORDINATE, SIDE, SIDE).map(
    lambda b: np.array([b[0], b[1], b[0] + b[2], b[1] + b[3]])
)
FRAME = st.builds(boxes.Frame, *[st.integers(1, 5000)] * 4)


def vlm_r1_iou(a, b):
    """The form of VLM-R1's code: inclusive corners, taken back at once."""
    x1, y1 = max(a[0], b[0]), max(a[1], b[1])
    x2, y2 = min(a[2] - 1, b[2] - 1), min(a[3] - 1, b[3] - 1)
    inter = (x2 - x1 + 1) * (y2 - y1 + 1) if x1 < x2 and y1 < y2 else 0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return inter / (area - inter)


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1.0),
        ([0, 0, 10, 10], [5, 0, 15, 10], 1 / 3),
        ([0, 0, 10, 10], [10, 0, 20, 10], 0.0),  # half-open: touching is not overlapping
        ([0, 0, 10, 10], [2, 2, 7, 7], 0.25),
        ([0, 0, 0, 10], [0, 0, 10, 10], 0.0),
        ([10, 10, 0, 0], [10, 10, 0, 0], 0.0),
        ([0, 0, math.nan, 10], [0, 0, 10, 10], 0.0),
        ([0, 0, math.inf, 10], [0, 0, math.inf, 10], 0.0),
        ([-1e308, -1e308, 1e308, 1e308], [0, 0, 10, 10], 0.0),
    ],
)
def test_iou_hand_values(a, b, want):
    assert boxes.iou(a, b) == pytest.approx(want)
    assert isinstance(boxes.iou(a, b), float)


def test_iou_broadcasts():
    a = np.array([[[0.0, 0, 10, 10], [5, 0, 15, 10]], [[0, 0, 5, 10], [0, 0, 1, 1]]])
    b = np.array([[0.0, 0, 10, 10], [0, 0, 5, 10]])
    np.testing.assert_allclose(boxes.iou(a, b[:, None]), [[1, 1 / 3], [1, 0.02]])
    with pytest.raises(ValueError, match="last axis"):
        boxes.iou([0, 0, 1], [0, 0, 1])


@given(ANY_BOX, ANY_BOX)
def test_iou_is_symmetric_and_bounded(a, b):
    value = boxes.iou(a, b)
    assert value == boxes.iou(b, a)
    assert 0 <= value <= 1


@given(BOX, st.floats(0.01, 0.99))
def test_iou_of_a_box_with_itself_and_with_a_part(box, share):
    assert boxes.iou(box, box) == 1
    part = box + np.array([0, 0, 0, -share * (box[3] - box[1])])
    assert boxes.iou(box, part) == pytest.approx(1 - share, abs=1e-6)


@given(BOX, st.tuples(*[st.floats(-500, 500)] * 4), st.floats(0.1, 50), COORDINATE, COORDINATE)
def test_iou_ignores_translation_and_scale(a, shift, factor, dx, dy):
    b = a + np.array(shift)
    moved = [box * factor + np.array([dx, dy, dx, dy]) for box in (a, b)]
    assert boxes.iou(*moved) == pytest.approx(boxes.iou(a, b), abs=1e-6)


@given(*[st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 60)] * 2)] * 2)
def test_iou_equals_vlm_r1_beyond_one_pixel_of_overlap(a, b):
    a, b = ([x, y, x + w, y + h] for x, y, w, h in (a, b))
    overlap = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    if min(overlap) > 1 or min(overlap) <= 0:
        assert boxes.iou(a, b) == pytest.approx(vlm_r1_iou(a, b))


def test_ham_box_needs_the_right_frame():
    target_px = np.array([475.0, 283, 530, 355])  # a true box of the paper's Figure 8
    perfect_resized_px = boxes.to_resized_px(target_px, HAM)
    assert boxes.iou(perfect_resized_px, target_px) == pytest.approx(0.666, abs=5e-4)
    assert boxes.iou(boxes.to_original_px(perfect_resized_px, HAM), target_px) > 0.999999
    said = np.rint(perfect_resized_px)
    assert boxes.iou(boxes.to_original_px(said, HAM), target_px) >= 0.97


@given(BOX, FRAME)
def test_frames_round_trip(box, frame):
    there = boxes.to_resized_px(box, frame)
    np.testing.assert_allclose(boxes.to_original_px(there, frame), box, rtol=1e-12)


def test_frame_axes_are_not_swapped():
    frame = boxes.Frame(width=100, height=50, resized_width=200, resized_height=25)
    got = boxes.to_resized_px(np.array([10.0, 10, 20, 20]), frame)
    np.testing.assert_array_equal(got, [20, 5, 40, 10])
    with pytest.raises(ValueError, match="not positive"):
        boxes.Frame(width=0, height=1, resized_width=1, resized_height=1)


def test_clip_counts_what_it_changes():
    given_px = np.array(
        [[0.0, 0, 100, 50], [-1, 0, 5, 5], [90, 40, 101, 51], [200, 60, 300, 70], [np.nan] * 4]
    )
    clipped_px, changed = boxes.clip_px(given_px, 100, 50)
    np.testing.assert_array_equal(changed, [False, True, True, True, False])
    np.testing.assert_array_equal(clipped_px[1:4], [[0, 0, 5, 5], [90, 40, 100, 50], [100, 50] * 2])
    assert boxes.iou(clipped_px[3], given_px[3]) == 0


def test_scale_about_centre():
    box_px = np.array([40.0, 20, 60, 30])
    got = boxes.scale_about_centre(box_px, 1.5, 100, 50)
    np.testing.assert_allclose(got, [35, 17.5, 65, 32.5])
    np.testing.assert_allclose(boxes.scale_about_centre(box_px, 1.0, 100, 50), box_px)
    np.testing.assert_allclose(boxes.scale_about_centre(box_px, 9.0, 100, 50), [0, 0, 100, 50])
    with pytest.raises(ValueError, match="positive"):
        boxes.scale_about_centre(box_px, 0.0, 100, 50)


def test_a_said_box_is_mapped_before_it_is_clipped():
    """The other way round, it would be cut at the edge of what the model sees."""
    box, clipped = boxes.to_clipped_px(np.array([294.0, -4.0, 441.0, 500.0]), HAM)
    np.testing.assert_allclose(box, [300.0, 0.0, 450.0, 450.0])
    assert clipped
    box, clipped = boxes.to_clipped_px(np.array([0.0, 0.0, 294.0, 224.0]), HAM)
    np.testing.assert_allclose(box, [0.0, 0.0, 300.0, 225.0])
    assert not clipped
