# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Answers a split greedily, every example exactly once, and writes down what was said.

How the texts are made is the caller's business (`generate`). How a box is read out of a text and
compared is that of training: `rewards.scores`.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tqdm

from medloc_jax import distributed, storage
from medloc_jax.data import batching, examples
from medloc_jax.evaluation import metrics
from medloc_jax.grounding import boxes, prompts
from medloc_jax.rewards import scores

PREDICTIONS_FILE = "predictions.jsonl"
METRICS_FILE = "metrics.json"
# One for all runs: the same answers get the same intervals, and one data set has one floor.
BOOTSTRAP_SEED = 0

Prediction = dict[str, Any]  # a line of predictions.jsonl


def evaluate(
    batches: Iterable[batching.Batch],
    generate: Callable[[batching.Batch], Sequence[str]],
    template: prompts.Template,
    *,
    eval_examples: Sequence[examples.Example],
    train_examples: Sequence[examples.Example],
    max_completion_tokens: int,
    gather: Callable[[list[Prediction]], list[Prediction]] | None = None,
    progress: bool = True,
) -> tuple[list[Prediction], dict[str, Any]]:
    """Predicts a split and measures it; every process calls it and gets the same.

    Args:
        batches: this process's batches of `eval_examples`, as `pipeline.eval_batches` gives them.
        generate: greedy completions of the rows of a batch, one a row.
        template: that the prompts were written with.
        eval_examples: the split, on all processes.
        train_examples: what the constant-box floor may look at; empty: no floor.
        max_completion_tokens: the longest completion that `generate` makes; only recorded.
        gather: joins the processes' predictions (`gather_over_processes`); None: there is one.
        progress: show a bar.

    Returns:
        The predictions in the order of `eval_examples`, and the content of metrics.json:
        `metrics.summarize`, with `floor`, `decoding` and `image_folder`.
    """
    ids = [example.id for example in eval_examples]
    predictions = predict(
        batches, generate, template, expected_ids=ids, gather=gather, progress=progress
    )
    summary = summarize(predictions, eval_examples, train_examples, decoding(max_completion_tokens))
    return predictions, summary


def summarize(
    predictions: Sequence[Prediction],
    eval_examples: Sequence[examples.Example],
    train_examples: Sequence[examples.Example],
    decoded: dict[str, Any],
) -> dict[str, Any]:
    """The content of metrics.json; arguments as for `evaluate`, and how the answers were made."""
    summary = metrics.summarize(
        np.array([prediction["iou"] for prediction in predictions], np.float64),
        np.array([prediction["valid"] for prediction in predictions], np.bool_),
        seed=BOOTSTRAP_SEED,
    )
    if train_examples:
        summary["floor"] = metrics.constant_box_floor(
            train_examples, eval_examples, seed=BOOTSTRAP_SEED
        )
    summary["decoding"] = decoded
    folder = eval_examples[0].folder
    summary["image_folder"] = folder if storage.is_remote(folder) else os.path.abspath(folder)
    return summary


def decoding(max_completion_tokens: int) -> dict[str, Any]:
    """How an evaluation decodes, as metrics.json records it.

    Qwen2.5-VL's own generation_config.json asks for a repetition penalty of 1.05, which training
    rollouts do not have: an evaluation that inherits it measures another policy.
    """
    return {
        "strategy": "greedy",
        "repetition_penalty": 1.0,
        "max_completion_tokens": max_completion_tokens,
    }


def predict(
    batches: Iterable[batching.Batch],
    generate: Callable[[batching.Batch], Sequence[str]],
    template: prompts.Template,
    *,
    expected_ids: Sequence[str],
    gather: Callable[[list[Prediction]], list[Prediction]] | None = None,
    progress: bool = True,
) -> list[Prediction]:
    """Answers every example once.

    Args:
        batches: this process's rows; those that are not `row_valid` are answered and dropped.
        generate: greedy completions of the rows of a batch, one a row.
        template: that the prompts were written with.
        expected_ids: of all examples, on all processes.
        gather: joins the processes' predictions; None: there is one process.
        progress: show a bar.

    Returns:
        One prediction an example, in the order of `expected_ids`. `boxes_px` holds the scored box,
        clipped to the stored image; it is empty where `valid` is false, and `reason` says why.

    Raises:
        ValueError: an example was answered twice or not at all, or `generate` gave too few texts.
    """
    predictions: list[Prediction] = []
    # With several processes this one sees its share alone, and the bar has no end.
    total = len(expected_ids) if gather is None else None
    with tqdm.tqdm(
        total=total, desc="evaluate", unit="example", disable=None if progress else True
    ) as bar:
        for batch in batches:
            answered = _score(batch, generate(batch), template)
            predictions += answered
            bar.update(len(answered))
    return _in_order(predictions if gather is None else gather(predictions), expected_ids)


def gather_over_processes(predictions: list[Prediction], copies: int = 1) -> list[Prediction]:
    """Joins the predictions of all processes, in process order; every process calls it.

    Args:
        predictions: of this process.
        copies: neighbouring processes that have the same ones (`sharding.RowShare`).
    """
    text = np.frombuffer(json.dumps(predictions).encode("ascii"), np.uint8)
    lengths = distributed.all_hosts(np.array([text.size]))
    # all_hosts wants the same shape everywhere; spaces after JSON mean nothing. A power of two, so
    # that evaluations of about the same length are gathered by one compiled program.
    width = 1 << (int(lengths.max()) - 1).bit_length()
    padded = np.full((1, width), ord(" "), np.uint8)
    padded[0, : text.size] = text
    rows = distributed.all_hosts(padded)
    return [prediction for row in rows[::copies] for prediction in json.loads(row.tobytes())]


def write(
    folder: str | os.PathLike[str], predictions: Sequence[Prediction], summary: dict[str, Any]
) -> None:
    """Writes predictions.jsonl and metrics.json, each whole or not at all, metrics.json last."""
    target = storage.path(folder)
    storage.make_folder(target)
    lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in predictions)
    storage.write_text(target / PREDICTIONS_FILE, lines)
    storage.write_text(target / METRICS_FILE, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def _score(
    batch: batching.Batch, texts: Sequence[str], template: prompts.Template
) -> list[Prediction]:
    """The predictions of the rows of a batch that count."""
    if len(texts) != len(batch.examples):
        raise ValueError(
            f"{len(texts)} completions for a batch of {len(batch.examples)} rows: `generate` must "
            "give one a row, filled-up rows included"
        )
    scored = scores.score_completions(
        [[text] for text in texts], batch.target_boxes_px, batch.frames, template
    )
    # The same IoU as in scored.scores, before it is rounded to float32, where 0.7 misses 0.7.
    ious = np.asarray(boxes.iou(scored.boxes_px[:, 0], batch.target_boxes_px))
    return [
        line(
            example,
            scored.boxes_px[row, 0].tolist() if scored.valid[row, 0] else None,
            batch.target_boxes_px[row].tolist(),
            iou=float(ious[row]),
            completion=texts[row],
            reason=scored.reasons[row][0],
        )
        for row, example in enumerate(batch.examples)
        if batch.row_valid[row]
    ]


def line(
    example: examples.Example,
    box_px: list[float] | None,
    target_px: list[float],
    *,
    iou: float,
    completion: str,
    reason: str,
) -> Prediction:
    """A line of predictions.jsonl.

    Args:
        example: what was asked.
        box_px: the box that counts, clipped, in pixels of the stored image; None: there is none.
        target_px: the true box, in the same pixels.
        iou: of the two.
        completion: what was said.
        reason: why there is no box.
    """
    return {
        "id": example.id,
        "image": example.image,
        "boxes_px": [] if box_px is None else [box_px],
        "target_boxes_px": [target_px],
        "iou": iou,
        "completion": completion,
        "valid": box_px is not None,
        "reason": reason,
        "label": example.label,
        "source": example.source,
        "width": example.width,
        "height": example.height,
    }


def _in_order(predictions: Sequence[Prediction], expected_ids: Sequence[str]) -> list[Prediction]:
    """The predictions in the order of `expected_ids`; each must be there, and once."""
    by_id: dict[str, Prediction] = {}
    for prediction in predictions:
        if by_id.setdefault(prediction["id"], prediction) is not prediction:
            raise ValueError(
                f"example {prediction['id']!r} was answered twice: give every process rows of its "
                "own, and mark the rows that fill a batch up as not valid"
            )
    missing = [name for name in expected_ids if name not in by_id]
    unknown = sorted(by_id.keys() - set(expected_ids))
    if missing or unknown:
        what = f"{len(missing)} of {len(expected_ids)} examples were not answered"
        name = missing[0] if missing else unknown[0]
        if not missing:
            what = f"{len(unknown)} answered examples are not in the split"
        raise ValueError(f"{what}, {name!r} the first: batches and split must come from one list")
    return [by_id[name] for name in expected_ids]
