# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Groups from lines of IoUs: what is read, and what is refused with its line."""

import json

import numpy as np
import pytest

from medloc_jax.evaluation import sampled_groups

IOUS = np.array([[0.2, 0.4, 0.6, 0.6], [0.0, 0.1, 0.1, 0.2]])


def test_a_log_is_read_with_its_boxes_and_sizes():
    record = {
        "ids": ["a", "b"],
        "ious": IOUS[:, :2].tolist(),
        "boxes_px": [[[0, 0, 1, 1], [None] * 4], [None, [0, 0, 2, 2]]],
        "target_boxes_px": [[0, 0, 10, 10], [0, 0, 20, 5]],
    }
    sizes = {"a": (20, 20), "b": (40, 40)}
    groups = sampled_groups.from_records([record], "x.jsonl", sizes)
    assert groups.valid.tolist() == [[True, False], [False, True]]
    assert groups.areas.tolist() == [0.25, 0.0625] and groups.area_unit == "of the image"
    unknown = sampled_groups.from_records([record], "x.jsonl", {"a": (20, 20)})
    assert unknown.areas.tolist() == [100, 100] and unknown.area_unit == "px^2"


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([], "x.jsonl: cannot"),
        (["{"], "x.jsonl:1: not JSON"),
        (['{"ious": [[0.5, 0.1]]}', "[]"], "x.jsonl:2: need an object"),
    ],
)
def test_a_broken_file_names_the_line(tmp_path, lines, named):
    path = tmp_path / "x.jsonl"
    if lines:
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(ValueError, match=named):
            sampled_groups.read_jsonl(path)
    else:
        with pytest.raises(ValueError, match="cannot read"):
            sampled_groups.read_jsonl(path)
        path.write_text("")
        with pytest.raises(ValueError, match="is empty"):
            sampled_groups.read_jsonl(path)


@pytest.mark.parametrize(
    ("ious", "named"),
    [([[0.5, 1.5]], "line 2.*1.5"), ([[0.1, 0.2, 0.3]], "line 2.*groups of 3"), ([], "line 2")],
)
def test_ious_that_do_not_fit_name_the_line(ious, named):
    with pytest.raises(ValueError, match=named):
        sampled_groups.from_records([{"ious": [[0.5, 0.1]]}, {"ious": ious}], "x.jsonl")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"ious": [[0.5], [0.1]]}, "groups of 1.*G must be 2 or more"),
        ({"boxes_px": None}, "boxes_px must be 2 lists of 4"),
        ({"boxes_px": [[None] * 4]}, "boxes_px must be 2 lists of 4"),
        ({"boxes_px": [[None] * 4, [None] * 3 + [[1, 2]]]}, r"boxes_px holds \[1, 2\]"),
        ({"boxes_px": [[None] * 4, [5, None, None, None]]}, "boxes_px holds 5"),
        ({"target_boxes_px": None}, "target_boxes_px must be a list of 2"),
        ({"target_boxes_px": [[0, 0, 1, 1]] * 3}, "target_boxes_px must be a list of 2"),
        ({"target_boxes_px": [[0, 0, 1, 1], [0, 0, 1]]}, "target_boxes_px holds"),
        ({"target_boxes_px": [[0, 0, 1, 1], [0, 0, 1, 10**400]]}, "target_boxes_px holds"),
        ({"ids": [["a"], ["b"]]}, "ids must be a list of 2 strings"),
    ],
)
def test_boxes_that_are_not_of_the_ious_name_the_line(more, named):
    good = {"ious": IOUS.tolist()} | {key: _SAME[key] for key in more if key in _SAME}
    with pytest.raises(ValueError, match=f"x.jsonl: line [12] of those read.*{named}"):
        records = [good, good | more] if "ious" not in more else [more]
        sampled_groups.from_records(json.loads(json.dumps(records)), "x.jsonl")


_SAME = {
    "boxes_px": [[[0, 0, 1, 1]] * 4] * 2,
    "target_boxes_px": [[0, 0, 1, 1]] * 2,
    "ids": ["a", "b"],
}
