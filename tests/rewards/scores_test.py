# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from medloc_jax.grounding import answer, boxes, prompts
from medloc_jax.rewards import scores

HAM = boxes.Frame(width=600, height=450, resized_width=588, resized_height=448)
PLAIN = boxes.Frame(width=100, height=100, resized_width=100, resized_height=100)
TARGETS = np.array([[475.0, 283, 530, 355], [0, 0, 50, 100]])
TEXTS = [
    ["[466,282,519,353]", "no idea", "[475,283,530,355]"],
    ["[0,0,50,100]", "[-20, 0, 50, 140]", "[300,300,400,400]"],
]


def score(texts=TEXTS, targets=TARGETS, frames=(HAM, PLAIN)):
    return scores.score_completions(texts, targets, frames, prompts.TEMPLATES["box"])


def test_scores_are_taken_in_the_stored_image():
    got = score()
    iou = got.scores["iou"]
    assert iou.dtype == np.float32
    assert iou[0, 0] >= 0.97  # perfect but for rounding
    assert iou[0, 2] < 0.7  # the true numbers, said in the wrong frame
    np.testing.assert_array_equal(iou[:, 1], [0, 1])
    np.testing.assert_array_equal(got.scores["format"], [[1, 0, 1], [1, 0, 1]])


def test_what_was_read_is_reported():
    got = score()
    np.testing.assert_array_equal(got.valid, [[True, False, True], [True, True, True]])
    np.testing.assert_array_equal(got.clipped, [[False, False, False], [False, True, True]])
    assert got.reasons == [["", answer.NO_BOX, ""], ["", "", ""]]
    assert np.isnan(got.boxes_px[0, 1]).all()
    np.testing.assert_array_equal(got.boxes_px[1, 1], [0, 0, 50, 100])
    assert got.scores["iou"][1, 2] == 0


def test_the_best_of_many_boxes_is_not_scored():
    got = score([["[0,0,9,9] [0,0,50,100] [0,0,8,8]"]], TARGETS[1:], [PLAIN])
    assert got.scores["iou"][0, 0] < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": (HAM,)}, "one of each a prompt"),
        ({"texts": TEXTS[:1]}, "one of each a prompt"),
        ({"texts": [["a"], ["a", "b"]]}, "same number"),
        ({"texts": [[], []]}, "same number"),
    ],
)
def test_disagreeing_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        score(**arguments)
