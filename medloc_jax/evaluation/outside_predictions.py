# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Scores the boxes of a detector that is not ours, with the measures of our own evaluations.

A line of the file is one example's boxes, in pixels of the stored image (xyxy), with a score each:
`{"id": "ISIC_1", "boxes_px": [[10, 20, 110, 90]], "scores": [0.83]}`; `image`, the manifest's path
or its last part, may stand for the id where the image is asked one question. The box of the highest
score is the answer, of equal ones the first; no box is an answer without one. Detectors let boxes
reach a little out of the image: up to a twentieth of its side that is clipped, as a model's own
boxes are, and counted; beyond it the boxes are taken to be in another frame, and refused.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medloc_jax.data.examples import Example
from medloc_jax.evaluation import predict
from medloc_jax.grounding import boxes

METHOD = "predictions"  # in config.json, where a run has "sft" or "grpo"
DIGESTS = "predictions_sha256"  # in config.json: of the file of each split that was scored
MISSING = ("error", "no_box")
_SLACK = 0.05  # of the image's side
_KEYS = {"id", "image", "boxes_px", "scores"}
# Where no coordinate of the whole file is above this, they are fractions of the image.
_LARGEST_FRACTION = 1.5


class Answer(NamedTuple):
    """What a detector says about one example.

    Attributes:
        box_px: the box that counts, clipped; None if there is none.
        score: of it.
        clipped: it reached out of the image.
        reason: why there is no box; "" where there is one.
    """

    box_px: list[float] | None
    score: float | None
    clipped: bool
    reason: str


def read(path: Path, rows: Sequence[Example], *, split: str, missing: str) -> dict[str, Answer]:
    """Reads the file against the examples.

    Args:
        path: of the JSONL.
        rows: all examples of the manifest.
        split: the one that is scored; a line of another is an error.
        missing: what an example without a line is: "error", or "no_box": an answer without a box.

    Returns:
        The answer of every example of the split, by id.

    Raises:
        ValueError: the first thing that is wrong, with file and line.
    """
    if missing not in MISSING:
        raise ValueError(f"--missing={missing}: choose one of {', '.join(MISSING)}")
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read --predictions={path}: {error}") from error
    if lines == [""]:
        raise ValueError(f"{path} is empty: write a line for every example")
    by_id = {row.id: row for row in rows}
    by_image = _by_image(rows)
    answers: dict[str, Answer] = {}
    line_of: dict[str, int] = {}
    largest = 0.0
    for number, line in enumerate(lines, start=1):
        try:
            content = _content(line)
            example = _example(content, by_id, by_image)
            if example.split != split:
                raise ValueError(
                    f"{example.id!r} is in split {example.split}: leave it out, or give "
                    f"--split={example.split}"
                )
            if example.id in answers:
                raise ValueError(
                    f"{example.id!r} stands in line {line_of[example.id]} already: one line each"
                )
            answers[example.id] = _answer(content, example)
            line_of[example.id] = number
            largest = max([largest, *(side for box in content["boxes_px"] for side in box)])
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    if 0 < largest <= _LARGEST_FRACTION:
        raise ValueError(
            f"{path}:1: no coordinate of the file is above {largest:g}: they look like fractions "
            "of the image; multiply them by its width and height"
        )
    wanted = [row.id for row in rows if row.split == split]
    without = [name for name in wanted if name not in answers]
    if without and missing == "error":
        raise ValueError(
            f"{path}: {len(without)} of {len(wanted)} examples of {split} have no line, "
            f"{without[0]!r} the first: add them, or count them as wrong with --missing=no_box"
        )
    for name in without:
        answers[name] = Answer(None, None, False, "no line in the predictions")
    return answers


def score(
    answers: Mapping[str, Answer],
    eval_examples: Sequence[Example],
    train_examples: Sequence[Example],
    *,
    path: Path,
) -> tuple[list[predict.Prediction], dict[str, Any]]:
    """The lines of predictions.jsonl and the content of metrics.json.

    Args:
        answers: of `read`.
        eval_examples: the split.
        train_examples: what the constant-box floor may look at; empty: no floor.
        path: the file that was read; its digest is recorded.

    Returns:
        The lines, each with the `score` of its box (None without one) and no completion; and the
        measures.
    """
    predictions = []
    for example in eval_examples:
        answer = answers[example.id]
        iou = 0.0 if answer.box_px is None else float(boxes.iou(answer.box_px, example.box_px))
        told = predict.line(
            example,
            answer.box_px,
            list(example.box_px),
            iou=iou,
            completion="",  # a detector says nothing
            reason=answer.reason,
        )
        predictions.append({**told, "score": answer.score})
    decoding = {
        "strategy": "predictions of an outside detector, highest score",
        "file": str(path.resolve()),
        "sha256": digest(path),
        "clipped_rate": float(np.mean([answer.clipped for answer in answers.values()])),
        "without_line": sum("no line" in answer.reason for answer in answers.values()),
    }
    summary = predict.summarize(predictions, eval_examples, train_examples, decoding)
    return predictions, summary


def digest(path: Path) -> str:
    """SHA-256 of the file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _content(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}): mend or remove the line") from error
    if not isinstance(content, dict):
        raise ValueError('not an object: write {"id": ..., "boxes_px": [...], "scores": [...]}')
    unknown = sorted(content.keys() - _KEYS)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}: the keys are {', '.join(sorted(_KEYS))}")
    for key in ("boxes_px", "scores"):
        if not isinstance(content.get(key), list):
            raise ValueError(f"{key} is {content.get(key)!r}: it must be a list")
    if len(content["boxes_px"]) != len(content["scores"]):
        raise ValueError(
            f"{len(content['boxes_px'])} boxes and {len(content['scores'])} scores: one score a box"
        )
    return content


def _by_image(rows: Sequence[Example]) -> dict[str, list[Example]]:
    """Examples by the manifest's image path and by its last part."""
    by_image: dict[str, list[Example]] = {}
    for row in rows:
        for name in {row.image, Path(row.image).name}:
            by_image.setdefault(name, []).append(row)
    return by_image


def _example(
    content: Mapping[str, Any],
    by_id: Mapping[str, Example],
    by_image: Mapping[str, Sequence[Example]],
) -> Example:
    if ("id" in content) == ("image" in content):
        raise ValueError("name the example by either id or image")
    for key in content.keys() & {"id", "image"}:
        if not isinstance(content[key], str):
            raise ValueError(f"{key} is {content[key]!r}: it must be a string")
    if "id" in content:
        if content["id"] not in by_id:
            raise ValueError(f"id {content['id']!r} is not in the manifest")
        return by_id[content["id"]]
    found = by_image.get(content["image"], ())
    if len(found) != 1:
        what = "is not in the manifest" if not found else f"is that of {len(found)} examples"
        raise ValueError(f"image {content['image']!r} {what}: name the example by its id")
    return found[0]


def _answer(content: Mapping[str, Any], example: Example) -> Answer:
    """The highest-scoring box, all of them checked."""
    for box in content["boxes_px"]:
        _check_box(box, example)
    for value in content["scores"]:
        if not _is_number(value):
            raise ValueError(f"score {value!r} is not a finite number")
    if not content["boxes_px"]:
        return Answer(None, None, False, "no box")
    best = int(np.argmax(content["scores"]))
    box = np.asarray(content["boxes_px"][best], np.float64)
    clipped_px, outside = boxes.clip_px(box, example.width, example.height)
    if not (clipped_px[:2] < clipped_px[2:]).all():
        return Answer(None, None, True, "the box lies outside the image")
    return Answer(clipped_px.tolist(), float(content["scores"][best]), bool(outside), "")


def _check_box(box: Any, example: Example) -> None:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(side) for side in box):
        raise ValueError(f"box {box!r} is not four finite numbers [x1, y1, x2, y2]")
    if not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(
            f"box {box} is empty or reversed: write corners [x1, y1, x2, y2], not x, y, width, "
            "height"
        )
    x, y = _SLACK * example.width, _SLACK * example.height
    if min(box[0] + x, box[1] + y) < 0 or box[2] > example.width + x or box[3] > example.height + y:
        raise ValueError(
            f"box {box} is outside its image of {example.width} x {example.height} px: boxes are "
            "corners in pixels of the stored image; is it of a resized one?"
        )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer with more digits than a float can hold
        return False
