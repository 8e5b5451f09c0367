# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json
from typing import Any, cast

import numpy as np
import pytest

from medloc_jax import distributed
from medloc_jax.data import batching, examples
from medloc_jax.evaluation import predict
from medloc_jax.grounding import boxes, prompts

_BOX = prompts.TEMPLATES["box"]


def _example(name, box=(20.0, 10.0, 60.0, 40.0)):
    return examples.Example(
        id=name,
        image=f"images/{name}.png",
        width=100,
        height=50,
        query="lesion",
        boxes_px=(box,),
        label="nv",
        split="test",
        group=None,
        source="synthetic",
        folder="there",
    )


def _batch(rows, row_valid=None):
    return batching.Batch(
        inputs=cast(Any, None),
        examples=list(rows),
        frames=[boxes.Frame(100, 50, 200, 100) for _ in rows],  # the model sees twice the size
        target_boxes_px=np.array([row.boxes_px[0] for row in rows]),
        row_valid=np.array(row_valid or [True] * len(rows)),
        completions=None,
        completion_mask=None,
    )


def _perfect(batch):
    return [str([round(2 * value) for value in row.boxes_px[0]]) for row in batch.examples]


def _predict(batches, ids, generate=_perfect, gather=None):
    return predict.predict(batches, generate, _BOX, expected_ids=ids, gather=gather, progress=False)


def test_answers_are_mapped_to_the_stored_image_and_filling_rows_dropped():
    a, b, c = (_example(name) for name in "abc")
    batches = [_batch([a, b]), _batch([c, c], [True, False])]
    answers = iter([["[40, 20, 120, 80]", "nothing"], ["[40, 20, 120, 110]", "[1, 2, 3, 4]"]])
    got = _predict(batches, ["c", "a", "b"], lambda batch: next(answers))
    assert [line["id"] for line in got] == ["c", "a", "b"]
    by_id = {line["id"]: line for line in got}
    assert by_id["a"]["iou"] == 1.0 and by_id["a"]["boxes_px"] == [[20.0, 10.0, 60.0, 40.0]]
    assert by_id["a"]["target_boxes_px"] == [[20.0, 10.0, 60.0, 40.0]]
    assert by_id["a"]["reason"] == "" and by_id["a"]["label"] == "nv"
    assert (by_id["a"]["source"], by_id["a"]["width"], by_id["a"]["height"]) == (
        "synthetic",
        100,
        50,
    )
    assert not by_id["b"]["valid"] and by_id["b"]["iou"] == 0.0 and by_id["b"]["boxes_px"] == []
    assert by_id["b"]["completion"] == "nothing" and by_id["b"]["reason"]
    assert by_id["c"]["boxes_px"] == [[20.0, 10.0, 60.0, 50.0]]  # clipped to the image
    assert by_id["c"]["iou"] == pytest.approx(30 / 40)
    assert {"id", "image", "boxes_px", "target_boxes_px", "iou", "completion", "valid"} <= set(
        by_id["c"]
    )


def test_an_example_twice_missing_or_unknown_is_an_error():
    a, b = _example("a"), _example("b")
    with pytest.raises(ValueError, match="'a' was answered twice"):
        _predict([_batch([a, a])], ["a"])
    with pytest.raises(ValueError, match="1 of 2 examples were not answered, 'b'"):
        _predict([_batch([a])], ["a", "b"])
    with pytest.raises(ValueError, match="not in the split, 'b'"):
        _predict([_batch([a, b])], ["a"])
    with pytest.raises(ValueError, match="1 completions for a batch of 2"):
        _predict([_batch([a, b])], ["a", "b"], lambda batch: ["[0, 0, 1, 1]"])


def test_two_processes_give_what_one_gives():
    rows = [_example(name) for name in "abcd"]
    ids = [row.id for row in rows]
    alone = _predict([_batch(rows)], ids)
    other = _predict([_batch(rows[2:])], ids[2:])
    assert _predict([_batch(rows[:2])], ids, gather=lambda local: local + other) == alone


def test_gather_joins_records_of_unequal_length(monkeypatch):
    mine, theirs = [{"completion": "é" * 40}], [{"completion": "x"}, {"completion": ""}]
    calls = iter(range(2))

    def all_hosts(array):
        # The other process's part, as it would come back padded to the longest.
        text = json.dumps(theirs).encode()
        if next(calls) == 0:
            return np.concatenate([array, [len(text)]])
        other = np.full((1, array.shape[1]), ord(" "), np.uint8)
        other[0, : len(text)] = np.frombuffer(text, np.uint8)
        return np.concatenate([array, other])

    monkeypatch.setattr(distributed, "all_hosts", all_hosts)
    assert predict.gather_over_processes(mine) == mine + theirs


def test_gather_over_one_process_changes_nothing():
    assert predict.gather_over_processes([]) == []
    assert predict.gather_over_processes([{"iou": 0.1}]) == [{"iou": 0.1}]


def test_evaluate_writes_metrics_with_floor_and_decoding(tmp_path):
    rows = [_example("a"), _example("b", (0.0, 0.0, 10.0, 10.0))]
    train = [_example("t")]
    predictions, summary = predict.evaluate(
        [_batch(rows)],
        _perfect,
        _BOX,
        eval_examples=rows,
        train_examples=train,
        max_completion_tokens=24,
        progress=False,
    )
    predict.write(tmp_path / "eval" / "test-3", predictions, summary)
    folder = tmp_path / "eval" / "test-3"
    read = json.loads((folder / "metrics.json").read_text())
    assert read["a80"] == 1.0 and read["num_examples"] == 2 and read["miou"] == 1.0
    assert read["floor"]["a50"] == 0.5
    assert read["decoding"] == {
        "strategy": "greedy",
        "repetition_penalty": 1.0,
        "max_completion_tokens": 24,
    }
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").open()]
    assert lines == predictions
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "predictions.jsonl"]


def test_ious_stay_float64():
    # 7 of 10 pixels: in float32 this is 0.699999988, and a threshold of 0.7 would be missed.
    row = _example("a", (0.0, 0.0, 10.0, 10.0))
    got = _predict([_batch([row])], ["a"], lambda batch: ["[0, 0, 14, 20]"])
    assert got[0]["iou"] == 0.7
