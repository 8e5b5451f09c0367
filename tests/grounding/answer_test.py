# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medloc_jax.grounding import answer

FENCED = '```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "lesion"}\n]\n```'
# Like the responses of the paper's Figure 8: corners as pairs, then the box.
FIGURE_8 = (
    "To determine the bounding box for the skin lesion area, I looked for the darker region.\n"
    "- Top-left corner: [475, 283]\n- Bottom-right corner: [530, 355]\n\n"
    "Therefore, the bounding box is:\n\n[475, 283, 530, 355]"
)
CORPUS = {
    "figure 8": (FIGURE_8, [475, 283, 530, 355]),
    "figure 8, changed its mind": ("First [1, 2, 3, 4]. Better: [5, 6, 7, 8].", [5, 6, 7, 8]),
    "fenced": (FENCED, [10, 20, 30, 40]),
    "tags and fence": (f"<think>a</think><answer>{FENCED}</answer>", [10, 20, 30, 40]),
    "object": ('<answer>{"bbox_2d": [1, 2, 3, 4]}</answer>', [1, 2, 3, 4]),
    "single quotes": ("<answer>[{'bbox_2d': [1,2,3,4],'label': 'x'}]</answer>", [1, 2, 3, 4]),
    "nested": ('{"bbox_2d": [[1, 2, 3, 4]]}', [1, 2, 3, 4]),
    "cut off": ('<think>a</think><answer>```json\n[{"bbox_2d": [1, 2, 3, 4], "la', [1, 2, 3, 4]),
    "floats": ("[0.5, 1.25, .75e2, 80.]", [0.5, 1.25, 75, 80]),
    "signs and spaces": ("[ -3 , +4 ,\n5 ,6 ]", [-3, 4, 5, 6]),
    "compact": ("[1,2,3,4]", [1, 2, 3, 4]),
    "first in json": (
        '[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6, 7, 8]}]',
        [1, 2, 3, 4],
    ),
    "json before prose": ('{"bbox_2d": [1, 2, 3, 4]} that is [5, 6, 7, 8]', [1, 2, 3, 4]),
    "first in plain tags": ("<answer>[1,2,3,4] or [5,6,7,8]</answer>", [1, 2, 3, 4]),
    "last tags": ("<answer>[1,2,3,4]</answer> no, <answer>[5,6,7,8]</answer>", [5, 6, 7, 8]),
    "tags, not reasoning": ("<think>[9,9,99,99]</think><answer>[1,2,3,4]</answer>", [1, 2, 3, 4]),
    "tags, not what follows": ("<answer>[1,2,3,4]</answer> [5,6,7,8]", [1, 2, 3, 4]),
    "five numbers are no box": ("[1,2,3,4,5] [1,2,3,4]", [1, 2, 3, 4]),
}
FAILURES = {
    "nothing": ("", answer.NO_BOX),
    "prose": ("There is no lesion.", answer.NO_BOX),
    "three": ("[1, 2, 3]", answer.NO_BOX),
    "two pairs": ("[1, 2] [3, 4]", answer.NO_BOX),
    "round brackets": ("(1, 2, 3, 4)", answer.NO_BOX),
    "words": ("[x1, y1, x2, y2]", answer.NO_BOX),
    "nan": ("[NaN, 1, 2, 3]", answer.NO_BOX),
    "reversed": ("[30, 40, 10, 20]", answer.EMPTY_BOX),
    "flat": ("[10, 20, 10, 40]", answer.EMPTY_BOX),
    "huge": ("[0, 0, 1e999, 1]", answer.NOT_FINITE),
    "long": (f"[0, 0, {'9' * 5000}, 1]", answer.NOT_FINITE),
    "empty tags": ("[1,2,3,4] <answer>none</answer>", answer.NO_BOX),
    "deciding one is reversed": ("[1, 2, 3, 4] then [9, 9, 1, 1]", answer.EMPTY_BOX),
    "deciding json is flat": (
        '[{"bbox_2d": [1, 2, 1, 4]}, {"bbox_2d": [5, 6, 7, 8]}]',
        answer.EMPTY_BOX,
    ),
}


@pytest.mark.parametrize("case", CORPUS)
def test_corpus(case):
    text, want = CORPUS[case]
    got = answer.parse(text)
    assert got.valid and got.reason == ""
    np.testing.assert_array_equal(got.box, want)
    assert any(np.array_equal(box, want) for box in got.boxes)


@pytest.mark.parametrize("case", FAILURES)
def test_failures_have_a_reason(case):
    text, reason = FAILURES[case]
    got = answer.parse(text)
    assert (got.valid, got.box, got.reason) == (False, None, reason)


def test_all_well_formed_boxes_are_kept_in_order():
    got = answer.parse("[1,2,3,4] [9,9,1,1] [5,6,7,8]")
    np.testing.assert_array_equal(got.boxes, [[1, 2, 3, 4], [5, 6, 7, 8]])


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (f"<answer>{FENCED}</answer>", [10, 20, 30, 40]),
        ("<answer>[1, 2, 3, 4]</answer> <answer>[5, 6, 7, 8]</answer>", [1, 2, 3, 4]),
        ("<answer>[1, 2, 3, 4], [5, 6, 7, 8]</answer>", [1, 2, 3, 4]),
        ("<answer>[30, 40, 10, 20]</answer>", [30, 40, 10, 20]),
        ("<answer>[ 1, 2, 3, 4]</answer>", None),
        ("<answer>[1.5, 2, 3, 4]</answer>", None),
        ("<answer>[-1, 2, 3, 4]</answer>", None),
        ("<answer>[1, 2, 3, 4]", None),
        ("[1, 2, 3, 4]", None),
    ],
)
def test_strict_vlm_r1(text, want):
    got = answer.parse_strict_vlm_r1(text)
    assert got.valid == (want is not None)
    if want is not None:
        np.testing.assert_array_equal(got.box, want)


TOKENS = st.sampled_from(
    ["<answer>", "</answer>", "<think>", "[", "]", "{", "}", '"bbox_2d":', "'bbox_2d': ["]
    + ["1", "-", ".", "e", ",", " ", "\n", "[1,2,3,4]", "[4,3,2,1]", "1e999", "NaN", "٣", "```json"]
)


@given(st.one_of(st.text(), st.lists(TOKENS, max_size=40).map("".join)))
def test_never_raises_and_is_consistent(text):
    for parse in (answer.parse, answer.parse_strict_vlm_r1):
        got = parse(text)
        assert got.valid == (got.box is not None) == (got.reason == "")
        assert got.boxes.shape[1:] == (4,)
    got = answer.parse(text)
    assert np.isfinite(got.boxes).all()
    assert (got.boxes[:, :2] < got.boxes[:, 2:]).all()


PROSE = st.text(st.characters(exclude_characters="[]<\"'", exclude_categories=["Cs"]))
NUMBER = st.floats(-1e5, 1e5, allow_nan=False).map(lambda value: round(value, 3))


@given(PROSE, PROSE, st.tuples(NUMBER, NUMBER, *[st.floats(1, 1e4)] * 2), st.booleans())
def test_finds_a_box_in_prose(before, after, corner_and_size, tagged):
    x, y, width, height = corner_and_size
    box = [x, y, x + width, y + height]
    text = f"{before}{box}{after}"
    got = answer.parse(f"{before}<answer>{text}</answer>{after}" if tagged else text)
    np.testing.assert_array_equal(got.box, box)


@pytest.mark.parametrize("piece", ["[", "[1,", "<answer>", "[1,2,3,4]", '{"bbox_2d": [', "9", " "])
def test_takes_no_longer_on_a_completion_that_repeats(piece):
    start = time.perf_counter()
    answer.parse(piece * (20_000 // len(piece)))
    assert time.perf_counter() - start < 20
