# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a split's IoUs amount to: A@0.5, A@0.8, mAP, mIoU, intervals, and the constant-box floor.

The measures are those of MedLoc-R1: A@0.5, A@0.8 and "mAP", the mean accuracy over the IoUs 0.50,
0.55, ... 0.95, with no confidence and no precision in it. An answer reaches a threshold when IoU >=
threshold, as in the paper's reward (Eq. 3); VLM-R1 counts IoU > 0.5 instead, which differs only for
an answer that hits the threshold exactly.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from medloc_jax.grounding import boxes

# Rounded decimals: 0.5 + 2 * 0.05 is 0.6000000000000001, and an IoU of 0.6 would miss it.
MAP_THRESHOLDS = tuple(round(0.50 + 0.05 * k, 2) for k in range(10))

# Mapping an answer from resized to original pixels rounds in float64; an IoU of exactly 0.8 must
# not fall to 0.7999999999999999. The slack is far below what a pixel can change.
TOLERANCE = 1e-9

_MEASURES = ("a50", "a80", "map", "miou", "valid_rate")
_BOOTSTRAP_CELLS = 4_000_000  # resampled entries held at one time, about 32 MB


def accuracy_at(ious: Float[np.ndarray, " n"], threshold: float) -> float:
    """Share of examples whose IoU is at least `threshold` (less 1e-9, for rounding), in [0, 1]."""
    if not len(ious):
        raise ValueError(
            "accuracy of no examples: the split is empty; choose one that has examples"
        )
    return float(_hits(ious, threshold).mean())


def summarize(
    ious: Float[np.ndarray, " n"],
    valid: Bool[np.ndarray, " n"],
    *,
    seed: int,
    num_bootstrap: int = 2000,
) -> dict[str, Any]:
    """The numbers of one evaluation, as they stand in metrics.json.

    Args:
        ious: [n] IoU of each example's answer with its target, in [0, 1].
        valid: [n] true where the completion held a box. Elsewhere the IoU counts as 0.
        seed: of the bootstrap.
        num_bootstrap: resamplings of the examples; 0 leaves the intervals out.

    Returns:
        `a50`, `a80`, `map`, `miou`, `valid_rate`, each a fraction in [0, 1]; `num_examples`; and
        for each fraction a 95% percentile interval over resampled examples, `a50_ci`: [low, high].
        An interval speaks of which examples were drawn, not of the seed of the training, and it has
        no width where all examples agree (0 of 36 hits gives [0, 0]).

    Raises:
        ValueError: no examples, or a valid answer whose IoU is not a number in [0, 1].
    """
    if not len(ious):
        raise ValueError(
            "an evaluation of no examples: the split is empty; choose one that has some"
        )
    counted = np.where(valid, ious, 0.0).astype(np.float64)
    wrong = ~((counted >= 0.0) & (counted <= 1.0 + TOLERANCE))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"IoU of example {row} is {counted[row]}, not a number in [0, 1]; "
            "mark the example invalid or mend its boxes"
        )

    # Every measure is a mean over examples, so that one matrix serves the values and the bootstrap.
    columns = [per_example(counted, measure) for measure in _MEASURES[:-1]]
    rows = np.stack([*columns, valid.astype(np.float64)], axis=1)  # [n, measure]
    summary: dict[str, Any] = dict(zip(_MEASURES, rows.mean(axis=0).tolist(), strict=True))
    summary["num_examples"] = len(counted)
    if num_bootstrap:
        means = _bootstrap_means(rows, seed=seed, num_bootstrap=num_bootstrap)
        low, high = np.percentile(means, [2.5, 97.5], axis=0)
        for index, name in enumerate(_MEASURES):
            summary[f"{name}_ci"] = [float(low[index]), float(high[index])]
    return summary


def constant_box_floor(
    train_examples: Sequence[Any],
    eval_examples: Sequence[Any],
    *,
    seed: int = 0,
    num_bootstrap: int = 2000,
) -> dict[str, Any]:
    """What always answering the median training box scores: the least a model must beat.

    The median is taken for each of the four coordinates, as fractions of the image, and scaled to
    each evaluated image.

    Args:
        train_examples: examples (`boxes_px`, `width`, `height`, `id`) whose boxes may be looked at.
        eval_examples: examples that are scored.
        seed: of the bootstrap.
        num_bootstrap: resamplings for the intervals.

    Returns:
        As `summarize`, with `box_unit`: the constant box as fractions of the image.

    Raises:
        ValueError: either sequence is empty, or an example has not exactly one target box.
    """
    if not len(train_examples) or not len(eval_examples):
        raise ValueError(
            "the constant-box floor needs training and evaluated examples; "
            f"got {len(train_examples)} and {len(eval_examples)}"
        )
    box_unit = np.median(_targets_px(train_examples) / _sizes_px(train_examples), axis=0)  # [4]
    answers_px = box_unit * _sizes_px(eval_examples)  # [n, 4]
    ious = np.asarray(boxes.iou(answers_px, _targets_px(eval_examples)), np.float64)
    summary = summarize(ious, np.ones(len(ious), np.bool_), seed=seed, num_bootstrap=num_bootstrap)
    return summary | {"box_unit": box_unit.tolist()}


def per_example(ious: Float[np.ndarray, " n"], measure: str) -> Float[np.ndarray, " n"]:
    """What every example adds to a measure, which is the mean of it over the examples.

    Args:
        ious: 0 where the completion held no box.
        measure: `a50`, `a80`, `map` or `miou`.
    """
    if measure == "map":
        return np.mean([_hits(ious, threshold) for threshold in MAP_THRESHOLDS], axis=0)
    if measure == "miou":
        return ious
    return _hits(ious, {"a50": 0.5, "a80": 0.8}[measure])


def _hits(ious: Float[np.ndarray, " n"], threshold: float) -> Float[np.ndarray, " n"]:
    return (ious >= threshold - TOLERANCE).astype(np.float64)


def _bootstrap_means(
    per_example: Float[np.ndarray, "n m"], *, seed: int, num_bootstrap: int
) -> Float[np.ndarray, "r m"]:
    """Means of the columns over `num_bootstrap` samples of n rows drawn with replacement."""
    n = len(per_example)
    rng = np.random.default_rng(seed)
    block = max(1, _BOOTSTRAP_CELLS // n)
    means = []
    for start in range(0, num_bootstrap, block):
        count = min(block, num_bootstrap - start)
        drawn = rng.integers(n, size=(count, n))
        # How often each example was drawn: the mean over a sample is then one matrix product.
        flat = (drawn + n * np.arange(count)[:, None]).ravel()
        times = np.bincount(flat, minlength=count * n).reshape(count, n)
        means.append(times @ per_example / n)
    return np.concatenate(means)


def _targets_px(examples: Sequence[Any]) -> Float[np.ndarray, "n 4"]:
    for example in examples:
        if len(example.boxes_px) != 1:
            raise ValueError(
                f"example {example.id!r} has {len(example.boxes_px)} target boxes, and exactly one "
                "is scored; run `medloc prepare --one_box=largest|union|split`"
            )
    return np.asarray([example.boxes_px[0] for example in examples], np.float64)


def _sizes_px(examples: Sequence[Any]) -> Float[np.ndarray, "n 4"]:
    sizes = np.asarray([(example.width, example.height) for example in examples], np.float64)
    return np.tile(sizes, 2)  # width, height, width, height: the scale of each coordinate
