# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import pytest

from medloc_jax.data import examples
from medloc_jax.evaluation import outside_predictions


def _example(name, split="test", image=None):
    return examples.Example(
        id=name,
        image=image or f"images/{name}.png",
        width=100,
        height=50,
        query="lesion",
        boxes_px=((20.0, 10.0, 60.0, 40.0),),
        label="nv",
        split=split,
        group=None,
        source="drawn",
        folder="there",
    )


ROWS = [_example("a"), _example("b"), _example("t", "train")]
HIT, MISS = [20, 10, 60, 40], [0, 0, 10, 10]


def _line(name="a", boxes=(HIT,), scores=(0.5,), **more):
    return {"id": name, "boxes_px": list(boxes), "scores": list(scores)} | more


def _read(tmp_path, *lines, rows=ROWS, split="test", missing="no_box"):
    path = tmp_path / "boxes.jsonl"
    path.write_text(
        "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines)
    )
    return outside_predictions.read(path, rows, split=split, missing=missing), path


def test_the_box_of_the_highest_score_counts(tmp_path):
    answers, path = _read(
        tmp_path,
        _line("b", [MISS, HIT, MISS], [0.2, 0.9, 0.3]),
        _line("a", [MISS, HIT], [0.7, 0.7]),  # of equal ones, the first
    )
    predictions, summary = outside_predictions.score(answers, ROWS[:2], ROWS[2:], path=path)
    assert [line["id"] for line in predictions] == ["a", "b"]
    assert [line["iou"] for line in predictions] == [0.0, 1.0]
    assert predictions[1]["boxes_px"] == [HIT] and predictions[1]["valid"]
    # A score is no text of the model.
    assert [line["completion"] for line in predictions] == ["", ""]
    assert [line["score"] for line in predictions] == [0.7, 0.9]
    assert predictions[1]["target_boxes_px"] == [HIT] and predictions[1]["label"] == "nv"
    assert summary["a50"] == 0.5 and summary["num_examples"] == 2
    assert summary["floor"]["a50"] == 1.0  # the median training box is every target


def test_no_box_and_no_line_count_as_wrong(tmp_path):
    answers, path = _read(tmp_path, _line("a", [], []))
    predictions, summary = outside_predictions.score(answers, ROWS[:2], [], path=path)
    assert [line["valid"] for line in predictions] == [False, False]
    assert [line["score"] for line in predictions] == [None, None]
    assert [line["reason"] for line in predictions] == ["no box", "no line in the predictions"]
    assert summary["valid_rate"] == 0 and summary["decoding"]["without_line"] == 1


def test_a_box_that_reaches_a_little_out_is_clipped_and_counted(tmp_path):
    answers, path = _read(tmp_path, _line("a", [[-4, -2, 104, 52]]), _line("b"))
    assert answers["a"].box_px == [0, 0, 100, 50] and answers["a"].clipped
    _, summary = outside_predictions.score(answers, ROWS[:2], [], path=path)
    assert summary["decoding"]["clipped_rate"] == 0.5


def test_an_image_names_its_only_example(tmp_path):
    rows = [_example("a", image="images/x.png"), _example("b", image="images/y.png")]
    lines = [
        {"image": name, "boxes_px": [HIT], "scores": [1]} for name in ("images/x.png", "y.png")
    ]
    answers, _ = _read(tmp_path, *lines, rows=rows, missing="error")
    assert answers["a"].box_px == answers["b"].box_px == HIT
    twice = [dataclasses.replace(rows[0], id=name) for name in "ab"]
    with pytest.raises(ValueError, match=r"boxes.jsonl:1: image 'x.png' is that of 2 examples"):
        _read(tmp_path, lines[0] | {"image": "x.png"}, rows=twice)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"boxes.jsonl is empty"),
        (["{"], r"boxes.jsonl:1: not JSON"),
        ([[1]], r"boxes.jsonl:1: not an object"),
        ([_line(), _line("x")], r"boxes.jsonl:2: id 'x' is not in the manifest"),
        ([_line(), _line()], r"boxes.jsonl:2: 'a' stands in line 1 already"),
        ([_line("t")], r":1: 't' is in split train"),
        ([_line(box=1)], r":1: unknown key 'box'"),
        ([{"id": "a", "boxes_px": [HIT]}], r":1: scores is None"),
        ([_line(scores=[0.1, 0.2])], r":1: 1 boxes and 2 scores"),
        ([_line(scores=["high"])], r":1: score 'high'"),
        ([_line(scores=[float("nan")])], r":1: score nan"),
        ([_line(boxes=[[1, 2, 3]])], r":1: box \[1, 2, 3\] is not four"),
        ([_line(boxes=[[60, 10, 20, 30]])], r":1: box .* reversed"),
        ([_line(boxes=[[20, 10, 120, 40]])], r":1: box .* outside its image of 100 x 50 px"),
        ([_line(boxes=[HIT, [0, -9, 10, 10]], scores=[0.9, 0.1])], r":1: box .* outside"),
        ([_line(boxes=[[0.2, 0.2, 0.6, 0.8]])], r"look like fractions"),
        ([{"boxes_px": [], "scores": []}], r":1: name the example by either"),
        ([_line(image="images/a.png")], r":1: name the example by either"),
        ([_line(["a"])], r":1: id is \['a'\]: it must be a string"),
        ([{"image": 3, "boxes_px": [], "scores": []}], r":1: image is 3: it must be a string"),
        ([_line(boxes=[[0, 0, 10**400, 9]])], r":1: box .* is not four finite numbers"),
        ([_line(scores=[10**400])], r":1: score 1000.* is not a finite number"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, lines, message):
    if not lines:
        (tmp_path / "boxes.jsonl").write_text("")
        with pytest.raises(ValueError, match=message):
            outside_predictions.read(tmp_path / "boxes.jsonl", ROWS, split="test", missing="no_box")
        return
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, *lines)


def test_an_example_without_a_line_is_an_error_unless_told(tmp_path):
    with pytest.raises(ValueError, match=r"1 of 2 examples of test have no line, 'b' the first"):
        _read(tmp_path, _line("a"), missing="error")
    with pytest.raises(ValueError, match="choose one of error, no_box"):
        _read(tmp_path, _line("a"), missing="skip")
